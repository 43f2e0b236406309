"""The tables. A change here needs a migration; a test checks that the two agree.

Documents are canonical JSON text, so that every database returns exactly what was written.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = "0002"
"""The newest migration. A new database is stamped with it, and one that is gets opened without loading Alembic."""

EARLIER_VERSIONS = frozenset({"0001"})
"""Schemas that this version works on as they are, without a journal: a file that earlier programs use, too, is upgraded
by the first entry of its journal, not by whoever looks at it."""

VERSION_TABLE = "registry_version"
"""Not Alembic's default name, which another program in the same database may use."""

OPEN_END = 2**63 - 1
"""The ``valid_to`` of a record that no revision has replaced or deleted yet."""

metadata = MetaData()

_Name = Text().with_variant(Text(collation="C"), "postgresql")
"""Texts are compared byte by byte in every database, whatever its locale."""

project = Table(
    "registry_project",
    metadata,
    Column("project", _Name, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

revision = Table(
    "registry_revision",
    metadata,
    Column("project", _Name, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("applied_at_us", BigInteger, nullable=False),
    Column("author", _Name, nullable=False),
    Column("message", _Name, nullable=False),
    Column("source_commit", _Name, nullable=False),
)

change = Table(
    "registry_change",
    metadata,
    Column("project", _Name, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("action", _Name, nullable=False),
    Column("kind", _Name, nullable=False),
    Column("name", _Name, nullable=False),
)

record = Table(
    "registry_record",
    metadata,
    Column("project", _Name, primary_key=True),
    Column("kind", _Name, primary_key=True),
    Column("name", _Name, primary_key=True),
    # A version of a record is part of the revisions valid_from <= revision < valid_to.
    Column("valid_from", BigInteger, primary_key=True),
    Column("valid_to", BigInteger, nullable=False),
    Column("fingerprint", _Name, nullable=False),
    Column("owner", _Name, nullable=False),
    Column("description", _Name, nullable=False),
    Column("tags", _Name, nullable=False),
    Column("depends_on", _Name, nullable=False),
    Column("fields", _Name, nullable=False),
    Column("document", _Name, nullable=False),
    Index("registry_record_validity", "project", "valid_to", "valid_from"),
)

ledger_key = Table(
    "registry_ledger_key",
    metadata,
    Column("project", _Name, primary_key=True),
    Column("kind", _Name, primary_key=True),
    Column("key", _Name, primary_key=True),
    Column("version", BigInteger, nullable=False),
)

ledger = Table(
    "registry_ledger",
    metadata,
    # SQLite numbers only an INTEGER primary key by itself.
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("project", _Name, nullable=False),
    Column("kind", _Name, nullable=False),
    Column("key", _Name, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("written_at_us", BigInteger, nullable=False),
    Column("document", _Name, nullable=False),
    UniqueConstraint("project", "kind", "key", "version", name="registry_ledger_version"),
    Index("registry_ledger_of_project", "project", "sequence"),
)

journal = Table(
    "registry_journal",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("project", _Name, nullable=False),
    Column("kind", _Name, nullable=False),
    Column("key", _Name, nullable=False),
    Column("written_at_us", BigInteger, nullable=False),
    Column("document", _Name, nullable=False),
    Index("registry_journal_of_kind", "project", "kind", "sequence"),
    Index("registry_journal_of_key", "project", "kind", "key", "sequence"),
    sqlite_autoincrement=True,  # a cursor is never given twice, whatever was forgotten
)

stamp = Table(
    VERSION_TABLE,
    MetaData(),  # Alembic's own
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)


def create_all(connection: Connection) -> None:
    """Make the tables and the stamp in an empty database, as all migrations would."""
    metadata.create_all(connection, checkfirst=False)
    stamp.create(connection)
    connection.execute(stamp.insert().values(version_num=SCHEMA_VERSION))
