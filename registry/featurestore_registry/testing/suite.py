"""The conformance suite of a registry: definitions, ledger and journal together."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, Record
from featurestore_registry.testing.definitions import DefinitionsConformance, put
from featurestore_registry.testing.journal import JournalConformance
from featurestore_registry.testing.ledger import LedgerConformance
from featurestore_registry.testing.support import Reopen


class RegistryConformance(DefinitionsConformance, LedgerConformance, JournalConformance):
    """What `Definitions`, `Ledger`, `Journal` and `Registry` promise, sentence by sentence.

    Derive a ``Test…`` class from it and override the fixture ``reopen``::

        class TestMyRegistry(RegistryConformance):
            @pytest.fixture
            def reopen(self, tmp_path):
                return lambda: open_my_registry(tmp_path)

    ``reopen()`` returns another connection to one and the same registry, empty when the test begins. The
    fixture ``registry`` is its first connection; override it as well where that one is made otherwise.
    """

    def test_closing_twice_is_allowed_and_leaves_other_connections_alone(self, reopen: Reopen) -> None:
        first, second = reopen(), reopen()
        first.close()
        first.close()
        with second as entered:
            assert entered is second
            assert entered.definitions.head("p") == 0

    def test_what_was_written_is_there_after_reopening(self, registry: Registry, reopen: Reopen) -> None:
        registry.definitions.apply("p", "", [put("p", "a")], author="a", message="m", commit="c")
        registry.ledger.append("p", "run", "k", {"n": 1})
        before = registry.definitions.read("p"), registry.definitions.history("p"), registry.ledger.scan("p", "run")
        registry.close()
        with reopen() as again:
            assert again.definitions.read("p") == before[0]
            assert again.definitions.history("p") == before[1]
            assert again.ledger.scan("p", "run") == before[2]

    def test_a_state_tells_what_changed(self, registry: Registry) -> None:
        states = [registry.state("p")]
        assert (states[0].head, states[0].number) == ("", 0)
        registry.ledger.append("q", "run", "k", {})
        assert registry.state("p").ledger == states[0].ledger
        chain = registry.definitions.apply("p", "", [put("p", "a")], author="a", message="m", commit="c")
        states.append(registry.state("p"))
        assert (states[1].head, states[1].number, states[1].ledger) == (chain.head, 1, states[0].ledger)
        for _ in range(2):
            registry.ledger.append("p", "run", "k", {})
            states.append(registry.state("p"))
            assert (states[-1].head, states[-1].number) == (chain.head, 1)
            assert states[-1].ledger > states[-2].ledger
        registry.ledger.append("", "run", "k", {})
        assert registry.state("p").ledger > states[-1].ledger
        assert abs((states[0].now - states[-1].now).total_seconds()) < 60

    @pytest.mark.parametrize("odd", ["a\0b", "\ud800"])
    def test_what_not_every_database_keeps_is_a_value_error(self, registry: Registry, odd: str) -> None:
        definitions, ledger = registry.definitions, registry.ledger
        said = {"author": "a", "message": "m", "commit": "c"}
        refused = partial(pytest.raises, ValueError, match=r"U\+0000")
        for name in said:
            with refused():
                definitions.apply("p", "", [put("p", "a")], **{**said, name: odd})
        whole = Record("view", "p", "a", {}, "f")
        for part in ("kind", "name", "owner", "description"):
            other: dict[str, Any] = {part: odd}
            record = replace(whole, **other)
            with refused():
                definitions.apply("p", "", [Change("put", record.kind, record.name, record)], **said)
        for read in (definitions.head, definitions.chain, definitions.read, definitions.history):
            with refused():
                read(odd)
        for project, kind, key in ((odd, "run", "k"), ("p", odd, "k"), ("p", "run", odd)):
            with refused():
                ledger.append(project, kind, key, {})
            with refused():
                ledger.scan(project, kind, key=key)
        assert definitions.projects() == []

    def test_ledger_writes_never_move_a_revision(self, registry: Registry) -> None:
        registry.definitions.apply("p", "", [put("p", "a")], author="a", message="m", commit="c")
        for _ in range(3):
            registry.ledger.append("p", "run", "k", {})
        assert registry.definitions.head("p") == 1
        registry.ledger.append("only in the ledger", "run", "k", {})
        assert registry.definitions.projects() == ["p"]

    def test_instants_are_aware_and_utc(self, registry: Registry) -> None:
        registry.definitions.apply("p", "", [put("p", "a")], author="a", message="m", commit="c")
        registry.ledger.append("p", "run", "k", {})
        entry = registry.ledger.latest("p", "run", "k")
        assert entry is not None
        for instant in (registry.definitions.history("p")[0].applied_at, entry.written_at):
            assert instant.utcoffset() == timedelta(0)

    @pytest.mark.parametrize("limit", [-1, -1000])
    def test_a_negative_limit_is_a_value_error(self, registry: Registry, limit: int) -> None:
        with pytest.raises(ValueError, match="limit"):
            registry.definitions.history("p", limit=limit)
        with pytest.raises(ValueError, match="limit"):
            registry.ledger.scan("p", "run", limit=limit)
