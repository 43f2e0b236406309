"""The registry in PostgreSQL: what it makes and refuses, and a server that hangs, dies or is not there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from featurestore_registry.errors import RegistryError, RegistryFormatError, RegistryUnavailableError
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, Record
from featurestore_registry.sql import open_registry, postgres, tables, upgrade_registry
from featurestore_registry.sql.impatient import ImpatientConnection
from featurestore_registry.sql.schema import alembic_config
from support.postgres_server import PostgresServer
from support.released_registry import RELEASED, check_upgraded
from support.serving import until

pytestmark = pytest.mark.uncounted


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server to break, which keeps what it acknowledged."""
    with PostgresServer("-c", "fsync=on") as server:
        yield server


def put(name: str, value: object = 0) -> Change:
    return Change("put", "view", name, Record("view", "p", name, {"value": value}, "f"))


def apply(registry: Registry, *changes: Change) -> int:
    head = registry.definitions.chain("p").head
    return registry.definitions.apply("p", head, changes, author="ada", message="", commit="").number


def tables_at(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {
            str(name)
            for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema")
        }


def test_reading_what_was_never_written_makes_nothing(postgres_url: str) -> None:
    with open_registry(postgres_url) as registry, open_registry(postgres_url) as other:
        for each in (registry, other):
            assert each.definitions.head("p") == 0
            assert each.ledger.scan("p", "run") == []
        with pytest.raises(RegistryUnavailableError, match=r"There is no registry at postgresql://127.0.0.1:"):
            open_registry(postgres_url, create=False)
        assert tables_at(postgres_url) == set()
        apply(registry, put("a"))
        assert other.definitions.head("p") == 1
    with open_registry(postgres_url, create=False) as registry:
        assert registry.definitions.head("p") == 1


def test_a_database_of_another_program_is_refused(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE orders (n int)")
    with open_registry(postgres_url) as registry, pytest.raises(RegistryFormatError, match="of another program"):
        apply(registry, put("a"))
    assert tables_at(postgres_url) == {"orders"}


def test_a_newer_schema_is_refused_by_who_has_it_open_too(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "CHECK_SECONDS", 0.0)
    with open_registry(postgres_url) as registry:
        apply(registry, put("a"))
        with psycopg.connect(postgres_url) as connection:
            connection.execute(f"UPDATE {tables.VERSION_TABLE} SET version_num = '9999'".encode())
        for use in (lambda: registry.definitions.head("p"), lambda: apply(registry, put("b"))):
            with pytest.raises(RegistryFormatError, match="'9999' of a newer version"):
                use()
    with pytest.raises(RegistryFormatError, match="'9999' of a newer version"):
        upgrade_registry(postgres_url)


@pytest.mark.parametrize("released", RELEASED)
def test_a_registry_of_a_released_schema_is_upgraded_by_the_command(postgres_url: str, released: str) -> None:
    engine = sqlalchemy.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), released)
        RELEASED[released](connection)
        for table in ("ledger", "journal")[: int(released)]:
            name = f"registry_{table}"
            newest = f"(SELECT max(sequence) FROM {name})"
            connection.exec_driver_sql(f"SELECT setval(pg_get_serial_sequence('{name}', 'sequence'), {newest})")
    engine.dispose()
    if released != tables.SCHEMA_VERSION:
        for create in (True, False):
            told = f"has the schema '{released}'; this version needs '{tables.SCHEMA_VERSION}'"
            with (
                pytest.raises(RegistryFormatError, match=told) as raised,
                open_registry(postgres_url, create=create) as registry,
            ):
                registry.definitions.head("p")
            assert "fs registry upgrade" in raised.value.hint
    assert upgrade_registry(postgres_url) == (released, tables.SCHEMA_VERSION)
    with open_registry(postgres_url, create=False) as registry:
        check_upgraded(registry)
    assert upgrade_registry(postgres_url) == (tables.SCHEMA_VERSION, tables.SCHEMA_VERSION)


@pytest.mark.parametrize("is_migrated", [False, True])
def test_the_tables_are_what_the_migrations_make(postgres_url: str, is_migrated: bool) -> None:
    engine = sqlalchemy.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    if is_migrated:
        with engine.begin() as connection:
            command.upgrade(alembic_config(connection), "head")
    assert upgrade_registry(postgres_url) == (tables.SCHEMA_VERSION if is_migrated else None, tables.SCHEMA_VERSION)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": tables.VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, tables.metadata) == []
        collations = connection.exec_driver_sql(
            "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_schema = current_schema AND "
            "data_type = 'text'"
        ).scalars()
        assert set(collations) == {"C"}
    engine.dispose()


def test_what_is_written_never_meets_a_schema_that_was_changed_a_moment_ago(postgres_url: str) -> None:
    with open_registry(postgres_url) as registry:
        apply(registry, put("a"))
        assert registry.definitions.head("p") == 1  # and the schema was right just now
        with psycopg.connect(postgres_url) as connection:
            connection.execute(f"UPDATE {tables.VERSION_TABLE} SET version_num = '9999'".encode())
        with pytest.raises(RegistryFormatError, match="'9999' of a newer version"):
            registry.ledger.append("p", "run", "k", {})


@pytest.mark.parametrize(
    ("change", "told", "hint"),
    [
        (("fs@127.0.0.1", "fs:hunter2@127.0.0.1:1"), "onnection refused", "Check that the server runs"),
        (("/postgres", "/nowhere"), 'database "nowhere" does not exist', "createdb"),
        (("fs@", "nobody:hunter2@"), 'role "nobody" does not exist', "user and password"),
        (("/postgres", "x/hunter2"), "URL cannot be read", "postgresql://USER:PASSWORD@HOST"),
    ],
)
def test_urls_that_lead_nowhere(postgres_server: PostgresServer, change: tuple[str, str], told: str, hint: str) -> None:
    url = postgres_server.url().replace(*change)
    if "@127.0.0.1:1" in url:
        url = url.replace(f":{postgres_server.port}", "")
    with pytest.raises(RegistryError) as raised, open_registry(url, create=False):
        pass
    assert told in raised.value.message
    assert hint in raised.value.hint
    assert "hunter2" not in repr(raised.value.__dict__)


def test_times_are_the_databases(postgres_url: str) -> None:
    with open_registry(postgres_url) as registry:
        registry.ledger.append("p", "run", "k", {})
        entry = registry.ledger.latest("p", "run", "k")
    assert entry is not None
    assert abs((datetime.now(UTC) - entry.written_at).total_seconds()) < 30
    with open_registry(postgres_url, clock=lambda: 5) as registry:
        registry.ledger.append("p", "run", "k", {})
        entry = registry.ledger.latest("p", "run", "k")
    assert entry is not None
    assert entry.written_at == datetime(1970, 1, 1, 0, 0, 0, 5, tzinfo=UTC)


def test_writers_of_one_project_wait_for_each_other_alone(postgres_url: str) -> None:
    """And who changes the schema for all of them."""
    with open_registry(postgres_url, busy_timeout_ms=200) as registry, open_registry(postgres_url) as other:
        registry.ledger.append("p", "run", "k", {})
        database = other._database
        with database.writing("p"):
            registry.ledger.append("q", "run", "k", {})
            with pytest.raises(RegistryUnavailableError, match="lock timeout") as raised:
                registry.ledger.append("p", "run", "k", {})
            assert "Another writer holds its lock" in raised.value.hint
        with database.migrating(), pytest.raises(RegistryUnavailableError, match="lock timeout"):
            registry.ledger.append("q", "run", "k", {})
        registry.ledger.append("p", "run", "k", {})


def test_a_child_has_connections_of_its_own(postgres_url: str) -> None:
    with open_registry(postgres_url) as registry:
        apply(registry, put("a"))
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if apply(registry, put("b")) == 2 else 2
                registry.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert apply(registry, put("c")) == 3


def test_a_server_that_hangs_is_not_waited_for_long(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientConnection, "answer_seconds", 0.3)
    monkeypatch.setattr(postgres, "CONNECT_SECONDS", 2)
    with open_registry(server.url()) as registry:
        apply(registry, put("a"))
        time.sleep(1.1)  # the schema is looked at again
        server.hang()
        try:
            begin_s = time.monotonic()
            with pytest.raises(RegistryUnavailableError, match=r"timeout expired|no answer within"):
                registry.definitions.head("p")
            assert time.monotonic() - begin_s < 5
        finally:
            server.resume()
        until(lambda: registry.definitions.head("p") == 1)


def test_a_server_that_dies_under_load_loses_nothing_that_was_acknowledged(server: PostgresServer) -> None:
    done, acknowledged = threading.Event(), list[str]()

    def write(number: int) -> None:
        with open_registry(server.url()) as registry:
            for turn in range(10_000):
                if done.is_set():
                    return
                key = f"{number}-{turn}"
                try:
                    registry.ledger.append("p", "run", key, {})
                except RegistryUnavailableError:
                    time.sleep(0.05)
                else:
                    acknowledged.append(key)

    with closing(open_registry(server.url())) as registry:
        apply(registry, put("a"))
        with ThreadPoolExecutor(4) as threads:
            writing = [threads.submit(write, number) for number in range(4)]
            try:
                for _ in range(2):
                    before = len(acknowledged)
                    until(lambda: len(acknowledged) > before + 20)  # noqa: B023 - called within this turn
                    server.kill()
                    server.start()
                before = len(acknowledged)
                until(lambda: len(acknowledged) > before + 20)
            finally:
                done.set()
            for each in writing:
                each.result()
        assert {*acknowledged} <= {entry.key for entry in registry.ledger.scan("p", "run")}
        assert registry.definitions.head("p") == 1
