"""The journal, and how far a project's ledger is."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the journal, empty, and an index of the ledger."""
    op.create_table(
        "registry_journal",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("project", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("written_at_us", sa.BigInteger, nullable=False),
        sa.Column("document", TEXT, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("registry_journal_of_kind", "registry_journal", ["project", "kind", "sequence"])
    op.create_index("registry_journal_of_key", "registry_journal", ["project", "kind", "key", "sequence"])
    op.create_index("registry_ledger_of_project", "registry_ledger", ["project", "sequence"])
