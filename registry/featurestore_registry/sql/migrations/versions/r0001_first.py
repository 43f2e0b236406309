"""The first schema: projects, revisions, records, and the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create every table in an empty database."""
    op.create_table(
        "registry_project",
        sa.Column("project", TEXT, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "registry_revision",
        sa.Column("project", TEXT, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True),
        sa.Column("applied_at_us", sa.BigInteger, nullable=False),
        sa.Column("author", TEXT, nullable=False),
        sa.Column("message", TEXT, nullable=False),
        sa.Column("source_commit", TEXT, nullable=False),
    )
    op.create_table(
        "registry_change",
        sa.Column("project", TEXT, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("action", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
    )
    op.create_table(
        "registry_record",
        sa.Column("project", TEXT, primary_key=True),
        sa.Column("kind", TEXT, primary_key=True),
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("valid_from", sa.BigInteger, primary_key=True),
        sa.Column("valid_to", sa.BigInteger, nullable=False),
        sa.Column("fingerprint", TEXT, nullable=False),
        sa.Column("owner", TEXT, nullable=False),
        sa.Column("description", TEXT, nullable=False),
        sa.Column("tags", TEXT, nullable=False),
        sa.Column("depends_on", TEXT, nullable=False),
        sa.Column("fields", TEXT, nullable=False),
        sa.Column("document", TEXT, nullable=False),
    )
    op.create_index("registry_record_validity", "registry_record", ["project", "valid_to", "valid_from"])
    op.create_table(
        "registry_ledger_key",
        sa.Column("project", TEXT, primary_key=True),
        sa.Column("kind", TEXT, primary_key=True),
        sa.Column("key", TEXT, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "registry_ledger",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("project", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("written_at_us", sa.BigInteger, nullable=False),
        sa.Column("document", TEXT, nullable=False),
        sa.UniqueConstraint("project", "kind", "key", "version", name="registry_ledger_version"),
    )
