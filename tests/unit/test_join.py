"""Directed cases of the point-in-time join and its examination; `properties/test_point_in_time.py` holds the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import date
from decimal import Decimal as PythonDecimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.logs import INSTANT, instants, make_view, write_log

from featurestore.engine.duck import join as join_module
from featurestore.engine.duck.examine import examine, history
from featurestore.engine.duck.join import join
from featurestore.engine.duck.session import EngineSettings, Session
from featurestore.engine.interface import AsOf, ViewJoin
from featurestore.errors import CertificateError, DamagedFileError, EngineError
from featurestore.training.reference import ReferenceRow
from featurestore.types import (
    Array,
    Bool,
    Bytes,
    Date,
    Decimal,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
    ValueType,
)
from featurestore.types.arrow import arrow_type
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT

SECOND = 1_000_000
NOON = 1_700_000_000 * SECOND


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path, EngineSettings(threads=2))


def row(key: Any, event_us: int, created_us: int | None = None, sequence: int = 0, **values: Any) -> ReferenceRow:
    return ReferenceRow(key if isinstance(key, tuple) else (key,), event_us, created_us, sequence, values)


def one_view(
    folder: Path, rows: list[ReferenceRow], *, ttl_us: int | None = None, as_of: AsOf = "available", split: int = 0
) -> ViewJoin:
    """Return a join of one view keyed by ``shop`` with the feature ``v``; rows from ``split`` on are a second file."""
    view = make_view("shops", {"shop": Int64}, {"v": Int64}, ttl_us)
    parts = [rows[:split], rows[split:]] if split else [rows]
    files = tuple(write_log(folder / f"{place}.parquet", view, part) for place, part in enumerate(parts))
    return ViewJoin("shops", view, files, {"shop": "shop"}, ("v",), as_of)


def frame_of(shops: list[int | None], times: list[int]) -> pa.Table:
    return pa.table({"shop": pa.array(shops, pa.int64()), "when": instants(times)})


def values(session: Session, view: ViewJoin, *asked: tuple[int | None, int]) -> list[Any]:
    """Return the feature ``v`` for each asked (shop, time)."""
    frame = frame_of([shop for shop, _ in asked], [time for _, time in asked])
    return join(session, frame, "when", [view], batch_rows=1000).read_all().column(0).to_pylist()


def test_bulk_load_with_one_created_time(session: Session, tmp_path: Path) -> None:
    """All rows become available at once: a running best by rows instead of peers answers with any of them."""
    loaded = NOON + 3600 * SECOND
    rows = [row(1, NOON + event, loaded, sequence=99 - event, v=event) for event in range(50)]
    view = one_view(tmp_path, rows)
    assert values(session, view, (1, loaded - 1), (1, loaded), (1, loaded + 1)) == [None, 49, 49]
    assert values(session, view, (1, loaded)) == [49]


def test_ttl_bounds_are_inclusive(session: Session, tmp_path: Path) -> None:
    view = one_view(tmp_path, [row(1, NOON, NOON, v=7)], ttl_us=10)
    asked = [(1, NOON - 1), (1, NOON), (1, NOON + 10), (1, NOON + 11)]
    assert values(session, view, *asked) == [None, 7, 7, None]
    (facts,) = examine(session, frame_of([1] * 4, [time for _, time in asked]), "when", [view])
    assert (facts.nulls["nothing_before"], facts.nulls["expired"], facts.greatest_age_us) == (1, 1, 10)
    assert values(session, view, (1, NOON + 10)) == [7], "an event at the bound was not read"


def test_a_value_is_not_yet_available_where_event_time_alone_would_answer(session: Session, tmp_path: Path) -> None:
    rows = [row(1, NOON - 50, NOON - 50, 0, v=1), row(1, NOON, NOON + 30, 1, v=2)]
    view = one_view(tmp_path, rows, ttl_us=10)
    asked = [NOON + 10, NOON + 11]  # the second row would answer, had it been known; would not any more
    assert values(session, view, *((1, time) for time in asked)) == [None, None]
    for time, reason in zip(asked, ("not_yet_available", "expired"), strict=True):
        (facts,) = examine(session, frame_of([1], [time]), "when", [view])
        assert {name for name, count in facts.nulls.items() if count} == {reason}


def test_a_correction_counts_from_when_it_is_known(session: Session, tmp_path: Path) -> None:
    rows = [
        row(1, NOON, NOON, 0, v=1),
        row(1, NOON, NOON + 100, 1, v=2),  # corrects the first
        row(1, NOON + 10, NOON + 50, 2, v=3),
        row(1, NOON - 5, NOON + 200, 3, v=4),  # late, and older than what is known
    ]
    asked = [(1, NOON + after) for after in (-1, 0, 49, 50, 100, 200)]
    assert values(session, one_view(tmp_path, rows), *asked) == [None, 1, 1, 3, 3, 3]
    assert values(session, one_view(tmp_path, rows, as_of="event"), *asked) == [4, 2, 3, 3, 3, 3]


def test_known_before_it_happens_counts_when_it_happens(session: Session, tmp_path: Path) -> None:
    view = one_view(tmp_path, [row(1, NOON, NOON - 500, v=1)])
    assert values(session, view, (1, NOON - 1), (1, NOON)) == [None, 1]


@pytest.mark.parametrize("swapped", [False, True])
def test_full_ties_go_to_the_later_arrival_in_any_file_order(session: Session, tmp_path: Path, swapped: bool) -> None:
    view = one_view(tmp_path, [row(1, NOON, None, 5, v=5), row(1, NOON, NOON, 4, v=4)], split=1)
    files = view.files[::-1] if swapped else view.files
    assert values(session, ViewJoin("shops", view.view, files, view.key_columns, ("v",), "event"), (1, NOON)) == [5]


EVERY_TYPE: dict[str, tuple[ValueType, list[Any]]] = {
    "i32": (Int32, [-(2**31), None, 2**31 - 1]),
    "i64": (Int64, [9_223_372_036_854_775_807, None, -9_007_199_254_740_993]),
    "f32": (Float32, [0.5, None, float("-inf")]),
    "f64": (Float64, [-0.0, None, 5e-324]),
    "flag": (Bool, [True, None, False]),
    "text": (String, ["", None, "naïve 🛫\n'\""]),
    "raw": (Bytes, [b"", None, b"\x00\xff"]),
    "moment": (Timestamp, [-1, None, MAX_INSTANT]),
    "day": (Date, [date(1, 1, 1), None, date(9999, 12, 31)]),
    "money": (Decimal(38, 10), [PythonDecimal("1234567890123456789012345678.0123456789"), None, PythonDecimal(0)]),
    "many": (Array(Int64), [[1, None, 2**62 + 1], None, []]),
    "nested": (Array(Array(String)), [[["a", None], None, []], None, [[]]]),
}


def test_every_type_comes_back_as_it_is(session: Session, tmp_path: Path) -> None:
    kinds = {name: kind for name, (kind, _) in EVERY_TYPE.items()}
    view = make_view("all_types", {"shop": Int64}, kinds)
    wanted = {
        name: instants(given) if kind == Timestamp else pa.array(given, arrow_type(kind))
        for name, (kind, given) in EVERY_TYPE.items()
    }
    log = {
        "shop": pa.array([1, 2, 3]),
        "event_ts": instants([NOON] * 3),
        "created_ts": instants([None] * 3),
        "fs_seq": pa.array([0, 1, 2]),
        "fs_origin": pa.array(["push"] * 3),
    }
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({**log, **wanted}), path)
    joined = ViewJoin("all_types", view, (str(path),), {"shop": "shop"}, tuple(kinds), "available")
    # The unknown shop puts nulls beside everything, which must not turn integers into floats.
    found = join(session, frame_of([3, 9, 1, 2], [NOON] * 4), "when", [joined], batch_rows=2).read_all()
    for name, column in wanted.items():
        expected = pa.concat_arrays([column[2:3], pa.nulls(1, column.type), column[:2]])
        assert found.column(f"all_types__{name}").type == column.type
        assert found.column(f"all_types__{name}").combine_chunks().equals(expected), name
    nan = ViewJoin("all_types", view, (str(path),), {"shop": "shop"}, ("f64",), "event")
    (facts,) = examine(session, frame_of([1, 2, 3], [NOON] * 3), "when", [nan])
    assert facts.null_values == {"f64": 1}


def test_keys_of_every_type(session: Session, tmp_path: Path) -> None:
    keys: dict[str, tuple[ValueType, list[Any]]] = {
        "small": (Int32, [-1, 2**31 - 1]),
        "large": (Int64, [2**62 + 1, 2**62 + 2]),
        "text": (String, ["a|b", "a"]),
        "flag": (Bool, [False, True]),
        "day": (Date, [date(1969, 12, 31), date(2020, 2, 29)]),
        "raw": (Bytes, [b"\x00", b""]),
    }
    view = make_view("wide", {name: kind for name, (kind, _) in keys.items()}, {"v": Int64})
    rows = [row(tuple(given[place] for _, given in keys.values()), NOON, sequence=place, v=place) for place in (0, 1)]
    files = (write_log(tmp_path / "log.parquet", view, rows),)
    frame = {name: pa.array([given[1], given[0], None], arrow_type(kind)) for name, (kind, given) in keys.items()}
    frame["flag"] = pa.array([True, True, False])  # the second differs from the first row in this key alone
    joined = ViewJoin("wide", view, files, {name: name for name in keys}, ("v",), "event")
    table = pa.table({**frame, "when": instants([NOON] * 3)})
    assert join(session, table, "when", [joined], batch_rows=9).read_all().column(0).to_pylist() == [1, None, None]
    (facts,) = examine(session, table, "when", [joined])
    assert facts.nulls == {
        "null_key": 1,
        "no_entity": 1,
        "nothing_before": 0,
        "not_yet_available": 0,
        "expired": 0,
    }


def test_names_that_mean_something_to_the_engine(session: Session, tmp_path: Path) -> None:
    names = ["row", "id", "seq", "k0", "at_us", "filename", "select", "Order"]
    view = make_view("tables", {"l": Int64, "range": Int64}, dict.fromkeys(names, Int64))
    rows = [row((1, 2), NOON, v=0, **{name: place for place, name in enumerate(names)})]
    # Neither a folder that looks like a partition nor columns that differ only in case may be mistaken for others.
    files = (write_log(tmp_path / "row=7" / "log.parquet", view, rows),)
    joined = ViewJoin("tables", view, files, {"l": "Range", "range": "range"}, tuple(names), "event")
    frame = pa.table({"range": pa.array([2]), "Range": pa.array([1]), "k0": pa.array([5]), "row": instants([NOON])})
    found = join(session, frame, "row", [joined], batch_rows=1).read_all()
    assert found.to_pylist() == [{f"tables__{name}": place for place, name in enumerate(names)}]
    (facts,) = examine(session, frame, "row", [joined])
    assert facts.null_values == dict.fromkeys(names, 0)


def test_nothing_to_join(session: Session, tmp_path: Path) -> None:
    full = one_view(tmp_path, [row(1, NOON, v=1)])
    bare = ViewJoin("bare", full.view, (), {"shop": "shop"}, ("v",), "available")
    empty = frame_of([], [])
    read = join(session, empty, "when", [full, bare], batch_rows=5).read_all()
    assert read.num_rows == 0
    assert read.schema == pa.schema([("shops__v", pa.int64()), ("bare__v", pa.int64())])
    frame = frame_of([1, None, 8], [NOON] * 3)
    assert join(session, frame, "when", [bare, full], batch_rows=5).read_all().to_pylist() == [
        {"bare__v": None, "shops__v": 1},
        {"bare__v": None, "shops__v": None},
        {"bare__v": None, "shops__v": None},
    ]
    facts = examine(session, frame, "when", [bare, full])
    assert [(fact.nulls["null_key"], fact.nulls["no_entity"]) for fact in facts] == [(1, 2), (1, 1)]
    assert facts[0].greatest_age_us is None
    assert examine(session, empty, "when", [full])[0].null_values == {"v": 0}


def test_a_feature_that_no_file_holds_yet_is_null(session: Session, tmp_path: Path) -> None:
    view = make_view("shops", {"shop": Int64}, {"v": Int64, "new": Array(Float64)})
    files = (write_log(tmp_path / "log.parquet", view, [row(1, NOON, v=3)], without=["new"]),)
    joined = ViewJoin("shops", view, files, {"shop": "shop"}, ("new", "v"), "event")
    found = join(session, frame_of([1], [NOON]), "when", [joined], batch_rows=5).read_all()
    assert found.to_pylist() == [{"shops__new": None, "shops__v": 3}]
    assert found.schema.field("shops__new").type == pa.list_(pa.float64())
    assert examine(session, frame_of([1], [NOON]), "when", [joined])[0].null_values == {"new": 1, "v": 0}


def test_the_ends_of_time(session: Session, tmp_path: Path) -> None:
    rows = [row(shop, MIN_INSTANT, None, shop, v=shop) for shop in range(40)]
    ends = [row(shop, MAX_INSTANT, None, 100 + shop, v=100 + shop) for shop in range(40)]
    asked = [(shop, time) for shop in range(40) for time in (MIN_INSTANT, MAX_INSTANT - 1, MAX_INSTANT)]
    expected = [value for shop in range(40) for value in (shop, shop, 100 + shop)]
    assert values(session, one_view(tmp_path, rows + ends), *asked) == expected
    brief = one_view(tmp_path, rows + ends, ttl_us=1)
    assert values(session, brief, (5, MIN_INSTANT), (5, MIN_INSTANT + 1), (5, MIN_INSTANT + 2)) == [5, 5, None]


def test_one_entity_with_very_many_events(session: Session, tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    events = np.sort(rng.integers(0, 10**9, 400_000))
    times = rng.integers(-10, 10**9, 50_000)
    log = {
        "shop": np.full(len(events), 4),
        "event_ts": instants((NOON + events).tolist()),
        "created_ts": pa.nulls(len(events), INSTANT),
        "fs_seq": np.arange(len(events)),
        "fs_origin": ["batch"] * len(events),
        "v": np.arange(len(events)),
    }
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(log), path)
    view = make_view("shops", {"shop": Int64}, {"v": Int64})
    frame = frame_of([4] * len(times), (NOON + times).tolist())
    joined = ViewJoin("shops", view, (str(path),), {"shop": "shop"}, ("v",), "available")
    found = join(session, frame, "when", [joined], batch_rows=9_999).read_all().column(0)
    places = np.searchsorted(events, times, side="right") - 1
    assert found.to_pylist() == [int(place) if place >= 0 else None for place in places]


IN_ZONE = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from unit.test_join import MIN_INSTANT, NOON, Session, EngineSettings, one_view, row, values
folder = Path({folder!r})
hour = 3_600_000_000
fall = 1_383_458_400_000_000  # 2013-11-03T06:00Z: New York's clocks go back from 2 to 1 o'clock
events = [-86_400_000_001, -1, 0, fall - hour, fall, fall + hour]
rows = [row(1, event, event + 1, place, v=place) for place, event in enumerate(events)]
view = one_view(folder, rows, ttl_us=hour)
asked = [(1, event + after) for event in events for after in (0, 1, hour, hour + 1)]
print(values(Session(folder, EngineSettings()), view, *asked))
"""


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_the_process_time_zone_changes_nothing(tmp_path: Path, zone: str) -> None:
    script = IN_ZONE.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TZ": zone}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = [
        *(None, 0, 0, None),
        *(None, 1, 2, 2),
        *(1, 2, 2, None),
        *(None, 3, 3, 4),
        *(3, 4, 4, 5),
        *(4, 5, 5, None),
    ]
    assert done.stdout.strip() == str(expected)


IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
import duckdb, pyarrow.parquet
from unit.test_join import *
folder = Path({folder!r})
names = [f"f{{number}}" for number in range(40)]
with duckdb.connect() as con:
    con.execute("SET enable_progress_bar = false")
    features = ", ".join(f"(range * {{place + 3}}) % 7919 / 7.0 AS {{name}}" for place, name in enumerate(names))
    con.execute(f"COPY (SELECT range % 50000 AS shop, make_timestamptz(range) AS event_ts, NULL::TIMESTAMPTZ AS "
                f"created_ts, range AS fs_seq, 'batch' AS fs_origin, {{features}} FROM range(100000)) TO "
                f"'{{folder}}/log.parquet' (ROW_GROUP_SIZE 20000)")
view = make_view("wide", {{"shop": Int64}}, dict.fromkeys(names, Float64))
joined = ViewJoin("wide", view, (f"{{folder}}/log.parquet",), {{"shop": "shop"}}, tuple(names), "available")
rows = 1_200_000
frame = pa.table({{"shop": np.arange(rows) % 50_000, "when": instants([500_000] * rows)}})
def peak():
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
settings = EngineSettings(threads=2, memory_limit={limit!r}, temp_directory=str(folder))
count = sum(batch.num_rows for batch in join(Session(folder, settings), frame, "when", [joined], batch_rows=10_000))
print(count, round(peak() - before))
"""


def test_memory_stays_within_bounds(tmp_path: Path) -> None:
    """The result is 384 MB, and so are hash table and sort: with 150 MB for the engine it is spilled and streamed."""
    script = IN_LITTLE_MEMORY.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path), limit="150MB")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, grown_mb = map(int, done.stdout.split())
    assert count == 1_200_000
    assert grown_mb < 350


def test_a_damaged_file_is_named(session: Session, tmp_path: Path) -> None:
    view = one_view(tmp_path, [row(1, NOON, v=1)])
    path = Path(view.files[0])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedFileError, match=path.name):
        values(session, view, (1, NOON))
    with pytest.raises(DamagedFileError, match=path.name):
        examine(session, frame_of([1], [NOON]), "when", [view])


def test_a_file_that_goes_while_rows_are_read_is_named(session: Session, tmp_path: Path) -> None:
    view = one_view(tmp_path, [row(1, NOON, v=1)])
    reader = join(session, frame_of([1], [NOON]), "when", [view], batch_rows=1)
    Path(view.files[0]).unlink()
    with pytest.raises(DamagedFileError, match=r"0\.parquet"):
        reader.read_all()


def test_a_sequence_number_used_twice_never_multiplies_rows(session: Session, tmp_path: Path) -> None:
    view = one_view(tmp_path, [row(1, NOON, None, 3, v=1), row(2, NOON, None, 3, v=2)])
    with pytest.raises(EngineError, match="other rows than the frame has"):
        values(session, view, (1, NOON), (2, NOON))


def test_history_holds_every_row_of_the_asked_entities(session: Session, tmp_path: Path) -> None:
    rows = [row(1, NOON, NOON + 5, 0, v=1), row(2, NOON, None, 1, v=2), row(1, NOON + 9, None, 2, v=3)]
    view = one_view(tmp_path, rows, split=2)
    found = history(session, frame_of([1, None, 1], [0, 0, 0]), "when", view)
    assert found.column_names == ["shop", "event_ts", "created_ts", "fs_seq", "v"]
    assert found.column("fs_seq").to_pylist() == [0, 2]
    assert found.column("created_ts").cast(pa.int64()).to_pylist() == [NOON + 5, None]
    assert found.column("v").to_pylist() == [1, 3]


def choosing(patch: pytest.MonkeyPatch, rows: list[int], sequences: list[int]) -> None:
    """Make the join choose wrongly, so that the examination has something to find."""
    chosen = np.array(rows, np.int64), np.array(sequences, np.int64)
    patch.setattr(join_module, "_answered", lambda *_: chosen)


def test_examination_finds_a_row_from_the_future(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(1, NOON, NOON, 0, v=1), row(1, NOON + 5, NOON + 5, 1, v=2), row(1, NOON, NOON + 9, 2, v=3)]
    view, frame = one_view(tmp_path, rows), frame_of([1, 1], [NOON + 4, NOON + 4])
    choosing(monkeypatch, [0, 1], [1, 2])
    assert examine(session, frame, "when", [view])[0].from_future == 2
    by_event = ViewJoin("shops", view.view, view.files, view.key_columns, ("v",), "event")
    assert examine(session, frame, "when", [by_event])[0].from_future == 1


@pytest.mark.parametrize(
    ("rows", "sequences", "told"),
    [
        ([0], [1], "1 of these by a row of another entity"),
        ([0], [2], "1 of these by a row of another entity or an expired one"),
        ([], [], "1 lack theirs"),
    ],
    ids=["another entity", "expired", "missed"],
)
@pytest.mark.parametrize("as_of", ["event", "available"])
def test_examination_finds_a_wrong_choice(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[int],
    sequences: list[int],
    told: str,
    as_of: AsOf,
) -> None:
    log = [row(1, NOON, NOON, 0, v=1), row(2, NOON, NOON, 1, v=2), row(1, NOON - 99, NOON - 99, 2, v=3)]
    choosing(monkeypatch, rows, sequences)
    with pytest.raises(CertificateError, match=told):
        examine(session, frame_of([1], [NOON]), "when", [one_view(tmp_path, log, ttl_us=50, as_of=as_of)])


def test_spilled_files_are_gone_afterwards(tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    session = Session(tmp_path, EngineSettings(temp_directory=str(spill)))
    assert values(session, one_view(tmp_path, [row(1, NOON, v=1)]), (1, NOON)) == [1]
    assert not [path for path in spill.rglob("*") if path.is_file()]
    shutil.rmtree(spill, ignore_errors=True)
