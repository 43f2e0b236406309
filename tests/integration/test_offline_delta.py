"""The Delta tables of the offline store: what other programs, dying writers and full disks make of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import deltalake
import duckdb
import pyarrow as pa
import pytest
from support.disks import small_disk

from featurestore.errors import (
    ConcurrentCommitError,
    DamagedFileError,
    DiskFullError,
    OfflineStoreError,
    TableVersionError,
)
from featurestore.offline.interface import TableSchema, TableVersion
from featurestore.offline.local import delta_log as log
from featurestore.offline.local import files as disk
from featurestore.offline.local import store as delta
from featurestore.offline.local.delta_log import TableLog
from featurestore.offline.local.files import hash_of
from featurestore.offline.local.store import DeltaStore
from featurestore.steps import CRASH_POINTS
from featurestore.testing.offline_store import SCHEMA, TABLE, append, numbers, read_rows, row, write_rows
from featurestore.types import Int64, String
from featurestore.types.arrow import arrow_schema
from featurestore.types.columns import EVENT, SEQUENCE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "offline"


@pytest.fixture
def store(folder: Path) -> DeltaStore:
    return DeltaStore(folder)


def location(folder: Path) -> Path:
    return folder / TABLE.project / TABLE.view / str(TABLE.generation)


def commits(folder: Path) -> list[dict[str, dict[str, object]]]:
    """Return the actions of every commit, by name."""
    files = sorted((location(folder) / "_delta_log").glob("0*.json"))
    return [{k: v for line in file.read_text().splitlines() for k, v in json.loads(line).items()} for file in files]


def some_versions(store: DeltaStore) -> TableVersion:
    first = append(store, [row(1), row(2, delay=None)])
    second = append(store, [row(3, event_us=-1)], first)
    return store.commit(TABLE, SCHEMA, base=second.number, add=[], remove=first.files)


def test_other_readers_see_the_same_rows(folder, store):
    version = append(store, [row(4)], some_versions(store))
    expected = read_rows(store, version)
    by_deltalake = deltalake.DeltaTable(location(folder)).to_pyarrow_table().sort_by(SEQUENCE).to_pylist()
    assert by_deltalake == expected
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        files = [file.path for file in version.files]
        query = f"SELECT * FROM read_parquet({files}) ORDER BY {SEQUENCE}"
        assert connection.sql(query).to_arrow_table().to_pylist() == expected
    for number in (0, 1):
        travelled = deltalake.DeltaTable(location(folder), version=number).to_pyarrow_table()
        assert travelled.sort_by(SEQUENCE).to_pylist() == read_rows(store, store.version(TABLE, number)) or number == 0
    assert deltalake.DeltaTable(location(folder), version=0).to_pyarrow_table().num_rows == 2


def test_other_readers_may_prune_by_our_statistics(folder, store):
    version = append(store, [row(1, event_us=1_500), row(2, event_us=2_500)])
    append(store, [row(3, event_us=9_000_000)], version)
    table = deltalake.DeltaTable(location(folder))
    for instant in ("1970-01-01T00:00:00.0015Z", "1970-01-01T00:00:00.0025Z"):
        found = table.file_uris(file_pruning_predicate=f"{EVENT} = '{instant}'")
        assert found == [version.files[0].path]


def test_hashes_and_sequence_lie_in_the_log(folder, store):
    version = append(store, [row(1)])
    (commit,) = commits(folder)
    (file,) = version.files
    facts = commit["commitInfo"]["featurestore"]["files"]
    assert facts == {Path(file.path).name: {"sha256": file.sha256, "size": file.size_bytes}}
    entry = next((location(folder) / "_delta_log").glob("0*.json")).read_text()
    transactions = [json.loads(line)["txn"] for line in entry.splitlines() if "txn" in line]
    assert {found["appId"]: found["version"] for found in transactions} == {
        "featurestore.next_sequence": 1,
        "featurestore.rows_kept_since": 0,
        "featurestore.rows_kept_until": 0,
    }
    assert commit["metaData"]["configuration"]["delta.enableExpiredLogCleanup"] == "false"


def test_loading_does_not_grow_with_the_number_of_commits(folder, store):
    version = append(store, [row(0)])
    for number in range(1, 2 * log.CHECKPOINT_EVERY + 2):
        version = append(store, [row(number)], version)
    assert numbers(store, version) == list(range(2 * log.CHECKPOINT_EVERY + 2))
    kept = location(folder) / "_delta_log"
    assert json.loads((kept / "_last_checkpoint").read_text())["version"] == 2 * log.CHECKPOINT_EVERY
    # Readers that start from the checkpoint see the same files and go on counting from the same number.
    assert version.next_sequence == version.rows
    assert DeltaStore(folder).current(TABLE) == version
    assert deltalake.DeltaTable(location(folder)).to_pyarrow_table().num_rows == version.rows
    assert numbers(store, store.version(TABLE, 3)) == [0, 1, 2, 3]
    assert not list(location(folder).glob("_staging/*/checkpoint-*"))


def test_what_a_commit_rests_on_is_synced_before_it_and_the_log_after(folder, store, monkeypatch):
    """A power cut may drop whatever was not synced: the order of syncs is the promise."""
    first = append(store, [row(1)])
    path = write_rows(store, [row(2)], first_sequence=1)
    second_commit = location(folder) / "_delta_log" / f"{1:020}.json"
    synced: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), second_commit.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.commit(TABLE, SCHEMA, base=first.number, add=[path])
    before = [name for name, committed in synced if not committed]
    after = [name for name, committed in synced if committed]
    assert str(path) in before
    assert str(location(folder)) in before
    assert before.index(str(path)) < len(before) - 1 - before[::-1].index(str(location(folder)))
    # Its base may be the work of a writer that died before it synced.
    assert str(location(folder) / "_delta_log" / f"{0:020}.json") in before
    assert str(second_commit) in after
    assert str(second_commit.parent) in after


def test_a_table_that_needs_more_than_this_reader_can_is_refused(folder, store):
    append(store, [row(1)])
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["deletionVectors"]}
    protocol["writerFeatures"] = ["deletionVectors"]
    (location(folder) / "_delta_log" / f"{1:020}.json").write_text(json.dumps({"protocol": protocol}))
    with pytest.raises(OfflineStoreError, match="deletionVectors"):
        store.current(TABLE)


def test_files_that_others_wrote_into_a_table_are_refused(folder, store):
    append(store, [row(1)])
    table = deltalake.DeltaTable(location(folder))
    deltalake.write_deltalake(table, table.to_pyarrow_table(), mode="append")
    with pytest.raises(OfflineStoreError, match="was not written by this product"):
        store.current(TABLE)


def test_a_torn_log_is_told_and_not_taken_for_no_table(folder, store):
    append(store, [row(1)])
    (location(folder) / "_delta_log" / f"{0:020}.json").write_text("")
    with pytest.raises(OfflineStoreError, match="conformance/profile/1"):
        store.current(TABLE)


def test_a_table_that_another_folder_replaced_is_read_anew(folder, store, tmp_path):
    others = DeltaStore(tmp_path / "others")
    before, other = append(store, [row(1)]), append(others, [row(7)])
    assert store.current(TABLE) == before
    shutil.rmtree(location(folder))
    shutil.copytree(location(tmp_path / "others"), location(folder))
    now = store.current(TABLE)
    assert now is not None
    assert (now.number, now.identity) == (before.number, other.identity)


def test_a_table_is_loaded_once_while_its_log_stays_as_it_is(store, monkeypatch):
    version = append(store, [row(1)])
    with monkeypatch.context() as patch:
        patch.setattr(TableLog, "open", lambda self, number=None: pytest.fail("loaded again"))
        assert store.current(TABLE) is version
    append(DeltaStore(store._folder), [row(2)], version)
    now = store.current(TABLE)
    assert now is not None
    assert now.number == 1


def test_a_log_that_has_only_grown_is_not_loaded_anew(store, monkeypatch):
    version = append(store, [row(1)])
    append(DeltaStore(store._folder), [row(2)], version)
    with monkeypatch.context() as patch:
        patch.setattr(TableLog, "open", lambda self, number=None: pytest.fail("loaded again"))
        now = store.current(TABLE)
    assert now is not None
    assert now.number == 1
    assert now == DeltaStore(store._folder).current(TABLE)


def test_a_file_that_another_writer_takes_away_meanwhile_does_not_hide_the_table(folder, store):
    """A link to nowhere stands for it: it is listed, and then there is nothing to look at."""
    version = some_versions(store)
    (location(folder) / "_delta_log" / "_commit_1.json.tmp").symlink_to("gone")
    assert store.current(TABLE) == version


def test_a_longer_log_in_the_place_of_another_is_loaded_anew(tmp_path):
    store, others = DeltaStore(tmp_path / "own"), DeltaStore(tmp_path / "others")
    append(store, [row(1)])
    append(others, [row(8)], append(others, [row(7)]))
    shutil.rmtree(location(tmp_path / "own"))
    shutil.copytree(location(tmp_path / "others"), location(tmp_path / "own"))
    assert store.current(TABLE) == DeltaStore(tmp_path / "own").current(TABLE)


def test_a_version_number_beyond_the_newest(store):
    append(store, [row(1)])
    with pytest.raises(TableVersionError, match="no version 7"):
        store.version(TABLE, 7)


WRITER = """
import sys
from pathlib import Path
from featurestore.errors import ConcurrentCommitError
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.offline_store import SCHEMA, TABLE, append, row

store, lost = DeltaStore(Path(sys.argv[1])), 0
for number in range(int(sys.argv[2])):
    while True:
        try:
            append(store, [row(int(sys.argv[3]) + number)], store.current(TABLE))
            break
        except ConcurrentCommitError:
            lost += 1
print(lost)
"""


def write_in_process(folder: Path, *, commits: int = 1, number: int = 0, crash_at: str | None = None):
    environment = {**os.environ} if crash_at is None else {**os.environ, "FS_CRASH_AT": crash_at}
    command = [sys.executable, "-c", WRITER, str(folder), str(commits), str(number)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_writers_in_several_processes_lose_nothing(folder, store):
    writers = [write_in_process(folder, commits=8, number=100 * place) for place in range(3)]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    version = store.current(TABLE)
    assert version is not None
    rows = read_rows(store, version)
    assert sorted(found["number"] for found in rows) == sorted(100 * p + n for p in range(3) for n in range(8))
    assert [found[SEQUENCE] for found in rows] == list(range(24))
    assert store.clean(TABLE, keep=[version.number]) == 0


@pytest.mark.parametrize("point", [delta.FILES_SYNCED, delta.FILES_MOVED, log.COMMITTED, log.LOG_SYNCED])
@pytest.mark.parametrize("passing", [1, 2])
def test_a_writer_that_dies_leaves_nothing_or_its_commit(folder, store, point, passing):
    assert point in CRASH_POINTS
    dead = write_in_process(folder, commits=passing, crash_at=f"{point}:{passing}")
    _, errors = dead.communicate(timeout=60)
    assert dead.returncode == 137, errors
    version = store.current(TABLE)
    committed = point in (log.COMMITTED, log.LOG_SYNCED)
    whole = passing if committed else passing - 1
    assert (version.rows if version else 0) == whole
    again = append(store, [row(77)], version)
    assert numbers(store, again)[-1] == 77
    # What the dead writer staged or moved goes; what it committed stays.
    store.clean(TABLE, keep=[])
    data = {path.name for path in location(folder).glob("*.parquet*")}
    assert data == {Path(file.path).name for file in again.files}
    assert [place.name for place in location(folder).glob("_staging/*")] == [store.staging(TABLE).name]
    assert numbers(store, store.version(TABLE, again.number)) == numbers(store, again)


def test_a_writer_that_dies_while_columns_are_added_leaves_the_columns(folder, store):
    first = append(store, [row(1)])
    script = f"""
from pathlib import Path
from featurestore.offline.local.store import DeltaStore
from featurestore.offline.interface import TableSchema
from featurestore.testing.offline_store import SCHEMA, TABLE
from featurestore.types import Int64
schema = TableSchema(SCHEMA.join_keys, (*SCHEMA.stored, ("extra", Int64)))
DeltaStore(Path({str(folder)!r})).commit(TABLE, schema, base={first.number}, add=[])
"""
    environment = {**os.environ, "FS_CRASH_AT": delta.COLUMNS_ADDED}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True)
    assert done.returncode == 137, done.stderr
    version = store.current(TABLE)
    assert version is not None
    assert version.files == first.files
    schema = TableSchema(SCHEMA.join_keys, (*SCHEMA.stored, ("extra", Int64)))
    second = append(store, [row(2)], version, schema=schema, extra={"extra": [5]})
    assert [found["extra"] for found in read_rows(store, second)] == [None, 5]


def test_dropping_goes_on_where_a_dead_process_stopped(folder, store):
    append(store, [row(1)])
    script = f"""
from pathlib import Path
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.offline_store import TABLE
DeltaStore(Path({str(folder)!r})).clean(TABLE, keep=None)
"""
    environment = {**os.environ, "FS_CRASH_AT": delta.TABLE_MOVED}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True)
    assert done.returncode == 137, done.stderr
    assert store.current(TABLE) is None
    assert store.tables(TABLE.project) == []
    assert store.clean(TABLE, keep=None) >= 1
    assert [*location(folder).parent.rglob("*")] == [location(folder)]  # empty: the generation stays used


def test_widening_what_a_cleaner_took_away_is_told_as_a_lost_race(folder, store):
    wide = TableSchema((("carrier", String), ("number", Int64)), SCHEMA.stored)
    first = append(store, [row(1)])
    other = DeltaStore(folder)
    path = write_rows(other, [row(1)])
    other.commit(TABLE, SCHEMA, base=first.number, add=[path], remove=first.files)
    other.clean(TABLE, keep=[])
    with pytest.raises(ConcurrentCommitError, match="after version 0"):
        append(store, [row(2)], first, schema=wide)
    assert numbers(store, append(store, [row(2)], store.current(TABLE), schema=wide)) == [1, 2]


CLEANER = """
import sys, time
from pathlib import Path
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.offline_store import TABLE

store, end_s = DeltaStore(Path(sys.argv[1])), float(sys.argv[2])
while time.time() < end_s:
    store.clean(TABLE, keep=[])
"""

REWRITER = """
import sys, time
from pathlib import Path
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.offline_store import SCHEMA, TABLE, append, row, write_rows

folder, end_s, version = Path(sys.argv[1]), float(sys.argv[2]), None
while time.time() < end_s:
    store = DeltaStore(folder)  # with a staging folder of its own; the one before is nobody's from now on
    if version is None:
        version = append(store, [row(1)])
    path = store.staging(TABLE) / "again.parquet"
    path.write_bytes(Path(version.files[0].path).read_bytes())
    version = store.commit(TABLE, SCHEMA, base=version.number, add=[path], remove=version.files)
    write_rows(store, [row(1)])
print(version.number)
"""


def test_cleaners_and_a_writer_do_not_fail_each_other(folder):
    end_s = str(time.time() + 5)
    output = ""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder), end_s],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for script in (CLEANER, CLEANER, REWRITER)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert int(output) > 0


def test_what_another_cleaner_removed_first_is_no_error(folder, store, monkeypatch):
    first = append(store, [row(1)])
    store.commit(TABLE, SCHEMA, base=first.number, add=[], remove=first.files)
    newest_names = TableLog.newest_names

    def after_another(table_log: TableLog) -> set[str]:
        Path(first.files[0].path).unlink(missing_ok=True)
        return newest_names(table_log)

    monkeypatch.setattr(TableLog, "newest_names", after_another)
    assert store.clean(TABLE, keep=[]) == 0
    rmtree = shutil.rmtree

    def removed_twice(path: Path) -> None:
        rmtree(path)
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", removed_twice)
    (location(folder).parent / ".dropped-1").mkdir()
    assert store.clean(TABLE, keep=None) > 0
    assert [*location(folder).parent.rglob("*")] == [location(folder)]  # empty: the generation stays used
    assert store.clean(TABLE, keep=None) == 0


def test_a_table_that_another_cleaner_drops_first_is_no_error(folder, store, monkeypatch):
    append(store, [row(1)])
    rename = Path.rename

    def renamed_twice(path: Path, target: Path) -> Path:
        rename(path, target.with_name(".dropped-1"))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed_twice)
    assert store.clean(TABLE, keep=None) == 0
    assert store.tables(TABLE.project) == []


def test_a_new_writer_whose_folder_was_taken_for_a_dead_ones_takes_another(folder, store, monkeypatch):
    append(store, [row(1)])
    flock, taken = fcntl.flock, []

    def after_a_cleaner(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH and not taken:
            taken.append(True)
            store.clean(TABLE, keep=[])
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_a_cleaner)
    writer = DeltaStore(folder)
    place = writer.staging(TABLE)
    assert taken
    assert place.is_dir()
    store.clean(TABLE, keep=[])
    assert place.is_dir()
    assert writer.staging(TABLE) == place


def test_a_checkpoint_under_way_is_not_taken_for_a_leftover(folder, store, monkeypatch):
    version = append(store, [row(0)])
    since = TableLog._since_checkpoint

    def after_a_cleaner(table_log: TableLog) -> list[Path]:
        DeltaStore(folder).clean(TABLE, keep=[])
        return since(table_log)

    monkeypatch.setattr(TableLog, "_since_checkpoint", after_a_cleaner)
    for number in range(1, log.CHECKPOINT_EVERY + 1):
        version = append(store, [row(number)], version)
    assert list(location(folder).glob("_delta_log/*.checkpoint.parquet"))


def test_a_file_that_goes_while_it_is_hashed_is_told(store, monkeypatch):
    version = append(store, [row(1)])

    def hash_then_remove(path: Path) -> str:
        found = hash_of(path)
        path.unlink()
        return found

    monkeypatch.setattr(disk, "hash_of", hash_then_remove)
    store.verify(version.files, again=True)  # it was sound
    with pytest.raises(DamagedFileError, match="No such file"):
        store.verify(version.files)


def test_a_checkpoint_is_whole_or_not_there(folder, store, monkeypatch):
    version = append(store, [row(0)])
    for number in range(1, log.CHECKPOINT_EVERY):
        version = append(store, [row(number)], version)
    dead = write_in_process(folder, number=500, crash_at=log.CHECKPOINT_MOVED)
    _, errors = dead.communicate(timeout=60)
    assert dead.returncode == 137, errors
    assert numbers(store, DeltaStore(folder).current(TABLE)) == [*range(log.CHECKPOINT_EVERY), 500]
    store.clean(TABLE, keep=[])
    assert not list(location(folder).glob("_staging/*/checkpoint-*"))


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_is_told_and_what_was_there_is_readable(folder):
    with small_disk(folder) as is_small:
        store = DeltaStore(folder)
        first = append(store, [row(1)])
        if is_small:
            path = write_rows(store, [row(2)], first_sequence=1)
            filler = folder / "filler"
            fill(filler)
            with pytest.raises(DiskFullError, match="conformance/profile/1"):
                store.commit(TABLE, SCHEMA, base=first.number, add=[path])
            assert DeltaStore(folder).current(TABLE) == first
            assert numbers(store, first) == [1]
            filler.unlink()
        assert numbers(store, append(store, [row(3)], first)) == [1, 3]


def test_a_full_disk_while_a_commit_is_written(folder):
    """Where no small disk can be mounted, and in any case: no file may grow, so the log cannot be written."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from support.disks import small_files
from featurestore.errors import DiskFullError
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.offline_store import SCHEMA, TABLE, append, numbers, row, write_rows
store = DeltaStore(Path({str(folder)!r}))
first = append(store, [row(1)])
path = write_rows(store, [row(2)], first_sequence=1)
with small_files(100):
    try:
        store.commit(TABLE, SCHEMA, base=first.number, add=[path])
    except DiskFullError as error:
        print("full:", error.hint)
assert numbers(store, store.current(TABLE)) == [1]
assert numbers(store, append(store, [row(3)], first)) == [1, 3]
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("full: Free some space")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "offline").write_text("a file where the store should be")
    with pytest.raises(OfflineStoreError, match="make a place for new files"):
        DeltaStore(tmp_path / "offline").staging(TABLE)


def test_a_commit_that_lost_leaves_no_file_behind(folder, store):
    first = append(store, [row(1)])
    append(store, [row(2)], first)
    with pytest.raises(ConcurrentCommitError, match="after version 0"):
        append(DeltaStore(folder), [row(3)], first)
    assert len(list(location(folder).glob("*.parquet*"))) == 2


def test_arrow_schema_names_every_column_in_order():
    names = arrow_schema(SCHEMA.columns).names
    assert names == ["carrier", "number", "event_ts", "created_ts", "fs_seq", "fs_origin", "delay", "seats"]
    assert arrow_schema(SCHEMA.columns).field("event_ts").type == pa.timestamp("us", tz="UTC")
