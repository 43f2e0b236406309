"""Registries as each released schema kept them, and what an upgraded one must still hold."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, Record, RecordField
from sqlalchemy import Connection


def released_0001(connection: Connection) -> None:
    """What a registry of the first schema holds, written without any of today's code."""
    statements = [
        "INSERT INTO registry_project VALUES ('p', 2)",
        "INSERT INTO registry_revision VALUES ('p', 1, 1383456789123456, 'ada', 'first', '')",
        "INSERT INTO registry_revision VALUES ('p', 2, 1383456789123457, 'bob', 'second', 'c0ffee')",
        "INSERT INTO registry_change VALUES ('p', 1, 0, 'put', 'view', 'a')",
        "INSERT INTO registry_change VALUES ('p', 2, 0, 'put', 'view', 'b')",
        "INSERT INTO registry_change VALUES ('p', 2, 1, 'delete', 'view', 'a')",
        "INSERT INTO registry_record VALUES ('p', 'view', 'a', 1, 2, 'fa', 'o', 'd', '{\"t\":\"1\"}', "
        '\'["entity:c"]\', \'[{"name":"n","type":"Int64","description":"x","tags":{"u":"2"},'
        '"inputs":["s.c"]}]\', \'{"v":1}\')',
        "INSERT INTO registry_record VALUES ('p', 'view', 'b', 2, 9223372036854775807, 'fb', '', '', '{}', "
        "'[]', '[]', '{\"v\":2}')",
        "INSERT INTO registry_ledger_key VALUES ('p', 'run', 'k', 7)",
        "INSERT INTO registry_ledger VALUES (31, 'p', 'run', 'k', 6, 1383456789123456, '{\"n\":6}')",
        "INSERT INTO registry_ledger VALUES (32, 'p', 'run', 'k', 7, 1383456789123457, '{\"n\":7}')",
    ]
    for statement in statements:
        connection.exec_driver_sql(statement)


def released_0002(connection: Connection) -> None:
    """And of the second, which has a journal."""
    released_0001(connection)
    connection.exec_driver_sql("INSERT INTO registry_journal VALUES (41, 'p', 'commit', 'v', 1383456789123456, '{}')")


RELEASED: dict[str, Callable[[Connection], None]] = {"0001": released_0001, "0002": released_0002}


def check_upgraded(registry: Registry) -> None:
    """Check that all of `released_0001` is there, and that writing goes on from it."""
    field = RecordField("n", "Int64", "x", {"u": "2"}, ("s.c",))
    a = Record("view", "p", "a", {"v": 1}, "fa", (field,), ("entity:c",), "o", {"t": "1"}, "d")
    b = Record("view", "p", "b", {"v": 2}, "fb")
    definitions = registry.definitions
    assert definitions.projects() == ["p"]
    assert [definitions.read("p", n).records for n in range(3)] == [(), (a,), (b,)]
    second, first = definitions.history("p")
    assert (first.author, first.message, first.commit) == ("ada", "first", "")
    assert first.applied_at == datetime(2013, 11, 3, 5, 33, 9, 123456, tzinfo=UTC)
    assert second.changes == (Change("put", "view", "b", b), Change("delete", "view", "a"))
    entries = registry.ledger.scan("p", "run", key="k")
    assert [(entry.version, entry.document) for entry in entries] == [(7, {"n": 7}), (6, {"n": 6})]
    assert registry.ledger.scan("p", "run") == entries[:1]
    gone, head = Change("delete", "view", "b"), definitions.chain("p").head
    assert definitions.apply("p", head, [gone], author="", message="", commit="").number == 3
    assert registry.ledger.append("p", "run", "k", {}, if_version=7) == 8
    (cursor,) = registry.journal.append("p", "commit", [("v", {"n": 1})])
    assert registry.journal.newest("p", "commit")[0].cursor == cursor
