"""Which files are merged when, and what is written."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import instants, write

from featurestore.errors import DamagedFileError, OfflineStoreError
from featurestore.offline.interface import DataFile, TableId
from featurestore.offline.local.store import DeltaStore
from featurestore.offline.merge import MOST_OF_TIER, MOST_SMALL, SMALL_BYTES, due, write_in_memory
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE

KIB, MIB = 1 << 10, 1 << 20
TABLE = TableId("shop", "orders", 1)


def data_file(size_bytes: int, name: str = "", rows: int = 1) -> DataFile:
    return DataFile(name or f"{size_bytes}", rows, size_bytes, "", 0, 0, None, 0)


def files(*sizes: int) -> list[DataFile]:
    return [data_file(size, f"{number:06}") for number, size in enumerate(sizes)]


def sizes(chosen: list[DataFile]) -> list[int]:
    return [file.size_bytes for file in chosen]


def test_few_files_stay_as_they_are():
    assert due([]) == []
    assert due(files(*[3 * KIB] * MOST_SMALL, *[100 * KIB] * MOST_OF_TIER, *[9 * MIB] * MOST_OF_TIER)) == []


def test_small_files_are_merged_when_there_are_many():
    small = [3 * KIB] * (MOST_SMALL + 1)
    assert sizes(due(files(*small, SMALL_BYTES, 900 * MIB))) == small


def test_a_tier_takes_those_below_along():
    chosen = due(files(*[2 * KIB] * 3, *[100 * KIB] * (MOST_OF_TIER + 1), 5 * MIB))
    assert sizes(chosen) == [2 * KIB] * 3 + [100 * KIB] * (MOST_OF_TIER + 1)


def test_large_files_are_merged_up_to_a_bound_and_the_largest_never():
    assert sum(sizes(due(files(*[60 * MIB] * 20)))) == 480 * MIB
    assert due(files(*[300 * MIB] * 100)) == []
    assert due(files(*[200 * MIB] * 100)) == []  # two at a time would write each again and again


def test_what_is_merged_in_memory_is_bounded():
    assert sum(sizes(due(files(*[600 * KIB] * 20), most_bytes=8 * MIB))) <= 8 * MIB
    assert due(files(*[5 * MIB] * 20, 2 * KIB), most_bytes=8 * MIB) == []
    many = [data_file(2 * KIB, f"{number}", rows=1000) for number in range(30)]
    assert len(due(many, most_rows=20_000)) == 20


@pytest.mark.uncounted
@pytest.mark.parametrize("size_bytes", [2 * KIB, 80 * KIB])
def test_each_row_is_written_a_few_times_however_many_commits_come(size_bytes):
    """One file of one row a commit, in which the bytes of a row shrink as rows come together; and one that does not."""
    dice = random.Random(1)
    table: list[DataFile] = []
    written = most = 0
    commits = 20_000
    for number in range(commits):
        table.append(data_file(size_bytes + dice.randrange(100), f"{number}"))
        most = max(most, len(table))
        chosen = due(table)
        if chosen:
            rows = sum(file.rows for file in chosen)
            merged = data_file(size_bytes + 20 * rows, f"m{number}", rows)
            written += merged.size_bytes
            table = [file for file in table if file not in chosen] + [merged]
    assert most <= MOST_SMALL + 4 * MOST_OF_TIER
    assert sum(file.rows for file in table) == commits
    assert written < 1.5 * commits * size_bytes


def log_file(path: Path, rows: list[dict[str, Any]], **types: pa.DataType) -> DataFile:
    columns = {
        "k": pa.array([row["k"] for row in rows], pa.int64()),
        EVENT: instants(*(row["event"] for row in rows)),
        CREATED: instants(*(row["created"] for row in rows)),
        SEQUENCE: pa.array([row["seq"] for row in rows], pa.int64()),
        ORIGIN: pa.array([row["origin"] for row in rows]),
        **{name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()},
    }
    write(path, pa.table(columns))
    return data_file(path.stat().st_size, str(path), len(rows))


def random_files(folder: Path) -> tuple[list[DataFile], list[dict[str, Any]]]:
    """Return files as several writers leave them, and their rows in a table's order."""
    dice = random.Random(3)
    found, rows = [], []
    for number in range(9):
        own = []
        for place in range(dice.randrange(1, 6)):
            event = dice.randrange(5)
            own.append(
                {
                    "k": dice.randrange(3),
                    "event": event,
                    "created": dice.choice([None, event, event + 1]),
                    "seq": 10 * number + place,
                    "origin": dice.choice(["batch", "push"]),
                    "v": dice.choice([None, number]),
                    "late": [None, number] if number % 2 else None,
                }
            )
        types = {"v": pa.int64(), "late": pa.list_(pa.int64())}
        if not number % 2:
            del types["late"]
        found.append(log_file(folder / f"{number}.parquet", own, **types))
        rows += own
    known = {row["seq"]: row["event"] if row["created"] is None else row["created"] for row in rows}
    return found, sorted(rows, key=lambda row: (row["event"], known[row["seq"]], row["seq"]))


def test_merged_rows_lie_in_the_tables_order_with_every_column(tmp_path):
    found, rows = random_files(tmp_path)
    (made,) = write_in_memory(DeltaStore(tmp_path / "store"), TABLE, found)
    table = pq.ParquetFile(made).read()
    assert [row[SEQUENCE] for row in table.to_pylist()] == [row["seq"] for row in rows]
    assert [row["late"] for row in table.to_pylist()] == [row["late"] for row in rows]
    for name, wanted in ((EVENT, "event"), (CREATED, "created")):
        assert (
            table[name].cast(pa.int64()).to_pylist() == instants(*(r[wanted] for r in rows)).cast("int64").to_pylist()
        )
    assert [(row["k"], row["v"], row[ORIGIN]) for row in table.to_pylist()] == [
        (row["k"], row["v"], row["origin"]) for row in rows
    ]
    assert table.schema.names[:6] == ["k", EVENT, CREATED, SEQUENCE, ORIGIN, "v"]


def test_a_file_that_is_none_is_told(tmp_path):
    (tmp_path / "x.parquet").write_text("nothing")
    offline = DeltaStore(tmp_path / "store")
    with pytest.raises(DamagedFileError, match=r"x\.parquet of the offline store cannot be read"):
        write_in_memory(offline, TABLE, [data_file(7, str(tmp_path / "x.parquet"))])
    numbers, texts = tmp_path / "numbers.parquet", tmp_path / "texts.parquet"
    write(numbers, pa.table({"v": [1]}))
    write(texts, pa.table({"v": ["a"]}))
    with pytest.raises(OfflineStoreError, match="cannot be merged"):
        write_in_memory(offline, TABLE, [data_file(7, str(path)) for path in (numbers, texts)])
