"""The tables. A change here needs a migration; a test checks that the two agree.

Documents are canonical JSON text, so that every database returns exactly what was written.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text, UniqueConstraint

SCHEMA_VERSION = "0001"
"""The newest migration. A database stamped with it is opened without loading Alembic."""

VERSION_TABLE = "registry_version"
"""Not Alembic's default name, which another program in the same database may use."""

OPEN_END = 2**63 - 1
"""The ``valid_to`` of a record that no revision has replaced or deleted yet."""

metadata = MetaData()

project = Table(
    "registry_project",
    metadata,
    Column("project", Text, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

revision = Table(
    "registry_revision",
    metadata,
    Column("project", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("applied_at_us", BigInteger, nullable=False),
    Column("author", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("source_commit", Text, nullable=False),
)

change = Table(
    "registry_change",
    metadata,
    Column("project", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("action", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
)

record = Table(
    "registry_record",
    metadata,
    Column("project", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    # A version of a record is part of the revisions valid_from <= revision < valid_to.
    Column("valid_from", BigInteger, primary_key=True),
    Column("valid_to", BigInteger, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("depends_on", Text, nullable=False),
    Column("fields", Text, nullable=False),
    Column("document", Text, nullable=False),
    Index("registry_record_validity", "project", "valid_to", "valid_from"),
)

ledger_key = Table(
    "registry_ledger_key",
    metadata,
    Column("project", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
)

ledger = Table(
    "registry_ledger",
    metadata,
    # SQLite numbers only an INTEGER primary key by itself.
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("project", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("written_at_us", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    UniqueConstraint("project", "kind", "key", "version", name="registry_ledger_version"),
)
