"""${message}."""

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade from ${down_revision | comma,n}; SCHEMA_VERSION in tables.py becomes ${up_revision}."""
    ${upgrades if upgrades else "pass"}
