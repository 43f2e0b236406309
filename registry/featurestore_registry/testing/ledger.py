"""What `Ledger` promises."""

from __future__ import annotations

import math
from typing import Any

import pytest

from featurestore_registry.errors import LedgerConflictError
from featurestore_registry.interface import Registry
from featurestore_registry.testing.support import DOCUMENTS, NAMES, RegistryFixtures, Reopen, at_once


class LedgerConformance(RegistryFixtures):
    """See `RegistryConformance`."""

    def test_an_unknown_key_is_empty(self, registry: Registry) -> None:
        assert registry.ledger.latest("p", "run", "k") is None
        assert registry.ledger.scan("p", "run", key="k") == []
        assert registry.ledger.scan("p", "run") == []

    def test_versions_count_from_one_and_apart_for_each_key(self, registry: Registry) -> None:
        ledger = registry.ledger
        keys = [("p", "run", "a"), ("p", "run", "b"), ("p", "watermark", "a"), ("q", "run", "a")]
        for turn in (1, 2, 3):
            for key in keys:
                assert ledger.append(*key, {"turn": turn, "key": list(key)}) == turn
        for key in keys:
            entry = ledger.latest(*key)
            assert entry is not None
            assert (entry.project, entry.kind, entry.key, entry.version) == (*key, 3)
            assert entry.document == {"turn": 3, "key": list(key)}

    @pytest.mark.parametrize("number", range(len(DOCUMENTS)))
    def test_entries_come_back_as_they_were(self, registry: Registry, number: int) -> None:
        registry.ledger.append("p", "run", "k", DOCUMENTS[number])
        entry = registry.ledger.latest("p", "run", "k")
        assert entry is not None
        assert repr(entry.document) == repr(dict(sorted(DOCUMENTS[number].items())))

    def test_keys_are_told_apart_exactly(self, registry: Registry) -> None:
        for number, name in enumerate(NAMES):
            assert registry.ledger.append(name, name, name, {"n": number}) == 1
            assert registry.ledger.append("p", "run", name, {"n": number}) == 1
        for number, name in enumerate(NAMES):
            (entry,) = registry.ledger.scan("p", "run", key=name)
            assert (entry.key, entry.document) == (name, {"n": number})
            (entry,) = registry.ledger.scan(name, name)
            assert (entry.project, entry.kind, entry.key) == (name, name, name)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_document_that_json_cannot_hold_is_refused(self, registry: Registry, value: float) -> None:
        with pytest.raises(ValueError):
            registry.ledger.append("p", "run", "k", {"v": value})
        assert registry.ledger.latest("p", "run", "k") is None

    def test_scan_of_a_key_is_newest_first_and_limited(self, registry: Registry) -> None:
        for number in range(5):
            registry.ledger.append("p", "run", "k", {"n": number})
            registry.ledger.append("p", "run", "other", {"n": -number})
        entries = registry.ledger.scan("p", "run", key="k")
        assert [(entry.version, entry.document["n"]) for entry in entries] == [(5, 4), (4, 3), (3, 2), (2, 1), (1, 0)]
        assert entries == sorted(entries, key=lambda entry: entry.written_at, reverse=True)
        assert registry.ledger.scan("p", "run", key="k", limit=2) == entries[:2]
        assert registry.ledger.scan("p", "run", key="k", limit=99) == entries
        assert registry.ledger.scan("p", "run", key="k", limit=0) == []

    def test_scan_of_a_kind_gives_the_newest_entry_of_each_key(self, registry: Registry) -> None:
        for number, key in enumerate(["a", "b", "a", "c", "b"]):
            registry.ledger.append("p", "run", key, {"n": number})
            registry.ledger.append("p", "another kind", key, {})
            registry.ledger.append("another project", "run", key, {})
        entries = registry.ledger.scan("p", "run")
        assert [(entry.key, entry.version, entry.document["n"]) for entry in entries] == [
            ("b", 2, 4),
            ("c", 1, 3),
            ("a", 2, 2),
        ]
        assert registry.ledger.scan("p", "run", limit=2) == entries[:2]
        assert registry.ledger.scan("p", "run", limit=0) == []

    def test_if_version_writes_only_after_the_expected_version(self, registry: Registry) -> None:
        ledger = registry.ledger
        with pytest.raises(LedgerConflictError):
            ledger.append("p", "lease", "k", {}, if_version=1)
        assert ledger.scan("p", "lease") == []
        assert ledger.append("p", "lease", "k", {"n": 1}, if_version=0) == 1
        assert ledger.append("p", "lease", "k", {"n": 2}, if_version=1) == 2
        for wrong in (-1, 0, 1, 3):
            with pytest.raises(LedgerConflictError) as raised:
                ledger.append("p", "lease", "k", {"n": "wrong"}, if_version=wrong)
            assert raised.value.details["newest"] == 2
        assert [entry.document["n"] for entry in ledger.scan("p", "lease", key="k")] == [2, 1]

    def test_of_concurrent_appends_with_one_expectation_one_succeeds(self, registry: Registry) -> None:
        for expected in range(3):

            def writer(number: int, expected: int = expected) -> int:
                return registry.ledger.append("p", "lease", "k", {"n": number}, if_version=expected)

            results = at_once(8, writer)
            won = [number for number, result in enumerate(results) if result == expected + 1]
            lost = [result for result in results if isinstance(result, LedgerConflictError)]
            assert (len(won), len(lost)) == (1, 7), results
            entry = registry.ledger.latest("p", "lease", "k")
            assert entry is not None
            assert (entry.version, entry.document) == (expected + 1, {"n": won[0]})

    def test_concurrent_appends_without_expectation_all_succeed(self, registry: Registry, reopen: Reopen) -> None:
        def writer(number: int) -> list[int]:
            with reopen() as own:
                return [own.ledger.append("p", "run", "k", {"n": number}) for _ in range(5)]

        results = at_once(4, writer)
        assert sorted(version for versions in results for version in versions) == list(range(1, 21)), results
        by_version = {entry.version: entry.document["n"] for entry in registry.ledger.scan("p", "run", key="k")}
        assert all(by_version[version] == n for n, versions in enumerate(results) for version in versions)

    def test_a_counter_under_compare_and_set_loses_nothing(self, registry: Registry) -> None:
        ledger = registry.ledger

        def count(_: int) -> None:
            done = 0
            while done < 5:
                entry = ledger.latest("p", "counter", "k")
                version, value = (0, 0) if entry is None else (entry.version, entry.document["value"])
                try:
                    ledger.append("p", "counter", "k", {"value": value + 1}, if_version=version)
                except LedgerConflictError:
                    continue
                done += 1

        assert at_once(4, count) == [None] * 4
        entry = ledger.latest("p", "counter", "k")
        assert entry is not None
        assert (entry.document, entry.version) == ({"value": 20}, 20)

    def test_the_newest_thousand_entries_of_a_key_are_kept(self, registry: Registry) -> None:
        ledger = registry.ledger
        ledger.append("p", "run", "quiet", {"n": "kept"})
        for number in range(1, 1004):
            ledger.append("p", "run", "busy", {"n": number})
        entries = ledger.scan("p", "run", key="busy")
        assert [(entry.version, entry.document["n"]) for entry in entries] == [(n, n) for n in range(1003, 3, -1)]
        assert [entry.document["n"] for entry in ledger.scan("p", "run")] == [1003, "kept"]
        assert ledger.append("p", "run", "busy", {}, if_version=1003) == 1004

    def test_a_caller_that_changes_an_entry_changes_nothing(self, registry: Registry) -> None:
        registry.ledger.append("p", "run", "k", {"list": [1]})
        entry = registry.ledger.latest("p", "run", "k")
        assert entry is not None
        document: Any = entry.document
        document["list"].append(2)
        again = registry.ledger.latest("p", "run", "k")
        assert again is not None
        assert again.document == {"list": [1]}
