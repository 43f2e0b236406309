"""The SQLite registry: opening, migrations, transactions, and that no driver error leaks."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import pytest
import sqlalchemy
from alembic import command
from alembic.script import ScriptDirectory
from featurestore_registry.errors import (
    LedgerConflictError,
    RegistryError,
    RegistryFormatError,
    RegistryUnavailableError,
    RevisionConflictError,
)
from featurestore_registry.records import Change, Record
from featurestore_registry.sql import open_registry, tables
from featurestore_registry.sql.schema import alembic_config
from featurestore_registry.sql.sqlite import SqliteDatabase
from featurestore_registry.testing.definitions import hash_at
from support.disks import small_files
from support.released_registry import RELEASED, check_upgraded


def put(name, document, project="p"):
    return Change("put", "view", name, Record("view", project, name, document, "f"))


def apply(registry, expected, *changes):
    on = hash_at(registry.definitions, "p", expected)
    return registry.definitions.apply("p", on, changes, author="ada", message="why", commit="c0ffee").number


@pytest.fixture
def path(tmp_path):
    return tmp_path / "registry.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


@pytest.fixture
def filled(url):
    with open_registry(url) as registry:
        apply(registry, 0, put("a", {"v": 1}))
        registry.ledger.append("p", "run", "k", {"n": 1})
    return url


@contextmanager
def raw(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


@contextmanager
def on_connect(change):
    """Change every new driver connection of this thread's test, in the way that real trouble would."""
    sqlalchemy.event.listen(sqlalchemy.pool.Pool, "connect", change)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.pool.Pool, "connect", change)


def python(code, *arguments):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# Opening


def test_missing_folders_are_created(tmp_path):
    path = tmp_path / "a" / "b" / "registry.db"
    with open_registry(f"sqlite:///{path}") as registry:
        assert apply(registry, 0, put("a", {})) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["registry.db"]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_its_owner_alone_may_read_it_and_its_journal_whatever_the_umask(path, url, umask):
    before = os.umask(umask)
    try:
        with open_registry(url) as registry:
            registry.ledger.append("p", "kind", "key", {})
        database = SqliteDatabase(path, busy_timeout_ms=1_000)
        with database.writing("p") as connection:
            connection.exec_driver_sql("CREATE TABLE more (x)")
            modes = {found.name: found.stat().st_mode & 0o777 for found in path.parent.iterdir()}
        database.close()
    finally:
        os.umask(before)
    assert modes == {path.name: 0o600, f"{path.name}-journal": 0o600}


def test_reading_what_was_never_written_makes_nothing(tmp_path, path, url):
    with open_registry(url) as registry, open_registry(url) as other:
        for each in (registry, other):
            assert each.definitions.head("p") == 0
            assert each.definitions.projects() == []
            assert each.definitions.read("p").records == ()
            assert each.ledger.scan("p", "run") == []
        assert list(tmp_path.iterdir()) == []

        assert apply(registry, 0, put("a", {"v": 1})) == 1
        assert [record.name for record in other.definitions.read("p").records] == ["a"]
        with pytest.raises(RevisionConflictError):
            apply(other, 0, put("b", {}))
        assert apply(other, 1, put("b", {})) == 2

        path.unlink()
        for each in (registry, other):
            with pytest.raises(RegistryUnavailableError):
                each.definitions.head("p")


def test_many_threads_may_be_the_first_to_write(url):
    with open_registry(url) as registry:
        start = threading.Barrier(8)

        def write(number):
            start.wait()
            registry.ledger.append("p", "run", f"k{number}", {})

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(registry.ledger.scan("p", "run")) == 8


def test_a_first_write_that_fails_can_be_tried_again(tmp_path, url):
    with open_registry(url) as registry:
        change = on_connect(lambda connection, _: connection.execute("PRAGMA query_only = on"))
        with change, pytest.raises(RegistryError):
            apply(registry, 0, put("a", {}))
        assert apply(registry, 0, put("a", {})) == 1


@pytest.mark.parametrize(
    "name", ["a b.db", "a%20b.db", "a?mode=memory.db", "a#b.db", "ünï 🛫.db", "a;b&c.db", "'\".db"]
)
def test_the_path_is_taken_as_it_is_written(tmp_path, name):
    folder = tmp_path / f"in {name}"
    with open_registry(f"sqlite:///{folder / name}") as registry:
        apply(registry, 0, put("a", {}))
    assert [entry.name for entry in folder.iterdir()] == [name]
    with open_registry(f"sqlite:///{folder / name}", create=False) as registry:
        assert registry.definitions.head("p") == 1


def test_without_create_nothing_is_made(tmp_path):
    with pytest.raises(RegistryUnavailableError, match="There is no registry") as raised:
        open_registry(f"sqlite:///{tmp_path / 'folder' / 'registry.db'}", create=False)
    assert "fs apply" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_without_create_an_empty_file_is_no_registry(path, url):
    path.touch()
    with pytest.raises(RegistryUnavailableError, match="There is no registry"):
        open_registry(url, create=False)
    assert path.read_bytes() == b""
    open_registry(url).close()
    open_registry(url, create=False).close()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:hunter2@host/db",
        "https://user:hunter2@host",
        "/hunter2.db",
        "",
    ],
)
def test_other_urls_are_refused_without_showing_them(url):
    with pytest.raises(RegistryUnavailableError, match="can be opened here") as raised:
        open_registry(url)
    assert "hunter2" not in str(raised.value)
    assert "sqlite:////" in raised.value.hint


@pytest.mark.parametrize("path", ["", "/", "/relative/registry.db", "/./registry.db", "/:memory:", "/~/registry.db"])
def test_a_path_that_is_not_absolute_is_refused(path):
    with pytest.raises(RegistryUnavailableError, match="is not absolute") as raised:
        open_registry(f"sqlite://{path}")
    assert "sqlite:////" in raised.value.hint


def test_a_registry_that_another_version_takes_over_meanwhile_is_refused_by_the_next_use(tmp_path, path, url):
    """Upgraded, replaced or restored while it is open here: no transaction works on a schema it was not made for."""
    with open_registry(url) as registry:
        assert apply(registry, 0, put("a", {})) == 1
        shutil.copy(path, tmp_path / "backup.db")
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE registry_version SET version_num = 'r9999_future'")
        for use in (lambda: registry.definitions.head("p"), lambda: registry.ledger.append("p", "run", "k", {})):
            with pytest.raises(RegistryFormatError, match="newer version"):
                use()
        shutil.copy(tmp_path / "backup.db", path)
        assert registry.definitions.head("p") == 1
        path.write_bytes(b"")
        with pytest.raises(RegistryFormatError, match="is not a registry, or it is damaged"):
            registry.ledger.append("p", "run", "k", {})


def test_the_clock_is_the_one_that_was_given(url):
    now = 1_383_456_789_123_456
    with open_registry(url, clock=lambda: now) as registry:
        apply(registry, 0, put("a", {}))
        registry.ledger.append("p", "run", "k", {})
        expected = datetime(2013, 11, 3, 5, 33, 9, 123456, tzinfo=UTC)
        assert registry.definitions.history("p")[0].applied_at == expected
        assert registry.ledger.latest("p", "run", "k").written_at == expected


def test_without_a_clock_the_machine_tells_the_time(url):
    with open_registry(url) as registry:
        registry.ledger.append("p", "run", "k", {})
        age = datetime.now(UTC) - registry.ledger.latest("p", "run", "k").written_at
    assert 0 <= age.total_seconds() < 60


def test_a_current_registry_and_a_new_one_open_without_alembic(filled):
    code = """
import sys
from featurestore_registry.sql import open_registry
with open_registry(sys.argv[1], create=False) as registry:
    assert registry.definitions.head("p") == 1
with open_registry(sys.argv[1] + ".new") as registry:
    registry.ledger.append("p", "run", "k", {})
assert "sqlalchemy" in sys.modules
print([name for name in sys.modules if name.startswith("alembic")])
"""
    assert python(code, filled) == "[]\n"


# Migrations


def test_migrations_leave_logging_alone(url):
    mine = logging.getLogger("somebody.elses")
    before = logging.root.level, list(logging.root.handlers), mine.disabled, mine.level
    theirs = logging.getLogger("alembic")
    known, level = list(theirs.handlers), theirs.level  # MLflow, where a test has loaded it, sets both
    open_registry(url).close()
    assert (logging.root.level, list(logging.root.handlers), mine.disabled, mine.level) == before
    added = [handler for handler in theirs.handlers if handler not in known]
    assert {type(handler) for handler in added} <= {logging.NullHandler}
    assert theirs.level == level


@pytest.fixture
def scripts():
    return ScriptDirectory.from_config(alembic_config(None))


def test_the_stamp_is_the_newest_migration(scripts):
    assert scripts.get_heads() == [tables.SCHEMA_VERSION]


def test_a_new_registry_is_what_the_migrations_make(url, path):
    with open_registry(url) as registry:
        registry.ledger.append("p", "run", "k", {})
    with sqlite3.connect(path) as made:
        schema = made.execute("SELECT * FROM sqlite_master").fetchall()
        stamps = made.execute(f"SELECT * FROM {tables.VERSION_TABLE}").fetchall()
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "head")
        migrated = connection.exec_driver_sql("SELECT * FROM sqlite_master").all()
        assert connection.exec_driver_sql(f"SELECT * FROM {tables.VERSION_TABLE}").all() == stamps
    engine.dispose()
    without_page = [[(kind, name, table, sql) for kind, name, table, _, sql in each] for each in (schema, migrated)]
    assert sorted(without_page[0], key=str) == sorted(without_page[1], key=str)
    assert len(schema) > 10


def test_every_released_schema_has_a_fixture(scripts):
    assert {script.revision for script in scripts.walk_revisions()} == set(RELEASED)


@pytest.mark.parametrize("released", RELEASED)
def test_a_registry_of_a_released_schema_is_upgraded(path, url, released):
    engine = sqlalchemy.create_engine("sqlite://", creator=lambda: sqlite3.connect(path))
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), released)
        RELEASED[released](connection)
    engine.dispose()
    with open_registry(url, create=False) as registry:
        assert registry.journal.exists() is (released != "0001")
        check_upgraded(registry)
        assert registry.journal.exists()


def test_a_newer_schema_is_refused_by_name(filled, path):
    with raw(path) as connection:
        connection.execute("UPDATE registry_version SET version_num = '9999'")
    before = path.read_bytes()
    for create in (True, False):
        with pytest.raises(RegistryFormatError, match="'9999' of a newer version") as raised:
            open_registry(filled, create=create)
        assert "pip install --upgrade ." in raised.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES (1)"],
        ["CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('0001')"],
        ["CREATE TABLE registry_version (version_num TEXT)"],
    ],
)
def test_another_programs_database_is_left_alone(path, url, statements):
    with raw(path) as connection:
        for statement in statements:
            connection.execute(statement)
    before = path.read_bytes()
    for create in (True, False):
        with pytest.raises(RegistryFormatError, match="another program"):
            open_registry(url, create=create)
    assert path.read_bytes() == before


# Transactions


def test_writes_begin_immediate_and_are_synced(filled):
    seen = []

    def trace(connection, _):
        seen.append(("connect", connection.execute("PRAGMA synchronous").fetchone()[0]))
        seen.append(("journal", connection.execute("PRAGMA journal_mode").fetchone()[0]))
        seen.append(("timeout", connection.execute("PRAGMA busy_timeout").fetchone()[0]))
        connection.set_trace_callback(lambda statement: seen.append(statement.split("\n")[0]))

    with open_registry(filled) as registry, on_connect(trace):
        head, changes = registry.definitions.chain("p").head, [put("b", {}), Change("delete", "view", "a")]
        for write in (
            lambda: registry.definitions.apply("p", head, changes, author="", message="", commit=""),
            lambda: registry.ledger.append("p", "run", "k", {}),
        ):
            seen.clear()
            write()
            assert seen[:4] == [("connect", 3), ("journal", "delete"), ("timeout", 30_000), "BEGIN IMMEDIATE"]
            assert seen[-1] == "COMMIT"
            assert sum(str(statement).startswith(("BEGIN", "COMMIT")) for statement in seen) == 2


def test_a_writer_waits_for_another(filled, path):
    with open_registry(filled) as registry, raw(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        done = []
        threads = [
            threading.Thread(target=lambda: done.append(apply(registry, 1, put("b", {})))),
            threading.Thread(target=lambda: done.append(registry.ledger.append("p", "run", "k", {}))),
            threading.Thread(target=lambda: done.append(len(registry.definitions.read("p").records))),
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert done == []
        other.execute("ROLLBACK")
        for thread in threads:
            thread.join(20)
        assert len(done) == 3


def test_a_reader_does_not_wait_for_a_writer_at_work(filled, path):
    with open_registry(filled, busy_timeout_ms=0) as registry, raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM registry_record")
        assert len(registry.definitions.read("p").records) == 1


def test_write_ahead_mode_is_left(filled, path):
    with raw(path) as connection:
        assert connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    with open_registry(filled) as registry:
        assert registry.definitions.head("p") == 1
    with raw(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_registry_crosses_a_fork(filled):
    code = """
import os, sys
from featurestore_registry.records import Change, Record
from featurestore_registry.sql import open_registry
with open_registry(sys.argv[1]) as registry:
    assert registry.definitions.head("p") == 1
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            for _ in range(5):
                registry.ledger.append("p", "forked", "k", {"n": number})
            os._exit(0)
        children.append(child)
    for _ in range(5):
        registry.ledger.append("p", "forked", "k", {"n": "parent"})
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    print(registry.ledger.latest("p", "forked", "k").version)
"""
    assert python(code, filled) == "25\n"


# Errors

METHODS = {
    "head": lambda registry: registry.definitions.head("p"),
    "read": lambda registry: registry.definitions.read("p"),
    "history": lambda registry: registry.definitions.history("p"),
    "projects": lambda registry: registry.definitions.projects(),
    "apply": lambda registry: apply(registry, 1, put("b", {})),
    "append": lambda registry: registry.ledger.append("p", "run", "k", {}),
    "latest": lambda registry: registry.ledger.latest("p", "run", "k"),
    "scan": lambda registry: registry.ledger.scan("p", "run"),
}
WRITES = ("apply", "append")


def delete_file(path):
    path.unlink()


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_text(path):
    path.write_text("this is not a database, it is a text that somebody put there\n" * 100)


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 - 7)


def overwrite_pages(path):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(200)
        file.write(random.Random(3).randbytes(size - 200))


def drop_tables(path):
    with raw(path) as connection:
        for table in tables.metadata.tables:
            connection.execute(f"DROP TABLE {table}")


def zero(path):
    path.write_bytes(b"")


FAULTS = {
    delete_file: RegistryUnavailableError,
    replace_by_folder: RegistryUnavailableError,
    replace_by_text: RegistryFormatError,
    truncate: RegistryFormatError,
    overwrite_pages: RegistryFormatError,
    drop_tables: RegistryFormatError,
    zero: RegistryFormatError,
}


@pytest.mark.uncounted
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_no_driver_error_leaks(filled, path, fault, method):
    with open_registry(filled) as registry:
        fault(path)
        with pytest.raises(RegistryError) as raised:
            METHODS[method](registry)
    assert type(raised.value) is FAULTS[fault]
    assert str(path) in raised.value.message
    assert raised.value.hint
    assert (fault is delete_file) == (not path.exists())


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("fault", [replace_by_folder, replace_by_text, truncate, overwrite_pages])
def test_opening_what_is_no_registry(filled, path, fault, create):
    fault(path)
    with pytest.raises(FAULTS[fault], match=str(path)):
        open_registry(filled, create=create)


@pytest.mark.parametrize("create", [True, False])
def test_a_file_where_a_folder_should_be(tmp_path, create):
    (tmp_path / "file").touch()
    with pytest.raises(RegistryUnavailableError, match=r"cannot be opened: (Not a directory|File exists)"):
        open_registry(f"sqlite:///{tmp_path / 'file' / 'registry.db'}", create=create)


@pytest.mark.parametrize("create", [True, False])
def test_a_folder_without_permission(filled, path, tmp_path_factory, create):
    loaded = f"sqlite:///{tmp_path_factory.mktemp('loaded') / 'registry.db'}"
    code = """
import os, sys
from featurestore_registry.errors import RegistryUnavailableError
from featurestore_registry.sql import open_registry
open_registry(sys.argv[3]).close()  # loads all that it takes, while that can be read
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    open_registry(sys.argv[1], create=sys.argv[2] == "True")
except RegistryUnavailableError as error:
    print(error.message)
"""
    path.parent.chmod(0o000)
    try:
        assert "Permission denied" in python(code, filled, str(create), loaded)
    finally:
        path.parent.chmod(0o700)


@pytest.mark.parametrize("method", METHODS)
def test_a_lock_that_is_never_released(filled, path, method):
    with open_registry(filled, busy_timeout_ms=30) as registry, raw(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RegistryUnavailableError, match="locked") as raised:
            METHODS[method](registry)
        assert "wait for it" in raised.value.hint
        with pytest.raises(RegistryUnavailableError, match="locked"):
            open_registry(filled, busy_timeout_ms=30)


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize(
    ("pragma", "said", "hint"),
    [
        ("max_page_count = 1", "full", "free some space"),
        ("query_only = ON", "readonly", "permissions"),
    ],
)
def test_a_write_that_cannot_be_done_changes_nothing(filled, pragma, said, hint, method):
    document = {"big": "x" * 200_000}
    with open_registry(filled) as registry:
        writes = {
            "apply": lambda: apply(registry, 1, put("b", document)),
            "append": lambda: registry.ledger.append("p", "run", "k", document),
        }
        with on_connect(lambda connection, _: connection.execute(f"PRAGMA {pragma}").fetchall()):
            with pytest.raises(RegistryUnavailableError, match=said) as raised:
                writes[method]()
            assert hint in raised.value.hint
        assert registry.definitions.head("p") == 1
        assert [record.name for record in registry.definitions.read("p").records] == ["a"]
        assert registry.ledger.latest("p", "run", "k").version == 1
        assert writes[method]() == 2


def test_a_registry_that_comes_back_is_used_again(filled, path):
    away = path.with_suffix(".away")
    with open_registry(filled) as registry:
        shutil.move(path, away)
        for method in METHODS.values():
            with pytest.raises(RegistryUnavailableError, match="There is no registry at"):
                method(registry)
        assert not path.exists()
        shutil.move(away, path)
        assert apply(registry, 1, put("b", {})) == 2


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE registry_record SET document = '{\"v\":'",
        "UPDATE registry_record SET fields = 'x'",
        "UPDATE registry_record SET document = CAST(x'22ff22' AS TEXT)",
    ],
)
@pytest.mark.parametrize("method", ["read", "history"])
def test_a_damaged_document_is_told(filled, path, damage, method):
    with raw(path) as connection:
        connection.execute(damage)
    with open_registry(filled) as registry, pytest.raises(RegistryFormatError, match="damaged"):
        METHODS[method](registry)


def test_a_text_that_is_not_unicode_is_a_value_error(filled):
    with open_registry(filled) as registry:
        for write in (
            lambda: apply(registry, 1, put("b", {"v": "\ud800"})),
            lambda: apply(registry, 1, put("\udfff", {})),
            lambda: registry.ledger.append("p", "run", "k", {"\ud800": 1}),
        ):
            with pytest.raises(ValueError, match=r"U\+0000 or half a surrogate"):
                write()
        assert registry.definitions.head("p") == 1


def test_a_conflict_says_what_it_met_and_what_to_do(filled):
    with open_registry(filled) as registry:
        with pytest.raises(RevisionConflictError, match="'p' is at revision 1, not at 0") as raised:
            apply(registry, 0, put("b", {}))
        assert raised.value.hint == "Plan again and apply what it shows."
        assert raised.value.details == {"project": "p", "head": 1, "expected": ""}
        with pytest.raises(LedgerConflictError, match="run 'k' of project 'p' is at version 1, not at 3"):
            registry.ledger.append("p", "run", "k", {}, if_version=3)


def test_a_write_that_the_system_refuses_says_what_to_look_at(url, path):
    with closing(open_registry(url)) as registry:
        apply(registry, 0, put("a", {"x": 1}))
        with small_files(path.stat().st_size), pytest.raises(RegistryUnavailableError) as caught:
            apply(registry, 1, put("b", {"x": "y" * 200_000}))
        assert "`ulimit -f`" in caught.value.hint
        apply(registry, 1, put("b", {"x": "y" * 200_000}))
