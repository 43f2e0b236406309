"""What `Journal` promises."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from featurestore_registry.interface import Registry
from featurestore_registry.testing.support import DOCUMENTS, NAMES, RegistryFixtures, Reopen, at_once


class JournalConformance(RegistryFixtures):
    """The sentences of `JournalReader` and `Journal`."""

    def test_an_unknown_kind_has_no_entries(self, registry: Registry) -> None:
        assert registry.journal.scan("p", "commit") == []
        assert registry.journal.newest("p", "commit", key="v") == []
        assert registry.journal.append("p", "commit", []) == []
        assert registry.journal.forget("p", "commit", datetime.now(UTC)) == 0

    def test_every_entry_comes_back_in_order(self, registry: Registry) -> None:
        journal = registry.journal
        cursors = journal.append("p", "commit", list(zip(NAMES, DOCUMENTS * 3, strict=False)))
        journal.append("q", "commit", [("a", {"other": "project"})])
        journal.append("p", "publish", [("a", {"other": "kind"})])
        cursors += journal.append("p", "commit", [("a", {"n": 2})])
        found = journal.scan("p", "commit")
        assert [entry.cursor for entry in found] == cursors == sorted(set(cursors))
        assert [entry.key for entry in found] == [*NAMES, "a"]
        assert [entry.document for entry in found[:-1]] == (DOCUMENTS * 3)[: len(NAMES)]
        assert {(entry.project, entry.kind) for entry in found} == {("p", "commit")}
        assert [entry.document for entry in journal.scan("p", "commit", key="a")] == [DOCUMENTS[0], {"n": 2}]
        assert [entry.document for entry in journal.newest("p", "commit", key="a", limit=1)] == [{"n": 2}]
        assert journal.newest("p", "commit") == found[::-1]

    def test_pages_lead_on_and_spans_bound(self, registry: Registry) -> None:
        journal = registry.journal
        for number in range(5):
            journal.append("p", "commit", [("v", {"n": number})])
        whole = journal.scan("p", "commit")
        pages = [journal.scan("p", "commit", limit=2)]
        while pages[-1]:
            pages.append(journal.scan("p", "commit", limit=2, after=pages[-1][-1].cursor))
        assert [entry for page in pages for entry in page] == whole
        assert journal.scan("p", "commit", limit=0) == journal.newest("p", "commit", limit=0) == []
        third, last = whole[2].written_at, whole[-1].written_at
        expected = [entry for entry in whole if third <= entry.written_at < last]
        assert journal.scan("p", "commit", since=third, until=last) == expected
        later = last + timedelta(microseconds=1)
        assert journal.scan("p", "commit", since=whole[0].written_at, until=later) == whole
        for wrong in ({"limit": -1}, {"since": datetime(2026, 1, 1)}, {"until": datetime(2026, 1, 1)}):
            with pytest.raises(ValueError, match=r"limit|time zone"):
                journal.scan("p", "commit", **wrong)

    def test_only_age_removes_entries_and_no_cursor_comes_again(self, registry: Registry) -> None:
        journal = registry.journal
        many = journal.append("p", "commit", [("v", {"n": number}) for number in range(1_500)])
        assert len(journal.scan("p", "commit", limit=2_000)) == 1_500
        kept = journal.append("p", "publish", [("v", {})])
        assert journal.forget("p", "commit", journal.newest("p", "commit")[0].written_at) == 0
        (one,) = journal.append("p", "commit", [("w", {})])
        assert journal.forget("p", "commit", journal.newest("p", "commit")[0].written_at) in (0, 1_500)
        assert journal.forget("p", "commit", datetime.now(UTC) + timedelta(days=1)) in (1, 1_501)
        assert journal.scan("p", "commit") == []
        assert [entry.cursor for entry in journal.scan("p", "publish")] == kept
        assert journal.append("p", "commit", [("v", {})])[0] > one > many[-1]

    def test_a_document_that_json_cannot_hold_writes_nothing(self, registry: Registry) -> None:
        with pytest.raises(ValueError, match="JSON"):
            registry.journal.append("p", "commit", [("a", {}), ("b", {"x": float("nan")})])
        for odd in ("a\0", "\ud800"):
            with pytest.raises(ValueError, match=r"U\+0000"):
                registry.journal.append("p", "commit", [("a", {}), (odd, {})])
            with pytest.raises(ValueError, match=r"U\+0000"):
                registry.journal.scan("p", odd)
        assert registry.journal.scan("p", "commit") == []

    def test_who_follows_it_misses_nothing_of_many_writers(self, registry: Registry, reopen: Reopen) -> None:
        followed: list[Any] = []

        def work(number: int) -> None:
            with reopen() as own:
                if number:
                    for turn in range(20):
                        own.journal.append("p", "commit", [(str(number), {"n": turn}), (str(number), {"n": -turn})])
                    return
                while len(followed) < 120:
                    after = followed[-1].cursor if followed else 0
                    followed.extend(own.journal.scan("p", "commit", after=after))

        assert at_once(4, work) == [None] * 4
        assert followed == registry.journal.scan("p", "commit")
        for number in "123":
            of = [entry.document["n"] for entry in followed if entry.key == number]
            assert of == [sign * turn for turn in range(20) for sign in (1, -1)]
