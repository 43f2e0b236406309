"""What `Definitions` promises."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from featurestore_registry.errors import RecordNotFoundError, RevisionConflictError
from featurestore_registry.interface import Definitions, Registry
from featurestore_registry.records import Chain, Change, Record, RecordField, fingerprint, revision_hash
from featurestore_registry.testing.support import DOCUMENTS, NAMES, RegistryFixtures, Reopen, at_once


def make_record(project: str, name: str, document: Any = None, *, kind: str = "view", **rest: Any) -> Record:
    """Return a record with what is not given filled in."""
    document = {"name": name} if document is None else document
    return Record(kind=kind, project=project, name=name, document=document, fingerprint=fingerprint(document), **rest)


def put(project: str, name: str, document: Any = None, *, kind: str = "view", **rest: Any) -> Change:
    """Return a put of such a record."""
    return Change("put", kind, name, make_record(project, name, document, kind=kind, **rest))


def delete(name: str, *, kind: str = "view") -> Change:
    """Return a delete."""
    return Change("delete", kind, name)


def hash_at(definitions: Definitions, project: str, number: int) -> str:
    """Return the hash of a revision by its number, one that no revision has where there is none of the number."""
    hashes = ("", *definitions.chain(project).hashes)
    return hashes[number] if 0 <= number < len(hashes) else "f" * 64


def apply(definitions: Definitions, project: str, expected: int, *changes: Change) -> int:
    """Apply changes with facts that do not matter on the revision of a number, and return the new number."""
    on = hash_at(definitions, project, expected)
    return definitions.apply(project, on, changes, author="ada", message="why", commit="c0ffee").number


class DefinitionsConformance(RegistryFixtures):
    """See `RegistryConformance`."""

    def test_an_unknown_project_is_empty(self, registry: Registry) -> None:
        definitions = registry.definitions
        assert definitions.head("nobody") == 0
        for revision in (None, 0):
            read = definitions.read("nobody", revision)
            assert (read.project, read.number, read.records) == ("nobody", 0, ())
        assert definitions.history("nobody") == []
        assert definitions.projects() == []

    def test_revisions_count_from_one_and_apart_for_each_project(self, registry: Registry) -> None:
        definitions = registry.definitions
        assert [apply(definitions, "p", number, put("p", f"v{number}")) for number in range(3)] == [1, 2, 3]
        assert apply(definitions, "q", 0, put("q", "v")) == 1
        assert (definitions.head("p"), definitions.head("q")) == (3, 1)
        assert [record.name for record in definitions.read("q").records] == ["v"]
        assert {record.project for record in definitions.read("p").records} == {"p"}

    def test_projects_are_sorted_and_stay(self, registry: Registry) -> None:
        definitions = registry.definitions
        for project in ("zoo", "Zoo", "ärmel", "alpha"):
            apply(definitions, project, 0, put(project, "a"))
        apply(definitions, "zoo", 1, delete("a"))
        assert definitions.projects() == sorted(["zoo", "Zoo", "ärmel", "alpha"])

    def test_a_record_comes_back_whole(self, registry: Registry) -> None:
        fields = (
            RecordField("delay", "Float64", "minutes", {"pii": "no"}, ("flights.arr_delay", "planes.tailnum")),
            RecordField("größe 🛫", "Array(Decimal(38, 9))"),
        )
        record = make_record(
            "p",
            "v",
            {"sql": "SELECT 1", "nested": {"b": [1, None], "a": "ü"}},
            fields=fields,
            depends_on=("source:flights", "entity:carrier"),
            owner="team@example.com",
            tags={"tier": "1", "ключ": "значение"},
            description="Last\nknown 'delay' 🛫",
        )
        apply(registry.definitions, "p", 0, Change("put", "view", "v", record))
        (read,) = registry.definitions.read("p").records
        assert read == record
        assert isinstance(read.fields, tuple)
        assert isinstance(read.fields[0].inputs, tuple)
        assert isinstance(read.depends_on, tuple)

    @pytest.mark.parametrize("number", range(len(DOCUMENTS)))
    def test_documents_come_back_as_they_were(self, registry: Registry, number: int) -> None:
        apply(registry.definitions, "p", 0, put("p", "v", DOCUMENTS[number]))
        (read,) = registry.definitions.read("p").records
        assert read.document == DOCUMENTS[number]
        assert repr(read.document) == repr(dict(sorted(DOCUMENTS[number].items())))  # types and -0.0 too

    def test_records_are_sorted_by_kind_and_name_and_told_apart(self, registry: Registry) -> None:
        keys = [(kind, name) for kind in ("view", "Entity", "entity") for name in NAMES]
        random.Random(7).shuffle(keys)
        apply(registry.definitions, "p", 0, *(put("p", name, kind=kind) for kind, name in keys))
        read = registry.definitions.read("p").records
        assert [(record.kind, record.name) for record in read] == sorted(keys)

    def test_a_put_replaces_and_a_delete_removes(self, registry: Registry) -> None:
        definitions = registry.definitions
        apply(definitions, "p", 0, put("p", "a", {"v": 1}), put("p", "b"), put("p", "a", {"v": 9}, kind="entity"))
        apply(definitions, "p", 1, put("p", "a", {"v": 2}), delete("b"))
        assert [(r.kind, r.name, r.document) for r in definitions.read("p").records] == [
            ("entity", "a", {"v": 9}),
            ("view", "a", {"v": 2}),
        ]

    def test_the_last_record_can_go_and_come_back(self, registry: Registry) -> None:
        definitions = registry.definitions
        apply(definitions, "p", 0, put("p", "a", {"v": 1}))
        apply(definitions, "p", 1, delete("a"))
        assert definitions.read("p").records == ()
        assert (definitions.read("p").number, definitions.head("p")) == (2, 2)
        apply(definitions, "p", 2, put("p", "a", {"v": 3}))
        assert [[r.document for r in definitions.read("p", n).records] for n in range(4)] == [
            [],
            [{"v": 1}],
            [],
            [{"v": 3}],
        ]

    def test_a_revision_never_changes(self, registry: Registry, reopen: Reopen) -> None:
        """Random applies against a plain dict: every past revision stays what it was when it was made."""
        definitions, chance = registry.definitions, random.Random(11)
        model: dict[str, int] = {}
        snapshots: list[dict[str, int]] = [{}]
        for number in range(25):
            changes: list[Change] = []
            for name in chance.sample("abcdef", chance.randint(1, 4)):
                if name in model and chance.random() < 0.4:
                    del model[name]
                    changes.append(delete(name))
                else:
                    model[name] = number
                    changes.append(put("p", name, {"v": number}))
            assert apply(definitions, "p", number, *changes) == number + 1
            snapshots.append(dict(model))
        with reopen() as other:
            for reader in (definitions, other.definitions):
                for number, expected in enumerate(snapshots):
                    read = reader.read("p", number)
                    assert read.number == number
                    assert {r.name: r.document["v"] for r in read.records} == expected

    @pytest.mark.parametrize("revision", [-1, 2, 2**40])
    def test_reading_a_revision_that_does_not_exist(self, registry: Registry, revision: int) -> None:
        apply(registry.definitions, "p", 0, put("p", "a"))
        with pytest.raises(RecordNotFoundError, match="'p'"):
            registry.definitions.read("p", revision)

    def test_a_caller_that_changes_what_it_read_changes_nothing(self, registry: Registry) -> None:
        apply(registry.definitions, "p", 0, put("p", "a", {"list": [1]}))
        document: Any = registry.definitions.read("p").records[0].document
        document["list"].append(2)
        assert registry.definitions.read("p").records[0].document == {"list": [1]}

    def test_history_tells_what_was_done(self, registry: Registry) -> None:
        definitions = registry.definitions
        first = [put("p", "b", {"v": 1}), put("p", "a", {"v": 1})]
        second = [delete("b"), put("p", "c", {"v": 2}), put("p", "a", {"v": 2})]
        made = definitions.apply("p", "", first, author="ada", message="müssen 🛫", commit="")
        definitions.apply("p", made.head, second, author="", message="", commit="c0ffee")
        apply(definitions, "q", 0, put("q", "other"))
        newest, oldest = definitions.history("p")
        assert (newest.number, newest.message, newest.commit) == (2, "", "c0ffee")
        assert (oldest.number, oldest.message, oldest.commit) == (1, "müssen 🛫", "")
        assert [oldest.author, newest.author] == ["ada", ""] if self.author is None else [self.author] * 2
        assert list(newest.changes) == second
        assert list(oldest.changes) == first
        assert oldest.applied_at <= newest.applied_at
        assert (oldest.hash, newest.hash) == definitions.chain("p").hashes

    def test_history_is_newest_first_and_limited(self, registry: Registry) -> None:
        definitions = registry.definitions
        for number in range(53):
            apply(definitions, "p", number, put("p", "a", {"v": number}))
        assert [info.number for info in definitions.history("p")] == list(range(53, 3, -1))
        assert [info.number for info in definitions.history("p", limit=2)] == [53, 52]
        assert [info.number for info in definitions.history("p", limit=100)] == list(range(53, 0, -1))
        assert definitions.history("p", limit=0) == []
        assert [len(info.changes) for info in definitions.history("p", limit=3)] == [1, 1, 1]

    @pytest.mark.parametrize("expected", [-1, 0, 2, 99])
    def test_another_head_is_a_conflict_that_changes_nothing(self, registry: Registry, expected: int) -> None:
        definitions = registry.definitions
        apply(definitions, "p", 0, put("p", "a"))
        before = definitions.read("p"), definitions.history("p")
        with pytest.raises(RevisionConflictError) as raised:
            apply(definitions, "p", expected, put("p", "b"), put("p", "a", {"v": "other"}))
        assert raised.value.details["head"] == 1
        assert (definitions.read("p"), definitions.history("p")) == before

    def test_a_chain_grows_with_each_apply_and_never_changes(self, registry: Registry, reopen: Reopen) -> None:
        definitions = registry.definitions
        assert definitions.chain("p") == Chain()
        seen = [definitions.chain("p").hashes]
        for number in range(5):
            apply(definitions, "p", number, put("p", "a"), put("p", f"v{number}"))
            seen.append(definitions.chain("p").hashes)
        assert [len(hashes) for hashes in seen] == list(range(6))
        assert all(later[: len(earlier)] == earlier for earlier, later in pairwise(seen))
        assert len(set(seen[-1])) == 5
        assert all(re.fullmatch("[0-9a-f]{64}", each) for each in seen[-1])
        assert [definitions.read("p", number).chain.hashes for number in range(6)] == seen
        with reopen() as other:
            assert other.definitions.chain("p").hashes == seen[-1]

    def test_each_hash_of_a_chain_covers_what_its_revision_changed(self, registry: Registry) -> None:
        definitions = registry.definitions
        for number, changes in enumerate([(put("p", "b"), put("p", "a")), (put("p", "a", {"v": 2}),), (delete("b"),)]):
            apply(definitions, "p", number, *changes)
        hashes = [""]
        for info in reversed(definitions.history("p")):
            hashes.append(
                revision_hash(
                    hashes[-1],
                    "p",
                    applied_at_us=(info.applied_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1),
                    author=info.author,
                    message=info.message,
                    commit=info.commit,
                    changes=[
                        (each.action, each.kind, each.name, each.record.fingerprint if each.record else "")
                        for each in info.changes
                    ],
                )
            )
        assert definitions.chain("p").hashes == tuple(hashes[1:])

    def test_a_chain_tells_projects_and_contents_apart(self, registry: Registry) -> None:
        definitions = registry.definitions
        apply(definitions, "p", 0, put("p", "a", {"v": 1}))
        apply(definitions, "q", 0, put("q", "a", {"v": 1}))
        identities = [definitions.chain(project).identity for project in ("p", "q")]
        assert len(set(identities)) == 2
        apply(definitions, "p", 1, put("p", "a", {"v": 2}))
        assert definitions.chain("p").identity == identities[0]
        assert definitions.chain("p").head not in definitions.chain("q")

    def test_what_was_planned_on_a_revision_of_another_history_is_a_conflict(self, registry: Registry) -> None:
        definitions = registry.definitions
        for project in ("p", "q"):
            apply(definitions, project, 0, put(project, "a"))
        before = definitions.read("p")
        for foreign in (definitions.chain("q").head, "0" * 64, "", "1"):
            with pytest.raises(RevisionConflictError):
                definitions.apply("p", foreign, [put("p", "b")], author="", message="", commit="")
        assert definitions.read("p") == before

    @pytest.mark.parametrize("expected", [-1, 1])
    def test_a_new_project_expects_zero(self, registry: Registry, expected: int) -> None:
        with pytest.raises(RevisionConflictError):
            apply(registry.definitions, "p", expected, put("p", "b"))
        assert registry.definitions.projects() == []

    def test_deleting_what_is_not_there_changes_nothing(self, registry: Registry) -> None:
        definitions = registry.definitions
        for expected, changes in [(0, [put("p", "a"), delete("b")]), (0, [delete("a")])]:
            with pytest.raises(RecordNotFoundError):
                apply(definitions, "p", expected, *changes)
            assert definitions.projects() == []
        apply(definitions, "p", 0, put("p", "a"))
        apply(definitions, "q", 0, put("q", "b"))
        before = definitions.read("p"), definitions.history("p")
        for gone in (delete("b"), delete("a", kind="entity"), delete("A")):
            with pytest.raises(RecordNotFoundError, match="to delete"):
                apply(definitions, "p", 1, put("p", "a", {"v": 2}), put("p", "c"), gone)
            assert (definitions.read("p"), definitions.history("p")) == before

    @pytest.mark.parametrize(
        "changes",
        [
            [],
            [put("p", "a"), delete("a")],
            [put("p", "a"), put("p", "b"), put("p", "a")],
            [Change("put", "view", "a")],
            [put("another project", "a")],
            [Change("put", "view", "b", make_record("p", "a"))],
            [Change("put", "entity", "a", make_record("p", "a"))],
            [Change("delete", "view", "a", make_record("p", "a"))],
            [put("p", "b"), Change("put", "view", "a", Record("view", "p", "a", {"v": math.nan}, "f"))],
            [Change("put", "view", "a", Record("view", "p", "a", {"v": -math.inf}, "f"))],
        ],
    )
    def test_changes_that_make_no_sense_are_a_value_error(self, registry: Registry, changes: Sequence[Change]) -> None:
        for expected in (0, 5):  # also when the revision is wrong
            with pytest.raises(ValueError):
                apply(registry.definitions, "p", expected, *changes)
        assert registry.definitions.projects() == []

    def test_of_concurrent_applies_one_succeeds(self, registry: Registry) -> None:
        """The first one of a project, which inserts, and a later one, which moves the revision."""
        definitions = registry.definitions
        for expected in (0, 1):

            def writer(number: int, expected: int = expected) -> int:
                return apply(definitions, "p", expected, put("p", f"v{number}"))

            results = at_once(8, writer)
            won = [number for number, result in enumerate(results) if result == expected + 1]
            lost = [result for result in results if isinstance(result, RevisionConflictError)]
            assert (len(won), len(lost)) == (1, 7), results
            assert [change.name for change in definitions.history("p")[0].changes] == [f"v{won[0]}"]
        assert definitions.head("p") == 2

    def test_every_success_moves_the_revision_by_one(self, registry: Registry, reopen: Reopen) -> None:
        """Threads with connections of their own apply until each has succeeded five times; nothing is lost."""

        def writer(number: int) -> list[int]:
            won: list[int] = []
            with reopen() as own:
                while len(won) < 5:
                    head = own.definitions.head("p")
                    try:
                        won.append(apply(own.definitions, "p", head, put("p", f"{number}.{len(won)}")))
                    except RevisionConflictError:
                        continue
            return won

        results = at_once(4, writer)
        assert sorted(number for won in results for number in won) == list(range(1, 21)), results
        assert {record.name for record in registry.definitions.read("p").records} == {
            f"{number}.{turn}" for number in range(4) for turn in range(5)
        }

    def test_a_read_is_one_snapshot(self, registry: Registry) -> None:
        """Each apply rewrites all of twenty records: no read may see two applies."""
        definitions = registry.definitions
        names = [f"v{number}" for number in range(20)]

        def work(number: int) -> None:
            if number == 0:
                for turn in range(15):
                    apply(definitions, "p", turn, *(put("p", name, {"turn": turn + 1}) for name in names))
                return
            while (read := definitions.read("p")).number < 15:
                seen = [record.document["turn"] for record in read.records]
                assert seen == [read.number] * (20 if read.number else 0)

        assert at_once(3, work) == [None, None, None]
