"""Bring a database to the schema of this version, or refuse it. Alembic is loaded only to upgrade an older one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, select

from featurestore_registry.errors import UPGRADE_HINT, RegistryFormatError, RegistryUnavailableError
from featurestore_registry.sql.tables import EARLIER_VERSIONS, SCHEMA_VERSION, VERSION_TABLE, create_all, stamp

if TYPE_CHECKING:
    from alembic.config import Config

    from featurestore_registry.sql.database import Database

version_of_schema = select(stamp.c.version_num)


def ensure_schema(database: Database, *, create: bool, upgrade: bool | None = None) -> None:
    """Create the schema in a new database, upgrade an older one, leave a current one alone, or one that is as good.

    Safe with any number of processes at once: the work is one write transaction, which excludes the others
    and leaves nothing behind when it is cut off. Raises RegistryUnavailableError when there is no registry and
    ``create`` is False, RegistryFormatError when a newer version or another program wrote the database, or an older
    one that is not to ``upgrade``: by default as the database says.
    """
    version = schema_of(database)
    if version is None:
        if not create:
            raise missing(database)
        database.create()
    is_good = database.upgrades_itself and upgrade is None and version in EARLIER_VERSIONS
    if version != SCHEMA_VERSION and not is_good:
        may_upgrade = database.upgrades_itself if upgrade is None else upgrade
        with database.migrating() as connection:
            _upgrade(connection, database, may_upgrade=may_upgrade)
    database.settle()


def schema_of(database: Database) -> str | None:
    """Return the schema that a database has, None where there is none; raises as `ensure_schema`."""
    if not database.exists():
        return None
    with database.looking() as connection:
        return _schema_version(connection, database)


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for the shipped migrations, run on ``connection``."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "featurestore_registry.sql:migrations")
    return config


def _upgrade(connection: Connection, database: Database, *, may_upgrade: bool) -> None:
    # Read again under the lock: another process may have done the work meanwhile.
    version = _schema_version(connection, database)
    if version is None:
        create_all(connection)
    if version in (None, SCHEMA_VERSION):
        return
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version not in known:
        raise RegistryFormatError(
            f"The registry {database.name} has the schema {version!r} of a newer version; "
            f"this one knows schemas up to {SCHEMA_VERSION!r}.",
            hint=UPGRADE_HINT,
            **database.details,
            schema=version,
            known=sorted(known),
        )
    if not may_upgrade:
        raise RegistryFormatError(
            f"The registry {database.name} has the schema {version!r}; this version needs {SCHEMA_VERSION!r}.",
            hint="Run `fs registry upgrade` with this version; programs of older versions then stop using it.",
            **database.details,
            schema=version,
        )
    command.upgrade(config, "head")


def _schema_version(connection: Connection, database: Database) -> str | None:
    """Return the stamp of the newest migration that was run, None in an empty database."""
    # Read the names once: between two reads another process may have created all tables.
    names = inspect(connection).get_table_names()
    if not names:
        return None
    if VERSION_TABLE in names:
        version: str | None = connection.scalar(version_of_schema)
        if version is not None:
            return version
    raise RegistryFormatError(
        f"{database.name} is a database of another program: it has tables but no registry's schema version.",
        hint="Choose another place for the registry.",
        **database.details,
    )


def missing(database: Database) -> RegistryUnavailableError:
    """Return the error for a registry that is not there."""
    return RegistryUnavailableError(
        f"There is no registry at {database.name}.", hint="Run `fs apply` to create it.", **database.details
    )
