"""Staging, the newest rows and withdrawals against plain loops over rows, on sources that change between runs."""

from __future__ import annotations

import math
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import ENGINES

from featurestore.definitions import Entity, FeatureView, Field, ParquetSource
from featurestore.engine.interface import GONE_CREATED, GONE_EVENT, Span
from featurestore.testing.engine_project import EngineProject, in_microseconds, paths_of
from featurestore.types import Float64, Int64, String

UNITS = {
    "ns": (pa.timestamp("ns", tz="America/New_York"), 1),
    "ns naive": (pa.timestamp("ns"), 1),
    "us": (pa.timestamp("us"), 1_000),
    "ms": (pa.timestamp("ms", tz="UTC"), 1_000_000),
}
PLAIN = FeatureView(
    "plain",
    entities=[Entity("pair", join_keys={"a": Int64, "b": String})],
    source=ParquetSource("source", "data", "happened", "known"),
    schema=[Field("x", Float64), Field("text", String)],
)
BY_SQL = PLAIN.replaced(name="by_sql", sql="SELECT x, text, known, happened, b, a FROM source")


@dataclass(frozen=True)
class Row:
    """A source row, times in the file's unit; features last."""

    a: int | None
    b: str | None
    at: int | None
    known: int | None
    x: float | None
    text: str | None


@dataclass(frozen=True)
class File:
    unit: str
    narrow: bool
    """Written as int32 and float32, with a column more."""
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Run:
    """What the source holds when a run begins, and what the run reads."""

    files: tuple[File, ...]
    spans: tuple[tuple[int, int, int | None, tuple[int, ...] | None], ...]
    now_us: int
    counts_later: bool


@dataclass(frozen=True)
class Logged:
    key: tuple[int, str]
    event_us: int
    created_us: int | None
    sequence: int
    values: tuple[float | None, str | None]

    @property
    def known_us(self) -> int:
        return self.event_us if self.created_us is None else self.created_us

    @property
    def identity(self) -> tuple[Any, ...]:
        return (self.key, self.event_us, self.known_us)

    @property
    def order(self) -> tuple[int, int, int]:
        return (self.event_us, self.known_us, self.sequence)


moments = st.integers(-3, 6)
rows = st.builds(
    Row,
    a=st.sampled_from([None, 1, 1, 2]),
    b=st.sampled_from([None, "", "x", "x"]),
    at=st.none() | moments,
    known=st.none() | moments,
    x=st.sampled_from([None, 0.0, -0.0, math.nan, math.inf, 1.5]),
    text=st.sampled_from([None, "", "t"]),
)
files = st.builds(
    File, unit=st.sampled_from(list(UNITS)), narrow=st.booleans(), rows=st.lists(rows, max_size=8).map(tuple)
)
bounds = st.integers(-4, 7).map(lambda moment: moment * 1_000)


@st.composite
def runs(draw: st.DrawFn) -> list[Run]:
    """Few instants and values, so that everything ties; the source is mostly the same from run to run."""
    found: list[Run] = []
    for _ in range(draw(st.integers(1, 3))):
        same = found and draw(st.booleans())
        held = found[-1].files if same else tuple(draw(st.lists(files, min_size=1, max_size=3)))
        spans = []
        for _ in range(draw(st.integers(1, 2))):
            start, end = sorted((draw(bounds), draw(bounds)))
            chosen = draw(st.none() | st.sets(st.integers(0, len(held) - 1)).map(tuple))
            spans.append((start, end, draw(st.none() | bounds), chosen))
        if draw(st.booleans()):
            spans = [(-10_000, 10_000_000, None, None)]
        found.append(Run(held, tuple(spans), draw(st.sampled_from([2_000, 10_000_000])), draw(st.booleans())))
    return found


def ceil_us(value: int | None, nanoseconds: int) -> int | None:
    return None if value is None else -(-value * nanoseconds // 1_000)


def in_unit(value: int | None, unit: str) -> int | None:
    """Spread nanoseconds around whole microseconds, so that ceiling matters; coarser units as they are."""
    return value * 700 if value is not None and unit.startswith("ns") else value


def write_source(folder: Path, held: tuple[File, ...]) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for number, file in enumerate(held):
        instant, _ = UNITS[file.unit]
        columns = {
            "a": pa.array([row.a for row in file.rows], pa.int32() if file.narrow else pa.int64()),
            "b": pa.array([row.b for row in file.rows], pa.string()),
            "happened": pa.array([in_unit(row.at, file.unit) for row in file.rows], instant),
            "known": pa.array([in_unit(row.known, file.unit) for row in file.rows], instant),
            "text": pa.array([row.text for row in file.rows], pa.string()),
            "x": pa.array([row.x for row in file.rows], pa.float32() if file.narrow else pa.float64()),
        }
        if file.narrow:
            columns["more"] = pa.array([0] * len(file.rows))
        pq.write_table(pa.table(columns), folder / f"{number}.parquet")


def instants(file: File, row: Row) -> tuple[int | None, int | None]:
    _, nanoseconds = UNITS[file.unit]
    at, known = (ceil_us(in_unit(value, file.unit), nanoseconds) for value in (row.at, row.known))
    return at, known


def same_values(one: tuple[float | None, str | None], other: tuple[float | None, str | None]) -> bool:
    """NaN equals NaN, 0.0 does not equal -0.0: compare the bits, with one NaN."""

    def bits(value: float | None) -> bytes | None:
        return None if value is None else b"nan" if math.isnan(value) else struct.pack("<d", value)

    return (bits(one[0]), one[1]) == (bits(other[0]), other[1])


def expected_stage(run: Run, log: list[Logged], first: int, *, with_files: bool) -> tuple[dict[str, int], list[Logged]]:
    """Return the counts and the new rows, by loops."""
    counts = dict.fromkeys(("read", "null_times", "null_keys", "waiting", "duplicates", "unchanged", "appended"), 0)
    last: dict[tuple[Any, ...], Logged] = {}
    position = first - 1
    for number, file in enumerate(run.files):
        for row in file.rows:
            position += 1
            at, known = instants(file, row)
            since = at if known is None else known
            is_later = run.counts_later and at is not None and at > run.now_us
            if not is_later and not any(
                (at is None or start <= at < end)
                and (after is None or (since is not None and since > after))
                and (not with_files or chosen is None or number in chosen)
                for start, end, after, chosen in run.spans
            ):
                continue
            counts["read"] += 1
            if at is None:
                counts["null_times"] += 1
            elif row.a is None or row.b is None:
                counts["null_keys"] += 1
            elif at > run.now_us or (known is not None and known > run.now_us):
                counts["waiting"] += 1
            else:
                found = Logged((row.a, row.b), at, known, position, (row.x, row.text))
                counts["duplicates"] += found.identity in last
                last[found.identity] = found
    new = []
    for found in last.values():
        versions = [logged for logged in log if logged.identity == found.identity]
        newest = max(versions, key=lambda logged: logged.sequence, default=None)
        if newest is not None and same_values(newest.values, found.values):
            counts["unchanged"] += 1
        else:
            counts["appended"] += 1
            new.append(found)
    return counts, sorted(new, key=lambda found: found.order)


def read_log(paths: list[Path]) -> list[Logged]:
    found = []
    for path in paths:
        table = pq.ParquetFile(path).read()
        times = {name: table[name].cast(pa.int64()).to_pylist() for name in ("event_ts", "created_ts")}
        for number, row in enumerate(table.to_pylist()):
            assert row["fs_origin"] == "batch"
            key, at, known = (row["a"], row["b"]), times["event_ts"][number], times["created_ts"][number]
            found.append(Logged(key, at, known, row["fs_seq"], (row["x"], row["text"])))
    return found


def assert_same(found: list[Logged], expected: list[Logged], *, sequences: bool = True) -> None:
    def plain(row: Logged) -> tuple[Any, ...]:
        x, text = row.values
        bits = None if x is None else "nan" if math.isnan(x) else struct.pack("<d", x)
        return (row.identity, row.created_us, row.sequence if sequences else None, bits, text)

    assert [plain(row) for row in found] == [plain(row) for row in expected]


def stage_all(
    folder: str, engine: str, history: list[Run], view: FeatureView
) -> tuple[EngineProject, list[Path], list[Logged]]:
    """Run every run, compare each with the loops, and return what the log holds."""
    project = EngineProject(Path(folder), ENGINES[engine])
    paths: list[Path] = []
    log: list[Logged] = []
    for number, run in enumerate(history):
        write_source(project.root / "data", run.files)
        spans = tuple(
            Span(start, end, after, None if chosen is None else tuple(f"data/{n}.parquet" for n in chosen))
            for start, end, after, chosen in run.spans
        )
        first = number * 1_000
        staged = project.stage(
            view, spans=spans, now_us=run.now_us, log=paths, first_sequence=first, counts_later=run.counts_later
        )
        by_files = view.sql is None
        counts, new = expected_stage(run, log, first, with_files=by_files)
        if by_files:
            assert {name: getattr(staged, name) for name in counts} == counts
        assert staged.read == counts["read"]
        if not staged.appended:
            continue
        written = sorted(read_log(paths_of(staged)), key=lambda row: row.order)
        assert staged.min_event_us == written[0].event_us
        if by_files:
            assert_same(written, new)
        paths += paths_of(staged)
        log += written
    return project, paths, log


def newest_by_loops(log: list[Logged], until_us: int | None) -> dict[tuple[int, str], Logged]:
    newest: dict[tuple[int, str], Logged] = {}
    for row in log:
        if until_us is not None and max(row.event_us, row.known_us) > until_us:
            continue
        if row.key not in newest or row.order > newest[row.key].order:
            newest[row.key] = row
    return newest


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    found = in_microseconds(table).to_pylist()
    return sorted(found, key=lambda row: (row["a"], row["b"], row.get(GONE_EVENT, 0), row.get(GONE_CREATED, 0)))


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=40)
@given(runs())
def test_each_row_goes_where_loops_say(engine: str, history: list[Run]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage_all(folder, engine, history, PLAIN)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=15)
@given(runs())
def test_a_query_stages_as_a_source_does_but_for_the_order_of_ties(engine: str, history: list[Run]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, _, log = stage_all(folder, engine, history, BY_SQL)
        with tempfile.TemporaryDirectory() as other:
            _, _, again = stage_all(other, engine, history, BY_SQL)
        assert_same(log, again)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=25)
@given(runs(), st.none() | bounds, st.integers(1, 5))
def test_the_newest_row_of_each_entity(engine: str, history: list[Run], until_us: int | None, batch_rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        project, paths, log = stage_all(folder, engine, history, PLAIN)
        for chosen in (paths, paths[-1:]):
            newest = project.latest(PLAIN, paths, changed=chosen, until_us=until_us, batch_rows=batch_rows)
            expected = newest_by_loops(log if chosen is paths else read_log(chosen), until_us)
            found = [
                Logged((row["a"], row["b"]), row["event_ts"], row["created_ts"], 0, (row["x"], row["text"]))
                for row in rows_of(newest)
            ]
            assert_same(found, [expected[key] for key in sorted(expected)], sequences=False)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=25)
@given(runs(), runs(), st.tuples(bounds, bounds).map(sorted))
def test_withdrawing_what_the_source_no_longer_holds(
    engine: str, history: list[Run], later: list[Run], between: list[int]
) -> None:
    span = Span(between[0], between[1] + 1_000)
    with tempfile.TemporaryDirectory() as folder:
        project, paths, log = stage_all(folder, engine, history, PLAIN)
        write_source(Path(folder) / "data", later[0].files)
        held = set()
        for file in later[0].files:
            for row in file.rows:
                at, known = instants(file, row)
                held.add(((row.a, row.b), at, at if known is None else known))
        gone = [r for r in log if span.start_us <= r.event_us < span.end_us and r.identity not in held]
        dry = project.withdraw(PLAIN, paths, span, dry=True)
        assert (dry.rows, dry.written) == (len(gone), ())
        done = project.withdraw(PLAIN, paths, span)
        assert (done.rows, done.removed) == (dry.rows, dry.removed)
        now = [path for path in paths if str(path) not in done.removed] + list(done.written)
        left = [row for row in log if row not in gone]
        assert_same(sorted(read_log(now), key=lambda r: r.sequence), sorted(left, key=lambda r: r.sequence))
        for path in done.written:
            orders = [row.order for row in read_log([path])]
            assert orders == sorted(orders)
        repairs = rows_of(project.replacements(PLAIN, now, removed=done.removed, added=done.written))
        newest = newest_by_loops(left, None)
        expected = []
        for key, event_us, known_us in sorted({row.identity for row in gone}):
            best = newest.get(key)
            expected.append((key, event_us, known_us, best and best.event_us, best and best.created_us))
        found = [((r["a"], r["b"]), r[GONE_EVENT], r[GONE_CREATED], r["event_ts"], r["created_ts"]) for r in repairs]
        assert found == expected
