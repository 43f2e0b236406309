"""What every offline store must do. Subclass `OfflineStoreConformance` and give it two fixtures.

class TestMyStore(OfflineStoreConformance):
    @pytest.fixture
    def offline(self):
        ...return an empty store

    @pytest.fixture
    def tamper(self, offline):
        ...return a `Tamper`, which changes the store's files as a broken disk does

Everything else is written and read through the store.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import (
    ConcurrentCommitError,
    DamagedFileError,
    OfflineStoreError,
    TableVersionError,
)
from featurestore.offline.interface import DataFile, OfflineStore, TableId, TableSchema, TableVersion
from featurestore.types import Array, Decimal, Float32, Float64, Int32, Int64, String
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE
from featurestore.types.values import ValueType

TABLE = TableId("conformance", "profile", 1)
SCHEMA = TableSchema((("carrier", String), ("number", Int32)), (("delay", Float32), ("seats", Int32)))
INSTANT = pa.timestamp("us", tz="UTC")


class Tamper(Protocol):
    """Replaces a file's content behind the store's back, or removes the file."""

    def __call__(self, file: DataFile, content: bytes | None, *, is_seen: bool = True) -> None:
        """Do it; without ``is_seen`` so that only the content tells it, no time and no size, if the store allows."""


Row = tuple[str, int, int, int | None, Any, Any]
"""carrier, number, event and created time in microseconds, delay, seats."""


def row(number: int, *, event_us: int = 1_383_456_789_123_457, delay: float | None = 1.5, seats: int = 3) -> Row:
    """Return a row of the table."""
    return ("UA", number, event_us, None, delay, seats)


def write_rows(
    offline: OfflineStore,
    rows: Sequence[Row],
    *,
    first_sequence: int = 0,
    schema: TableSchema = SCHEMA,
    extra: dict[str, Sequence[Any]] | None = None,
    table: TableId = TABLE,
) -> Path:
    """Write rows into the table's staging place as the engine does; ``extra`` holds further features."""
    types: dict[str, ValueType] = {**dict(schema.join_keys), **dict(schema.stored)}
    by_name = list(zip(*rows, strict=True))
    columns = {
        "carrier": pa.array(by_name[0], arrow_type(types["carrier"])),
        "number": pa.array(by_name[1], arrow_type(types["number"])),
        EVENT: pa.array(by_name[2], pa.int64()).cast(INSTANT),
        CREATED: pa.array(by_name[3], pa.int64()).cast(INSTANT),
        SEQUENCE: pa.array(range(first_sequence, first_sequence + len(rows)), pa.int64()),
        ORIGIN: pa.array(["batch"] * len(rows)),
        "delay": pa.array(by_name[4], arrow_type(types["delay"])),
        "seats": pa.array(by_name[5], arrow_type(types["seats"])),
    }
    for name, values in (extra or {}).items():
        columns[name] = pa.array(values, arrow_type(types[name]))
    return offline.write(table, pa.table(columns))


def append(
    offline: OfflineStore, rows: Sequence[Row], base: TableVersion | None = None, **options: Any
) -> TableVersion:
    """Commit rows after ``base``."""
    schema = options.get("schema", SCHEMA)
    first = 0 if base is None else base.next_sequence
    path = write_rows(offline, rows, first_sequence=first, **options)
    try:
        return offline.commit(TABLE, schema, base=None if base is None else base.number, add=[path])
    finally:
        path.unlink(missing_ok=True)


def read_bytes(offline: OfflineStore, file: DataFile) -> bytes:
    """Return the bytes of a file."""
    with offline.open(file) as content:
        return bytes(content.read())


def read_file(offline: OfflineStore, file: DataFile) -> pa.Table:
    """Return what a file holds."""
    with offline.open(file) as content:
        return pq.ParquetFile(content).read()


def read_rows(offline: OfflineStore, version: TableVersion) -> list[dict[str, Any]]:
    """Return every row of a version by ``fs_seq``, read from its files; a column that a file lacks is None."""
    found = [row for file in version.files for row in read_file(offline, file).to_pylist()]
    names = {name for row in found for name in row}
    return sorted(({name: row.get(name) for name in names} for row in found), key=lambda row: row[SEQUENCE])


def numbers(offline: OfflineStore, version: TableVersion) -> list[int]:
    """Return the column ``number`` of every row, in the order of arrival."""
    return [row["number"] for row in read_rows(offline, version)]


class OfflineStoreConformance:
    """The suite."""

    def test_a_table_that_was_never_written_is_not_there(self, offline: OfflineStore) -> None:
        assert offline.current(TABLE) is None
        assert offline.tables("conformance") == []
        with pytest.raises(TableVersionError, match=r"conformance/profile/1 .* version 0"):
            offline.version(TABLE, 0)

    def test_a_place_for_new_files_makes_no_table(self, offline: OfflineStore) -> None:
        assert offline.staging(TABLE).is_dir()
        assert offline.staging(TABLE) == offline.staging(TABLE)
        assert offline.current(TABLE) is None
        assert offline.tables("conformance") == []

    def test_a_commit_is_read_as_it_was_written(self, offline: OfflineStore) -> None:
        rows = [row(1, event_us=-1), row(2, event_us=1_001, delay=None), row(3, event_us=2**50, delay=float("inf"))]
        path = write_rows(offline, rows)
        written = pq.ParquetFile(path).read().to_pylist()
        version = offline.commit(TABLE, SCHEMA, base=None, add=[path])
        assert read_rows(offline, version) == written
        assert version == offline.current(TABLE) == offline.version(TABLE, version.number)
        assert not path.exists()

    def test_rows_are_written_and_files_opened_by_the_store_itself(self, offline: OfflineStore, tamper: Tamper) -> None:
        rows = pq.ParquetFile(write_rows(offline, [row(2), row(1)])).read()
        path = offline.write(TABLE, rows)
        assert path.parent == offline.staging(TABLE)
        (file,) = offline.commit(TABLE, SCHEMA, base=None, add=[path]).files
        with offline.open(file) as found:
            assert pq.ParquetFile(found).read().equals(rows)
        assert found.closed
        tamper(file, None)
        with pytest.raises(DamagedFileError, match="cannot be read") as caught:
            offline.open(file)
        assert caught.value.details["path"] == file.path

    def test_files_of_another_table_are_added_and_stay_in_it(self, offline: OfflineStore) -> None:
        source = append(offline, [row(2)], append(offline, [row(1)]))
        other = TableId("conformance", "profile", 2)
        carried = offline.commit(other, SCHEMA, base=None, add=source.files)
        assert read_rows(offline, carried) == read_rows(offline, source)
        assert (carried.next_sequence, offline.current(TABLE)) == (source.next_sequence, source)
        with pytest.raises(ConcurrentCommitError):
            offline.commit(other, SCHEMA, base=None, add=source.files)
        assert list(offline.staging(other).iterdir()) == []
        offline.clean(TABLE, keep=None)
        offline.verify(carried.files, again=True)

    def test_a_version_knows_its_files(self, offline: OfflineStore) -> None:
        instants = [-62_135_596_800_000_000, -1, 999, 253_402_300_799_999_999]
        version = append(offline, [row(number, event_us=at) for number, at in enumerate(instants)])
        (file,) = version.files
        content = read_bytes(offline, file)
        assert (version.table, version.rows, file.rows) == (TABLE, 4, 4)
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert file.min_event_us == instants[0]
        assert file.max_event_us >= instants[-1]

    def test_bounds_hold_every_event_within_a_millisecond(self, offline: OfflineStore) -> None:
        version = append(offline, [row(1, event_us=-1_001), row(2, event_us=1_001)])
        (file,) = version.files
        assert -2_000 <= file.min_event_us <= -1_001
        assert 1_001 <= file.max_event_us <= 2_000

    def test_an_append_keeps_what_was_there(self, offline: OfflineStore) -> None:
        first = append(offline, [row(1)])
        second = append(offline, [row(2)], first)
        third = append(offline, [row(3), row(4)], second)
        assert numbers(offline, third) == [1, 2, 3, 4]
        assert first.number < second.number < third.number
        assert [file.path for file in third.files] == sorted(file.path for file in third.files)
        for version in (first, second, third):
            assert offline.version(TABLE, version.number) == version
        assert numbers(offline, offline.version(TABLE, first.number)) == [1]

    def test_sequence_numbers_are_never_given_twice(self, offline: OfflineStore) -> None:
        first = append(offline, [row(1), row(2)])
        second = append(offline, [row(3)], first)
        assert (first.next_sequence, second.next_sequence) == (2, 3)
        third = offline.commit(TABLE, SCHEMA, base=second.number, add=[], remove=second.files)
        assert (third.rows, third.next_sequence) == (0, 3)
        fourth = append(offline, [row(4)], third)
        assert [found[SEQUENCE] for found in read_rows(offline, fourth)] == [3]

    def test_a_table_may_begin_empty(self, offline: OfflineStore) -> None:
        version = offline.commit(TABLE, SCHEMA, base=None, add=[])
        assert (version.rows, version.next_sequence) == (0, 0)
        assert numbers(offline, append(offline, [row(1)], version)) == [1]

    def test_several_files_come_in_one_commit(self, offline: OfflineStore) -> None:
        paths = [write_rows(offline, [row(n)], first_sequence=n) for n in range(3)]
        version = offline.commit(TABLE, SCHEMA, base=None, add=paths)
        assert numbers(offline, version) == [0, 1, 2]
        assert len(version.files) == 3

    def test_a_commit_from_an_old_version_is_refused_and_changes_nothing(self, offline: OfflineStore) -> None:
        first = append(offline, [row(1)])
        second = append(offline, [row(2)], first)
        path = write_rows(offline, [row(3)], first_sequence=second.next_sequence)
        content = path.read_bytes()
        with pytest.raises(ConcurrentCommitError, match="conformance/profile/1"):
            offline.commit(TABLE, SCHEMA, base=first.number, add=[path])
        assert offline.current(TABLE) == second
        assert offline.clean(TABLE, keep=[first.number, second.number]) == 0
        # The caller tries again with the files that it staged.
        assert list(offline.staging(TABLE).iterdir()) == [path]
        assert path.read_bytes() == content
        assert numbers(offline, offline.commit(TABLE, SCHEMA, base=second.number, add=[path])) == [1, 2, 3]
        assert not path.exists()

    def test_a_table_is_created_once(self, offline: OfflineStore) -> None:
        first = append(offline, [row(1)])
        with pytest.raises(ConcurrentCommitError):
            append(offline, [row(2)])
        assert offline.current(TABLE) == first

    def test_of_writers_from_one_version_exactly_one_wins(self, offline: OfflineStore) -> None:
        base: TableVersion | None = None
        for _ in range(5):
            outcomes = _race(offline, base, writers=4)
            assert sorted(outcomes) == [False, False, False, True]
            base = offline.current(TABLE)
        assert base is not None
        assert [found[SEQUENCE] for found in read_rows(offline, base)] == [0, 1, 2, 3, 4]

    def test_removing_and_adding_is_one_commit(self, offline: OfflineStore) -> None:
        first = append(offline, [row(1)])
        second = append(offline, [row(2)], first)
        path = write_rows(offline, [row(9)], first_sequence=second.next_sequence)
        third = offline.commit(TABLE, SCHEMA, base=second.number, add=[path], remove=first.files)
        assert third.number == second.number + 1
        assert numbers(offline, third) == [2, 9]
        assert numbers(offline, offline.version(TABLE, second.number)) == [1, 2]

    def test_changes_tell_what_came_and_went(self, offline: OfflineStore) -> None:
        first = append(offline, [row(1)])
        second = append(offline, [row(2)], first)
        third = offline.commit(TABLE, SCHEMA, base=second.number, add=[], remove=first.files)
        from_nothing = offline.changes(TABLE, None, second.number)
        assert (set(from_nothing.added), from_nothing.removed) == (set(second.files), ())
        over_both = offline.changes(TABLE, first.number, third.number)
        assert set(over_both.added) == set(second.files) - set(first.files)
        assert over_both.removed == first.files
        nothing = offline.changes(TABLE, third.number, third.number)
        assert (nothing.added, nothing.removed) == ((), ())

    def test_a_feature_may_come_later(self, offline: OfflineStore) -> None:
        more = TableSchema(SCHEMA.join_keys, (*SCHEMA.stored, ("tags", Array(String)), ("price", Decimal(10, 2))))
        first = append(offline, [row(1)])
        second = append(offline, [row(2)], first, schema=more, extra={"tags": [["a", None]], "price": [None]})
        assert [found["tags"] for found in read_rows(offline, second)] == [None, ["a", None]]
        assert numbers(offline, offline.version(TABLE, first.number)) == [1]
        third = append(offline, [row(3)], second)
        assert [found["tags"] for found in read_rows(offline, third)] == [None, ["a", None], None]

    def test_types_widen_in_every_file(self, offline: OfflineStore) -> None:
        wide = TableSchema(
            (("carrier", String), ("number", Int64)), (("delay", Float64), ("seats", Int64), ("new", Float64))
        )
        first = append(offline, [row(1, delay=0.1), row(2, delay=None)])
        second = append(offline, [row(3)], first)
        kept = offline.commit(TABLE, SCHEMA, base=second.number, add=[], remove=first.files)
        third = append(offline, [row(2**40, delay=0.1)], kept, schema=wide, extra={"new": [2.5]})
        assert numbers(offline, third) == [3, 2**40]
        assert [found["new"] for found in read_rows(offline, third)] == [None, 2.5]
        assert [found[SEQUENCE] for found in read_rows(offline, third)] == [2, 3]
        for file in third.files:
            schema = read_file(offline, file).schema
            assert (schema.field("number").type, schema.field("delay").type) == (pa.int64(), pa.float64())
        assert numbers(offline, offline.version(TABLE, second.number)) == [1, 2, 3]

    def test_widening_a_damaged_file_is_refused_and_changes_nothing(
        self, offline: OfflineStore, tamper: Tamper
    ) -> None:
        wide = TableSchema((("carrier", String), ("number", Int64)), SCHEMA.stored)
        first = append(offline, [row(number) for number in range(100)])
        second = append(offline, [row(100)], first)
        offline.verify(second.files)  # what is remembered must not do
        (damaged,) = first.files
        content = bytearray(read_bytes(offline, damaged))
        content[len(content) // 3] ^= 1
        tamper(damaged, bytes(content), is_seen=False)
        path = write_rows(offline, [row(2**40)], first_sequence=101, schema=wide)
        with pytest.raises(DamagedFileError) as caught:
            offline.commit(TABLE, wide, base=second.number, add=[path])
        assert caught.value.details["path"] == damaged.path
        assert offline.current(TABLE) == second
        assert list(offline.staging(TABLE).iterdir()) == [path]
        # What a commit takes out is not written again.
        third = offline.commit(TABLE, wide, base=second.number, add=[path], remove=first.files)
        assert numbers(offline, third) == [100, 2**40]

    def test_any_other_change_of_type_is_refused(self, offline: OfflineStore) -> None:
        first = append(offline, [row(1)])
        text = TableSchema(SCHEMA.join_keys, (("delay", Float32), ("seats", String)))
        with pytest.raises(OfflineStoreError, match=r"'seats'.*Int32.*String"):
            offline.commit(TABLE, text, base=first.number, add=[])
        assert offline.current(TABLE) == first

    def test_a_file_that_is_none_of_the_table_is_refused(self, offline: OfflineStore) -> None:
        path = offline.staging(TABLE) / "foreign.parquet"
        pq.write_table(pa.table({"x": [1]}), path)
        with pytest.raises(OfflineStoreError, match=r"foreign\.parquet"):
            offline.commit(TABLE, SCHEMA, base=None, add=[path])
        path.write_text("carrier,number")
        with pytest.raises(OfflineStoreError, match=r"foreign\.parquet"):
            offline.commit(TABLE, SCHEMA, base=None, add=[path])
        assert offline.current(TABLE) is None

    @pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "remove"])
    def test_damage_is_found(self, offline: OfflineStore, tamper: Tamper, damage: str) -> None:
        version = append(offline, [row(number) for number in range(100)])
        (file,) = version.files
        offline.verify(version.files)
        tamper(file, _damaged(read_bytes(offline, file), damage))
        with pytest.raises(DamagedFileError, match="is damaged") as caught:
            offline.verify(version.files)
        assert file.path in str(caught.value)
        assert caught.value.details["path"] == file.path

    def test_hashes_are_remembered_until_asked_again(self, offline: OfflineStore) -> None:
        version = append(offline, [row(1)])
        forged = [DataFile(**{**_fields(file), "sha256": "0" * 64}) for file in version.files]
        with pytest.raises(DamagedFileError, match="SHA-256"):
            offline.verify(forged)
        offline.verify(version.files)
        offline.verify(version.files, again=True)

    def test_cleaning_keeps_what_is_pinned_and_the_newest(self, offline: OfflineStore) -> None:
        first = append(offline, [row(1)])
        second = offline.commit(
            TABLE, SCHEMA, base=first.number, add=[write_rows(offline, [row(2)], first_sequence=1)], remove=first.files
        )
        third = offline.commit(
            TABLE,
            SCHEMA,
            base=second.number,
            add=[write_rows(offline, [row(3)], first_sequence=2)],
            remove=second.files,
        )
        assert offline.clean(TABLE, keep=[first.number]) == 1
        assert numbers(offline, offline.version(TABLE, first.number)) == [1]
        assert numbers(offline, third) == [3]
        with pytest.raises(TableVersionError, match=f"Version {second.number} .* gone"):
            offline.version(TABLE, second.number)
        assert offline.clean(TABLE, keep=[first.number]) == 0
        assert offline.changes(TABLE, second.number, third.number).removed == second.files

    def test_cleaning_leaves_work_under_way_alone(self, offline: OfflineStore) -> None:
        path = write_rows(offline, [row(1)])
        assert offline.clean(TABLE, keep=[]) == 0
        assert numbers(offline, offline.commit(TABLE, SCHEMA, base=None, add=[path])) == [1]

    def test_cleaning_with_a_pinned_version_that_is_gone_removes_nothing(self, offline: OfflineStore) -> None:
        first = append(offline, [row(1)])
        offline.commit(TABLE, SCHEMA, base=first.number, add=[], remove=first.files)
        with pytest.raises(TableVersionError):
            offline.clean(TABLE, keep=[99])
        assert numbers(offline, offline.version(TABLE, first.number)) == [1]

    def test_a_dropped_table_is_gone_and_its_neighbours_stay(self, offline: OfflineStore) -> None:
        version = append(offline, [row(1)])
        neighbour = TableId("conformance", "profile", 2)
        offline.commit(neighbour, SCHEMA, base=None, add=[])
        assert offline.clean(TABLE, keep=None) >= 1
        assert offline.current(TABLE) is None
        with pytest.raises(DamagedFileError):
            offline.open(version.files[0])
        assert offline.tables("conformance") == [neighbour]
        assert offline.clean(TABLE, keep=None) == 0
        assert numbers(offline, append(offline, [row(5)])) == [5]

    def test_tables_are_listed_by_project_in_order(self, offline: OfflineStore) -> None:
        wanted = [TableId("conformance", view, generation) for view in ("a", "b_2") for generation in (1, 2, 10)]
        for table in reversed(wanted):
            offline.commit(table, SCHEMA, base=None, add=[])
        offline.commit(TableId("conformance2", "a", 1), SCHEMA, base=None, add=[])
        assert offline.tables("conformance") == wanted

    @pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a\0b", "a" * 200])
    def test_names_that_leave_the_store_are_refused(self, offline: OfflineStore, name: str) -> None:
        for table in (TableId(name, "view", 1), TableId("project", name, 1)):
            with pytest.raises(OfflineStoreError, match="table's name"):
                offline.current(table)


def _race(offline: OfflineStore, base: TableVersion | None, *, writers: int) -> list[bool]:
    """Let several threads commit from one version at once; returns who won."""
    gate = threading.Barrier(writers)
    first = 0 if base is None else base.next_sequence
    outcomes: list[bool] = []

    def write() -> None:
        path = write_rows(offline, [row(1)], first_sequence=first)
        gate.wait()
        try:
            offline.commit(TABLE, SCHEMA, base=None if base is None else base.number, add=[path])
        except ConcurrentCommitError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _damaged(content: bytes, damage: str) -> bytes | None:
    middle = len(content) // 2
    found = {
        "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "truncate": content[:-10],
        "grow": content + b"more",
    }
    return found.get(damage)


def _fields(file: DataFile) -> dict[str, Any]:
    return {name: getattr(file, name) for name in DataFile.__slots__}
