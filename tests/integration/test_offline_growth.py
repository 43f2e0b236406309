"""How a Delta table stays quick to open: its old log entries, and who may meet them being moved."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deltalake
import pyarrow.parquet as pq
import pytest
from support.forked_fs import forked_fs

from featurestore.errors import ConcurrentCommitError, TableVersionError
from featurestore.offline.interface import TableVersion
from featurestore.offline.local import archive
from featurestore.offline.local import delta_log as log
from featurestore.offline.local import store as delta
from featurestore.offline.local.archive import ARCHIVED, LOG_SHORTENED
from featurestore.offline.local.delta_log import CHECKPOINT_MOVED, TableLog
from featurestore.offline.local.files import hash_of
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.offline_store import SCHEMA, TABLE, append, numbers, row
from featurestore.testing.table_growth import append_several, merge, new_rows
from featurestore.types.times import system_clock

pytestmark = pytest.mark.uncounted

EVERY = 5


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few commits do what many do, and at once."""
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", EVERY)
    monkeypatch.setattr(archive, "SETTLED_SECONDS", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "offline"


@pytest.fixture
def store(folder: Path) -> DeltaStore:
    return DeltaStore(folder)


def location(folder: Path) -> Path:
    return folder / TABLE.project / TABLE.view / str(TABLE.generation)


def live_entries(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (location(folder) / "_delta_log").glob("0*.json"))


def entry_hashes(folder: Path, count: int) -> list[str]:
    """Return the hash of each version's log entry, wherever it lies."""
    table_log = TableLog(TABLE, location(folder))
    return [hash_of(table_log.entry(number)) for number in range(count)]


def test_the_log_that_readers_list_stays_short(folder, store):
    hashes: list[str] = []
    version: TableVersion | None = None
    for number in range(42):
        version = append_several(store, 1, version)
        hashes.append(hash_of(TableLog(TABLE, location(folder)).entry(number)))
    assert live_entries(folder) == list(range(30, 42))  # from the third newest checkpoint on
    assert entry_hashes(folder, 42) == hashes
    assert [numbers(store, store.version(TABLE, number))[-1] for number in range(42)] == list(range(42))
    found = deltalake.DeltaTable(location(folder))
    assert (found.version(), found.to_pyarrow_table().num_rows) == (41, 42)
    assert len(found.history()) > 0
    with pytest.raises(TableVersionError, match="no version 42"):
        store.version(TABLE, 42)


def test_entries_stay_in_the_log_for_a_while(folder, store, monkeypatch):
    monkeypatch.setattr(archive, "SETTLED_SECONDS", 60.0)
    version = append_several(store, 24)
    assert live_entries(folder) == list(range(24))
    for number, age_s in enumerate(range(240, 0, -10)):
        path = TableLog(TABLE, location(folder)).entry(number)
        at_s = path.stat().st_mtime - age_s
        os.utime(path, (at_s, at_s))
    append_several(store, 2, version)
    # The newest entry came last: of the checkpoints before the newest three, 15 is older than a minute.
    assert live_entries(folder) == list(range(15, 26))


def test_a_log_that_cannot_be_archived_costs_no_commit(folder, store, caplog):
    version = append_several(store, 2)
    (location(folder) / "_archive").write_text("in the way")
    version = append_several(store, 4 * EVERY, version)
    assert numbers(store, version) == list(range(4 * EVERY + 2))
    assert {record.getMessage().partition(":")[0] for record in caplog.records} == {
        "old entries of the log of table conformance/profile/1 stay in it"
    }
    (location(folder) / "_archive").unlink()
    append_several(store, EVERY, version)
    assert live_entries(folder)[0] == 3 * EVERY


def test_names_of_merged_files_do_not_pile_up_in_checkpoints(folder, store):
    version = append_several(store, 10)
    for _ in range(3):
        version = append_several(store, EVERY - 1, merge(store, version))
    (newest,) = (location(folder) / "_delta_log").glob(f"{version.number // EVERY * EVERY:020}.checkpoint.parquet")
    removed = [found for found in pq.read_table(newest)["remove"].to_pylist() if found and found["path"]]
    assert len(list(location(folder).glob("*.parquet"))) > 20
    assert removed == []


@contextmanager
def as_an_earlier_release(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commit without what says that rows are kept."""
    properties = log._properties

    def carrying_less(hashes: Any, facts: Any, carried: Any, made: Any) -> Any:
        return properties(hashes, facts, {log.NEXT_SEQUENCE: carried[log.NEXT_SEQUENCE]}, {})

    with monkeypatch.context() as patch:
        patch.setattr(log, "_properties", carrying_less)
        yield


def test_tables_and_commits_of_an_earlier_release(store, monkeypatch):
    with as_an_earlier_release(monkeypatch):
        old = append_several(store, 3)
    assert old.rows_kept_since == old.number
    told = store.find_commit(TABLE)
    assert (told.rows, told.first_sequence, told.withdrawn, told.merges) == (None, None, None, False)
    assert abs(told.at_us - system_clock()) < 60_000_000  # the library's own entry says it
    assert len(store.changes(TABLE, 0, old.number).added) == 2
    ours = merge(store, old)
    assert ours.rows_kept_since == old.number
    ours = append_several(store, 2, ours)
    assert new_rows(store, old.number, ours) == [3, 4]
    # From before it, only the files tell: merged ones look as if rows had left.
    assert store.changes(TABLE, 1, ours.number).removed != ()
    with as_an_earlier_release(monkeypatch):
        again = append_several(store, 1, ours)
    assert again.rows_kept_since == again.number
    assert {file.path for file in store.changes(TABLE, ours.number, again.number).added} == {
        file.path for file in again.files if file not in ours.files
    }
    newest = append_several(store, 1, again)
    assert newest.rows_kept_since == again.number


def test_a_commit_whose_number_was_given_and_archived_is_told_as_a_lost_race(folder, store, monkeypatch):
    """The entry of the same number is out of the way: one that was written now would be in no newer version."""
    base = append_several(store, 2)
    properties, newest = log._properties, list[TableVersion]()

    def after_others(*arguments: Any) -> Any:
        if not newest:
            newest.append(base)
            newest[0] = append_several(DeltaStore(folder), 4 * EVERY, base)
        return properties(*arguments)

    monkeypatch.setattr(log, "_properties", after_others)
    with pytest.raises(ConcurrentCommitError, match="after version 1"):
        append(store, [row(99)], base)
    assert 2 not in live_entries(folder)
    assert store.current(TABLE) == newest[0]
    assert numbers(store, store.version(TABLE, 2)) == [0, 1, 2]
    assert len(list(location(folder).glob("*.parquet"))) == len(newest[0].files)
    with pytest.raises(ConcurrentCommitError, match="after version 1"):
        append(store, [row(99)], base)


WRITER = """
from pathlib import Path
from featurestore.offline.local import archive, store as delta
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.offline_store import TABLE
from featurestore.testing.table_growth import append_several

delta.CHECKPOINT_EVERY, archive.SETTLED_SECONDS = 5, 0.0
store = DeltaStore(Path.cwd())
append_several(store, 40, store.current(TABLE))
"""


@pytest.mark.parametrize("point", [CHECKPOINT_MOVED, ARCHIVED, LOG_SHORTENED])
@pytest.mark.parametrize("passing", [1, 2])
def test_a_writer_that_dies_while_it_archives_leaves_every_version(folder, store, point, passing):
    folder.mkdir()
    ((code, said),) = forked_fs().run_code(WRITER, folder, [{"FS_CRASH_AT": f"{point}:{passing}"}])
    assert code == 137, said
    version = store.current(TABLE)
    assert version is not None
    assert numbers(store, version) == list(range(version.number + 1))
    assert deltalake.DeltaTable(location(folder)).version() == version.number
    hashes = entry_hashes(folder, version.number + 1)
    newest = append_several(store, 2 * EVERY, version)
    assert entry_hashes(folder, version.number + 1) == hashes
    assert all(
        numbers(store, store.version(TABLE, number)) == list(range(number + 1)) for number in range(newest.number)
    )
    assert len(live_entries(folder)) <= 3 * EVERY


def test_readers_meet_a_readable_table_at_any_moment(folder, store, monkeypatch):
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 10)
    version = append_several(store, 1)
    errors: list[BaseException] = []
    is_done = threading.Event()
    looks: list[int] = []

    def read() -> None:
        reader = DeltaStore(folder)
        try:
            while not is_done.is_set():
                looks.append(deltalake.DeltaTable(location(folder)).version())
                reader.version(TABLE, looks[-1] // 2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    append_several(store, 70, version)
    is_done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert max(looks) > 40
    assert live_entries(folder)[0] == 50


def test_writers_of_several_processes_archive_one_log(folder, store):
    append_several(store, 1)
    script = WRITER.replace(
        "append_several(store, 40, store.current(TABLE))",
        """
from featurestore.errors import ConcurrentCommitError
for _ in range(12):
    while True:
        try:
            append_several(store, 1, store.current(TABLE))
            break
        except ConcurrentCommitError:
            pass
""",
    )
    ended = forked_fs().run_code(script, folder, [{}] * 3)
    assert [code for code, _ in ended] == [0, 0, 0], ended
    assert numbers(store, store.current(TABLE)) == list(range(37))
    assert len(entry_hashes(folder, 37)) == 37
    assert len(live_entries(folder)) <= 3 * EVERY


def test_cleaning_trims_the_archive(folder, store):
    version = append_several(store, 40)
    pinned, published = version.number - 30, version.number - 22
    merged = merge(store, version)
    assert store.clean(TABLE, keep=[pinned], known=[published]) > 0
    kept = sorted(int(path.name) for path in (location(folder) / "_archive").iterdir())
    assert kept == [pinned // EVERY * EVERY, published // EVERY * EVERY]
    assert numbers(store, store.version(TABLE, pinned)) == list(range(pinned + 1))
    assert new_rows(store, published, merged) == list(range(published + 1, 40))
    with pytest.raises(TableVersionError, match="no version 2"):
        store.version(TABLE, 2)
    assert numbers(store, append_several(store, 2 * EVERY, merged)) == list(range(50))


def test_cleaning_knows_the_files_of_a_living_writer_whose_entries_are_gone(folder, store):
    version = append_several(store, 40)
    store.clean(TABLE, keep=[], known=[])
    assert not (location(folder) / "_archive").is_dir() or not list((location(folder) / "_archive").iterdir())
    for file in version.files:
        assert Path(file.path).is_file()
    merged = merge(store, version)
    assert store.clean(TABLE, keep=[version.number], known=[]) == 0
    merged = append_several(store, 4 * EVERY, merge(store, merged))
    store.clean(
        TABLE, keep=[], known=[]
    )  # the only entries that name the first files are those of the checkpoint and the merge
    needed = {Path(file.path) for file in merged.files}
    assert set(location(folder).glob("*.parquet")) == needed


def test_an_entry_says_what_it_said(folder, store):
    """Other programs read the archive as a Delta log, too: a folder of it is a table of the versions in it."""
    append_several(store, 30)
    segment = location(folder) / "_archive" / f"{EVERY:020}"
    found = deltalake.DeltaTable(segment, version=EVERY + 2)
    assert len(found.get_add_actions()["path"]) == EVERY + 3
    entry = json.loads((segment / "_delta_log" / f"{EVERY + 2:020}.json").read_text().splitlines()[0])
    assert len(entry) == 1
    assert SCHEMA.stored
