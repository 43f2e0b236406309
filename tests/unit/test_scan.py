"""DuckDB's own on the way into the log: its types and SQL, its files, and the bounds of its memory and disk."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.disks import small_disk
from support.sources import ALWAYS, instants, paths_of, stage, staged_rows, table_of, view_of, write

from featurestore.definitions import Entity, FeatureView, Field, ParquetSource
from featurestore.engine.duck.engine import open_engine
from featurestore.engine.duck.session import EngineSettings
from featurestore.engine.interface import Span
from featurestore.errors import DiskFullError, EngineError, SourceError, SourceSchemaError
from featurestore.plan.schemas import pin_schemas
from featurestore.testing.engine_project import damage
from featurestore.types import Array, Float64, Int32, Int64, String


@pytest.mark.uncounted
def test_result_depends_neither_on_threads_nor_on_row_groups(tmp_path):
    chance = random.Random(5)
    for number in range(3):
        rows = 4_000
        table = pa.table(
            {
                "k": pa.array([chance.randrange(50) for _ in range(rows)]),
                "at": instants(*(chance.randrange(20) for _ in range(rows))),
                "v": pa.array([chance.random() for _ in range(rows)]),
            }
        )
        write(tmp_path / "data" / f"{number}.parquet", table, row_group_size=chance.choice([100, 1_000, 4_000]))
    sql = 'SELECT k, "at", v FROM flights'
    for query in (None, sql):
        seen = set()
        for threads in (1, 2, 3, 4, 1, 4):
            rows = staged_rows(tmp_path, view_of("data", sql=query), settings=EngineSettings(threads=threads))
            seen.add(tuple(tuple(row.values()) for row in rows))
        assert len(seen) == 1
        assert len(rows) == 50 * 20


def test_a_large_result_is_one_compressed_file_of_several_row_groups(tmp_path):
    """That it lies in order, over all of them, is the suite's."""
    rows = 130_000
    write(tmp_path / "data.parquet", table_of(k=pa.array(range(rows)), at=instants(*(-n % 1_000 for n in range(rows)))))
    staged = stage(tmp_path, view_of(), settings=EngineSettings(threads=4), first_sequence=10**12)
    (path,) = paths_of(staged)
    file = pq.ParquetFile(path)
    assert file.num_row_groups > 1
    assert sorted(file.read()["fs_seq"].to_pylist()) == list(range(10**12, 10**12 + rows))
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_sequence_numbers_are_places_in_files(tmp_path):
    for number, name in enumerate(["b.parquet", "a/z.parquet", "c.parquet"]):
        write(tmp_path / "data" / name, table_of(k=pa.array([number, number + 10]), at=instants(5, 5)))
    rows = staged_rows(tmp_path, view_of("data"), first_sequence=100)
    assert [(row["k"], row["fs_seq"]) for row in rows] == [
        (1, 100),
        (11, 101),
        (0, 102),
        (10, 103),
        (2, 104),
        (12, 105),
    ]
    # They do not depend on what else is read.
    only = [Span(ALWAYS.start_us, ALWAYS.end_us, files=("data/b.parquet",))]
    assert [row["fs_seq"] for row in staged_rows(tmp_path, view_of("data"), first_sequence=100, spans=only)] == [
        102,
        103,
    ]


# SQL ---------------------------------------------------------------------------------------------------------------


def joined(sql: str) -> FeatureView:
    """Return a view over two sources."""
    return FeatureView(
        "joined",
        entities=[Entity("thing", join_keys={"k": Int64})],
        source=[
            ParquetSource("flights", "flights.parquet", "at", "known"),
            ParquetSource("weather", "weather", "hour"),
        ],
        schema=[Field("v", Float64), Field("n", Int64)],
        sql=sql,
    )


@pytest.fixture
def joined_root(tmp_path: Path) -> Path:
    write(tmp_path / "flights.parquet", table_of(known=instants(2_500, None, 2_500, unit="ns", zone=None)))
    write(tmp_path / "weather" / "day=1" / "w.parquet", pa.table({"hour": instants(0, 0), "temp": [1.0, None]}))
    return tmp_path


def test_a_type_of_sql_that_does_not_fit_is_told(joined_root):
    with pytest.raises(SourceSchemaError, match="does not fit the output of its SQL") as caught:
        stage(joined_root, joined('SELECT k, "at", k::UBIGINT AS n FROM flights, weather'))
    assert caught.value.details["problems"] == [
        "created time 'known' is missing. Known are: at, k, n.",
        "feature 'v' is missing. Known are: at, k, n.",
        "feature 'n' is declared Int64, found UBIGINT",
    ]


@pytest.mark.parametrize("kind", ["HUGEINT", "UHUGEINT"])
def test_sums_of_integers_are_int64_by_value(joined_root, kind):
    whole = f'SELECT k, "at", known, v, sum(k) OVER ()::{kind} AS n FROM flights, weather'
    assert {row["n"] for row in staged_rows(joined_root, joined(whole))} == {6}
    columns = open_engine(joined_root).sources.columns(joined(whole))
    assert {c.name: c.value_type for c in columns}["n"] == Int64
    for number in (2**63 - 1, 2**63, *([] if kind[0] == "U" else [-(2**63), -(2**63) - 1])):
        view = joined(f'SELECT k, "at", known, v, CASE WHEN k > 1 THEN {number}::{kind} END AS n FROM flights, weather')
        if -(2**63) <= number < 2**63:
            assert {row["k"]: row["n"] for row in staged_rows(joined_root, view)} == {0: None, 1: None, 2: number}
            continue
        with pytest.raises(SourceError, match=f"Column 'n' holds {number}, which is beyond Int64"):
            stage(joined_root, view)


@pytest.mark.parametrize(
    ("declared", "column", "cast"),
    [
        (Int32, "sum(k) OVER ()", "INTEGER"),
        (Array(Int64), "[1::HUGEINT]", "BIGINT[]"),
        (Array(Int64), "[1::UHUGEINT]", "BIGINT[]"),
    ],
    ids=str,
)
def test_a_sum_of_integers_says_how_it_becomes_what_is_declared(tmp_path, declared, column, cast):
    write(tmp_path / "data.parquet", table_of())

    def view(n):
        return view_of(features={"n": declared}, sql=f'SELECT k, "at", n FROM (SELECT *, {n} AS n FROM flights)')

    with pytest.raises(SourceSchemaError, match=r"'n' is declared .*, found U?HUGEINT") as caught:
        stage(tmp_path, view(column))
    assert f'write CAST("n" AS {cast}) in the SQL' in caught.value.hint
    assert len(staged_rows(tmp_path, view(f"CAST({column} AS {cast})"))) == 3
    if declared == Array(Int64):
        undeclared = view(column).replaced(fields=None)
        with pytest.raises(SourceSchemaError, match="which no feature can have") as caught:
            pin_schemas([undeclared], {}, open_engine(tmp_path), refresh=False)
        assert f'Write CAST("n" AS {cast})' in caught.value.hint


def test_sql_of_odd_types(joined_root):
    odd = "SELECT uuid() AS u, '1'::BIT AS b, INTERVAL 1 DAY AS i, [1::HUGEINT] AS h, {'a': 1} AS s, TIME '10:00' AS t"
    columns = open_engine(joined_root).sources.columns(joined(f"{odd}, 'a'::ENUM('a') AS e FROM flights, weather"))
    assert {c.name: c.value_type for c in columns} == {
        "u": String, "b": None, "i": None, "h": None, "s": None, "t": None, "e": String,
    }  # fmt: skip


SECRETS = [
    "SELECT content AS v FROM read_text('{secret}')",
    "SELECT * FROM read_parquet('{secret}')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM '{secret}'",
    "COPY (SELECT 1) TO '{folder}/out.csv'",
    "ATTACH '{folder}/x.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET memory_limit = '1TB'",
    "RESET allowed_paths",
    "SELECT * FROM python_variable",
]


@pytest.mark.uncounted
@pytest.mark.parametrize("statement", SECRETS)
def test_sql_sees_nothing_but_the_sources(joined_root, tmp_path_factory, statement):
    """Definitions refuse most of these while they are parsed; the connection must not rest on that."""
    from featurestore.engine.duck.scan import opened
    from featurestore.engine.duck.session import Session

    folder = tmp_path_factory.mktemp("secret")
    secret = write(folder / "secret.parquet", pa.table({"v": ["a secret"]}))
    python_variable = pa.table({"v": ["a secret"]})
    assert python_variable.num_rows == 1
    view = joined('SELECT k, "at", known, v, k AS n FROM flights, weather')
    with opened(Session(joined_root, EngineSettings()), view, writes=joined_root / "staging") as scanned:
        with pytest.raises(duckdb.Error):
            scanned.connection.execute(statement.format(secret=secret, folder=folder)).fetchall()
        # What the connection may do still works.
        assert scanned.connection.execute("SELECT count(*) FROM flights").fetchall() == [(3,)]
    assert [path.name for path in folder.iterdir()] == ["secret.parquet"]


def test_sources_of_sql_show_nanoseconds_as_instants(tmp_path):
    """DuckDB has hardly a function for TIMESTAMPTZ_NS; users' SQL sees what it can work with."""
    table = table_of(
        at=instants(1_001, unit="ns", zone=None), seen=instants(1_999, unit="ns", zone=None), k=pa.array([1])
    )
    write(tmp_path / "data.parquet", table)
    sql = 'SELECT k, "at" + INTERVAL 1 MICROSECOND AS "at", epoch_us(seen) AS v FROM flights'
    (row,) = staged_rows(tmp_path, view_of(features={"v": Int64}, sql=sql))
    assert (row["event_ts"].microsecond, row["v"]) == (3, 1)


# Bounds ------------------------------------------------------------------------------------------------------------


def wide_source(root: Path, rows: int) -> FeatureView:
    chance = random.Random(1)
    texts = pa.array([f"{chance.random()}" * 5 for _ in range(2_000)])
    columns = {f"t{number}": pa.concat_arrays([texts] * (rows // 2_000)) for number in range(4)}
    times = instants(*(chance.randrange(10**6) for _ in range(2_000)))
    table = table_of(k=pa.array(range(rows)), at=pa.concat_arrays([times] * (rows // 2_000)), **columns)
    write(root / "data.parquet", table, compression="zstd")
    return view_of(features=dict.fromkeys(columns, String))


@pytest.mark.uncounted
def test_what_does_not_fit_into_memory_goes_to_the_disk(tmp_path):
    view = wide_source(tmp_path, rows=300_000)
    settings = EngineSettings(memory_limit="100MB", threads=1, temp_directory="spill/here")
    staged = stage(tmp_path, view, settings=settings)
    assert staged.appended == 300_000
    assert list((tmp_path / "spill" / "here").iterdir()) == []


def test_too_little_memory_is_told_with_the_settings_to_raise(tmp_path):
    view = wide_source(tmp_path, rows=20_000)
    with pytest.raises(EngineError, match="ran out of memory") as caught:
        stage(tmp_path, view, settings=EngineSettings(memory_limit="2MB", threads=1))
    assert "memory_limit" in caught.value.hint
    assert "temp_directory" in caught.value.hint
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_full_disk_is_told_and_leaves_no_file(tmp_path):
    view = wide_source(tmp_path, rows=40_000)
    with small_disk(tmp_path / "staging", size="128k") as is_small:
        if is_small:
            with pytest.raises(DiskFullError, match=r"left in .*staging while .* source\. Free some space on"):
                stage(tmp_path, view)
            assert list((tmp_path / "staging").iterdir()) == []
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from featurestore.errors import DiskFullError
from featurestore.types import String
from support.disks import small_files
from support.sources import stage, view_of
with small_files(100_000):
    try:
        stage(Path({str(tmp_path)!r}), view_of(features=dict.fromkeys(["t0", "t1"], String)))
    except DiskFullError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.stdout == (
        f"No space was left in {tmp_path / 'staging'} while the engine tried to read the source. Free some space on "
        "that disk and run it again: what was there before is still readable.\n"
    ), done.stderr
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.uncounted
def test_an_incremental_read_of_a_large_source_skips_most_of_it(tmp_path):
    """Row groups outside the span are not unpacked: a day of a year costs much less than the year."""
    rows = 400_000
    text = pa.array([f"{number}-{'x' * 40}" for number in range(rows)])
    write(tmp_path / "data.parquet", table_of(k=pa.array(range(rows)), v=text), row_group_size=10_000)
    view = view_of(features={"v": String})
    begun = time.perf_counter()
    assert stage(tmp_path, view).appended == rows
    whole_seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    assert stage(tmp_path, view, spans=[Span(1_000, 1_100)]).appended == 100
    part_seconds = time.perf_counter() - begun
    assert part_seconds < whole_seconds / 2


def test_only_files_that_may_hold_a_wanted_row_are_read(tmp_path):
    """As their footers say: the first one is damaged, and nobody finds out."""
    rows = 2_000
    old = table_of(k=pa.array(range(rows)), at=instants(*[1, 2] * (rows // 2)), made=instants(*[3] * rows))
    damage(write(tmp_path / "data" / "old.parquet", old), 4, 600)
    nothing = pa.nulls(1, pa.timestamp("us"))
    of_one_row = {
        "later": {"at": instants(9), "made": nothing},
        "untimed": {"at": instants(None), "made": instants(2)},
        "late": {"at": instants(2), "made": instants(8)},
        "fine": {"at": instants(3_999, unit="ns"), "made": nothing},
    }
    for name, times in of_one_row.items():
        write(tmp_path / "data" / f"{name}.parquet", table_of(k=pa.array([1]), **times))
    view, late = view_of("data", created="made"), Span(0, 100, created_after_us=7)
    found = stage(tmp_path, view, spans=[Span(4, 6), late], now_us=5, counts_later=True)
    assert (found.read, found.null_times, found.waiting, found.appended) == (4, 1, 2, 1)
    found = stage(tmp_path, view, spans=[Span(4, 6)], now_us=5)
    assert (found.read, found.null_times, found.appended) == (2, 1, 1)
    found = stage(tmp_path, view, spans=[Span(0, 0)], now_us=5, counts_later=True)
    assert (found.read, found.waiting) == (2, 1)
    with pytest.raises(SourceError):
        stage(tmp_path, view, spans=[late, Span(0, 2)], now_us=5)
