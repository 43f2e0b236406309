"""Group commits to a table that is no view's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from support.serving import until
from support.sources import instants

from featurestore.errors import ConcurrentCommitError, InputError
from featurestore.offline import groups, merge
from featurestore.offline.groups import GroupCommitter
from featurestore.offline.interface import TableId, TableSchema, TableVersion
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.offline_store import read_rows
from featurestore.types import Int64, String
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE

TABLE = TableId("shop", "served", 1)
SCHEMA = TableSchema((("request", String),), (("answer", Int64),))
WIDER = TableSchema(SCHEMA.join_keys, (*SCHEMA.stored, ("status", String)))


class Served:
    """A writer that keeps with each commit which batches are in it, as one that reads a stream keeps offsets."""

    def __init__(self) -> None:
        self.begun: list[list[str]] = []
        self.told: list[tuple[list[str], int]] = []
        self.refuse = ""
        self.meanwhile: Callable[[], object] = lambda: None

    def begin(self, given: Sequence[str]) -> None:
        self.begun.append(list(given))
        if self.refuse in given:
            raise InputError(f"No {self.refuse}.")

    def gathered(self, given: Sequence[str], parts: Sequence[pa.Table], version: TableVersion | None) -> pa.Table:
        rows, first_sequence = pa.concat_tables(parts), 0 if version is None else version.next_sequence
        numbers = pa.array(range(first_sequence, first_sequence + len(rows)), pa.int64())
        return rows.append_column(SEQUENCE, numbers).append_column(ORIGIN, pa.repeat("served", len(rows)))

    def facts(self, given: Sequence[str], base: TableVersion | None) -> dict[str, object]:
        self.meanwhile()
        return {"batches": list(given), "after": None if base is None else base.number}

    def committed(self, given: Sequence[str], version: TableVersion) -> None:
        self.told.append((list(given), version.number))


@pytest.fixture
def offline(tmp_path: Path) -> DeltaStore:
    return DeltaStore(tmp_path)


@pytest.fixture
def writer() -> Served:
    return Served()


@pytest.fixture
def committer(offline: DeltaStore, writer: Served) -> GroupCommitter[str]:
    return GroupCommitter(offline, TABLE, writer)


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.3)


def rows(number: int, **more: list[str]) -> pa.Table:
    return pa.table(
        {"request": [f"r{number}"], EVENT: instants(number), CREATED: instants(number), "answer": [number], **more}
    )


def answers(offline: DeltaStore) -> list[tuple[int, int]]:
    version = offline.current(TABLE)
    return [] if version is None else [(row[SEQUENCE], row["answer"]) for row in read_rows(offline, version)]


def test_what_comes_meanwhile_is_one_commit_with_the_facts_of_all(offline, writer, committer):
    first = committer.add(rows(0), SCHEMA, "first")
    assert first.result(timeout=60) == 0
    assert writer.told == [(["first"], 0)]  # before its caller continues
    later = [committer.add(rows(number), SCHEMA, f"batch {number}") for number in (3, 1, 2)]
    assert [done.result(timeout=60) for done in later] == [1, 1, 1]
    assert answers(offline) == [(0, 0), (1, 3), (2, 1), (3, 2)]
    commit = offline.find_commit(TABLE)
    assert commit is not None
    assert commit.facts == {"batches": ["batch 3", "batch 1", "batch 2"], "after": 0}


def test_commits_begin_so_far_apart_and_the_thread_ends(writer, committer, monkeypatch):
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 3600.0)
    assert committer.add(rows(0), SCHEMA, "at once").result(timeout=60) == 0
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == f"commit {TABLE}"])
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)
    committer._next_s = 0.0
    assert committer.add(rows(1), SCHEMA, "again").result(timeout=60) == 1
    assert writer.begun == [["at once"], ["again"]]


def test_many_rows_do_not_wait(writer, committer, monkeypatch):
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr(groups, "FULL_ROWS", 3)
    committer.add(rows(0), SCHEMA, "at once").result(timeout=60)
    few = committer.add(rows(1), SCHEMA, "few")
    until(lambda: committer._is_running)
    assert not few.done()
    many = committer.add(pa.concat_tables([rows(2), rows(3)]), SCHEMA, "many")
    assert few.result(timeout=60) == many.result(timeout=60) == 1
    assert committer.add(rows(4), SCHEMA, "what comes after").result(timeout=60) == 2
    assert writer.begun == [["at once"], ["few", "many"], ["what comes after"]]


def test_rows_of_another_schema_are_committed_apart(offline, writer, committer):
    committer.add(rows(0), SCHEMA, "first").result(timeout=60)
    given = [(rows(1), SCHEMA, "old"), (rows(2, status=["PRESENT"]), WIDER, "new"), (rows(3), SCHEMA, "old too")]
    done = [committer.add(*each) for each in given]
    assert [each.result(timeout=60) for each in done][::2] == [1, 1]
    assert writer.told[1:] == [(["old", "old too"], 1), (["new"], done[1].result())]
    version = offline.current(TABLE)
    assert version is not None
    assert [row["status"] for row in read_rows(offline, version)] == [None, None, None, "PRESENT"]


def test_what_fails_and_what_is_cancelled_leaves_the_rest_alone(offline, writer, committer):
    committer.add(rows(0), SCHEMA, "first").result(timeout=60)
    writer.refuse = "such"
    failed = [committer.add(rows(number), SCHEMA, given) for number, given in ((1, "such"), (2, "its neighbour"))]
    for done in failed:
        with pytest.raises(InputError, match="No such"):
            done.result(timeout=60)
    cancelled, kept = committer.add(rows(3), SCHEMA, "cancelled"), committer.add(rows(4), SCHEMA, "kept")
    assert cancelled.cancel()
    assert kept.result(timeout=60) == 1
    assert writer.told == [(["first"], 0), (["kept"], 1)]
    assert answers(offline) == [(0, 0), (1, 4)]


def test_rows_are_numbered_again_when_another_writer_was_first(offline, writer, committer):
    writer.meanwhile = lambda: commit_as_another(offline, writer)
    assert committer.add(rows(1), SCHEMA, "late").result(timeout=60) == 1
    assert answers(offline) == [(0, 100), (1, 1)]
    assert writer.begun == [["late"]]
    assert list(offline.staging(TABLE).iterdir()) == []


def test_patience_ends(offline, writer, committer, monkeypatch):
    monkeypatch.setattr(groups, "PATIENCE_SECONDS", 0.0)
    writer.meanwhile = lambda: commit_as_another(offline, writer)
    with pytest.raises(ConcurrentCommitError):
        committer.add(rows(1), SCHEMA, "late").result(timeout=60)
    assert answers(offline) == [(0, 100)]
    assert list(offline.staging(TABLE).iterdir()) == []


def test_small_files_are_merged_between_commits(offline, committer, monkeypatch):
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(merge, "MOST_SMALL", 3)
    for number in range(4):
        committer.add(rows(number), SCHEMA, f"{number}").result(timeout=60)
    until(lambda: len(files_of(offline)) == 1)
    assert answers(offline) == [(number, number) for number in range(4)]


def files_of(offline: DeltaStore) -> Sequence[object]:
    version = offline.current(TABLE)
    return () if version is None else version.files


def commit_as_another(offline: DeltaStore, writer: Served) -> None:
    """Commit one row, once, behind the committer's back."""
    writer.meanwhile = lambda: None
    path = offline.write(TABLE, writer.gathered([], [rows(100)], None))
    offline.commit(TABLE, SCHEMA, base=None, add=[path])
