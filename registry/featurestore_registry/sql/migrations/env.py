"""What Alembic runs: the migrations, on the connection and inside the transaction of the caller."""

from alembic import context
from featurestore_registry.sql.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
