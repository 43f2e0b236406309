"""What every engine must compute over the events of a view with aggregations, held against plain loops.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from featurestore.definitions import Aggregation, Entity, FeatureView, Field, ParquetSource
from featurestore.engine.interface import AsOf, ViewJoin
from featurestore.testing.engine_project import EngineProject, EngineSuite, instants, log_view, names, write_log
from featurestore.training.reference import ReferenceRow
from featurestore.training.reference_windows import ReferenceEvent, reference_window
from featurestore.types import Bool, Bytes, Date, Decimal, Float32, Float64, Int32, Int64, String, Timestamp, ValueType

HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
BEGIN_US = 1_700_000_000_000_000
WINDOWS = [timedelta(hours=1), timedelta(hours=36), timedelta(days=30), None]
NUMBERS = ("count", "sum", "mean", "min", "max", "var", "std", "first", "last", "count_distinct")
LATENESS = ("none", "constant", "jitter", "a few by days", "all by days", "beyond the window")


def events_view(
    types: dict[str, ValueType], aggregations: Sequence[Aggregation], keys: dict[str, ValueType] | None = None
) -> FeatureView:
    """Return a view with aggregations over the columns of some types."""
    wanted = {each.column.lower() for each in aggregations} | {
        name.lower() for each in aggregations for name in each.condition_columns
    }
    return FeatureView(
        "purchases",
        entities=[Entity("buyer", join_keys=keys or {"k": Int64})],
        source=ParquetSource("purchases_file", "unread.parquet", "bought_at", "known_at"),
        schema=[Field(name, kind) for name, kind in types.items() if name.lower() in wanted],
        aggregations=aggregations,
    )


def join_of(
    view: FeatureView, files: Sequence[Path], *, as_of: AsOf = "available", columns: dict[str, str] | None = None
) -> ViewJoin:
    """Return a join of all features of a view."""
    asked = tuple(window.name for window in view.windows)
    return ViewJoin("purchases", view, names(files), columns or {key: key for key in view.join_keys}, asked, as_of)


def frame_of(keys: Sequence[Any], times: Sequence[int], **more: Any) -> pa.Table:
    """Return an entity frame."""
    return pa.table({"k": pa.array(keys, pa.int64()), "when": instants(*times), **more})


def lag(dice: Random, lateness: str) -> int | None:
    """Return how long after an event it became known, in microseconds; None: not said."""
    if lateness == "none":
        return dice.choice([None, 0])
    choices: dict[str, list[int | None]] = {
        "constant": [5 * HOUR_US],
        "jitter": [dice.randrange(HOUR_US)],
        "a few by days": [None] * 9 + [dice.randrange(10 * DAY_US)],
        "all by days": [dice.randrange(9 * DAY_US)],
        "beyond the window": [40 * DAY_US, 2 * HOUR_US, 0],
    }
    return dice.choice(choices[lateness])


def random_events(dice: Random, count: int, lateness: str, value: Any) -> list[ReferenceRow]:
    """Return events of five entities over 40 days, many of them at the same instants."""
    rows = []
    for number in range(count):
        event_us = BEGIN_US + dice.randrange(400) * DAY_US // 10 + dice.choice([0, 0, dice.randrange(HOUR_US)])
        late = lag(dice, lateness)
        known_us = None if late is None else event_us + late
        rows.append(ReferenceRow((dice.randrange(5),), event_us, known_us, number, value(dice)))
    return sorted(rows, key=lambda row: (row.event_us, row.created_or_event_us, row.sequence))


def random_frame(dice: Random, count: int, rows: Sequence[ReferenceRow]) -> tuple[list[int | None], list[int]]:
    """Return keys, some unknown and some null, and times, some of them those of events or of the ends of windows."""
    keys: list[int | None] = [dice.choice([0, 1, 2, 3, 4, 4, 7, None]) for _ in range(count)]
    times = []
    for _ in range(count):
        at = dice.choice([BEGIN_US + dice.randrange(90 * DAY_US), dice.choice(rows).event_us])
        ends = [0, HOUR_US, 36 * HOUR_US, 30 * DAY_US]
        tile = -(-at // DAY_US) * DAY_US
        times.append(dice.choice([at, tile + dice.choice(ends), tile + dice.choice(ends) - 1]))
    return keys, times


def expected(
    view: FeatureView, rows: Sequence[ReferenceRow], key: tuple[Any, ...], at_us: int, as_of: AsOf, true: Any = None
) -> list[Any]:
    """Return every feature by plain loops; ``true`` tells which conditions are true of a row's values."""
    assert view.events is not None
    types = view.events.types(view.stored)
    if None in key:
        return [None] * len(view.windows)
    events = [
        ReferenceEvent(
            row.event_us,
            row.created_or_event_us,
            row.sequence,
            {name.lower(): value for name, value in row.values.items()},
            frozenset(text for text, holds in (true or {}).items() if holds(row.values)),
        )
        for row in rows
        if row.keys == key
    ]
    found = []
    for window in view.windows:
        of = window.aggregation
        kind = types.get(of.column.lower())
        value = reference_window(
            events,
            at_us,
            of.function,
            column=None if of.column == "*" else of.column.lower(),
            is_float=kind in (Float32, Float64),
            condition=of.where,
            length_us=window.length_us,
            resolution_us=window.resolution_us,
            n=of.bound,
            as_of=as_of,
        )
        found.append(value)
    return found


def are_same(one: Any, other: Any) -> bool:
    """Tell whether two values have the same bits."""
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_same, one, other))
    return type(one) is type(other) and bool(one == other)


def check(table: pa.Table, wanted: Sequence[Sequence[Any]]) -> None:
    """Compare each value of a join with what was expected."""
    for name, column in zip(table.column_names, zip(*wanted, strict=True), strict=True):
        for row, (found, value) in enumerate(zip(table[name].to_pylist(), column, strict=True)):
            assert are_same(found, value), (name, row, found, value)


class EngineWindowsConformance(EngineSuite):
    """What windows hold at any instant."""

    @pytest.mark.parametrize("as_of", ["available", "event"])
    @pytest.mark.parametrize("lateness", LATENESS)
    def test_any_instant_whatever_comes_late(self, project: EngineProject, lateness: str, as_of: AsOf) -> None:
        dice = Random(f"{lateness} {as_of}")
        cents = (*range(-3, 4), 10**16)
        rows = random_events(
            dice,
            300,
            lateness,
            lambda dice: {"v": dice.choice([None, dice.choice(cents) / 100]), "t": dice.choice("abc")},
        )
        aggregations = [Aggregation("v", function, windows=WINDOWS) for function in NUMBERS]
        aggregations += [
            Aggregation("*", "count", windows=WINDOWS),
            Aggregation("t", "last_n", n=3, windows=WINDOWS),
            Aggregation("t", "count_distinct", n=2, windows=WINDOWS),
            Aggregation("v", "sum", windows=WINDOWS, name="negative", where="v < 0 AND t <> 'a'"),
            Aggregation("t", "first", windows=WINDOWS, name="of_null", where="v IS NULL"),
        ]
        view = events_view({"v": Float64, "t": String}, aggregations)
        files = [
            write_log(project.root / f"log/{part}.parquet", view_log(view), rows[part::2], without=())
            for part in (0, 1)
        ]
        keys, times = random_frame(dice, 120, rows)
        table = project.joined(frame_of(keys, times), [join_of(view, files, as_of=as_of)])
        true = {
            "v < 0 AND t <> 'a'": lambda values: values["v"] is not None and values["v"] < 0 and values["t"] != "a",
            "v IS NULL": lambda values: values["v"] is None,
        }
        check(
            table,
            [expected(view, rows, (key,), at, as_of, true) for key, at in zip(keys, times, strict=True)],
        )

    @pytest.mark.parametrize(
        "values",
        [
            [1e308, 1e308, -1e308],
            [1e16, 1e-16, -1e16],
            [math.nan, 1.0],
            [math.inf, 1.0],
            [math.inf, -math.inf],
            [5e-324, 5e-324, -0.0],
            [-0.0, -0.0],
            [0.1] * 10,
            [12.34, 56.78, 91.01],
        ],
    )
    def test_floats_are_exact(self, project: EngineProject, values: list[float]) -> None:
        rows = [ReferenceRow((1,), BEGIN_US + place, None, place, {"v": value}) for place, value in enumerate(values)]
        view = events_view({"v": Float64}, [Aggregation("v", function, windows=WINDOWS) for function in NUMBERS])
        file = write_log(project.root / "log.parquet", view_log(view), rows)
        times = [BEGIN_US + place for place in range(-1, len(values) + 1)] + [BEGIN_US + 2 * HOUR_US]
        table = project.joined(frame_of([1] * len(times), times), [join_of(view, [file])])
        check(table, [expected(view, rows, (1,), at, "available") for at in times])

    def test_sums_of_integers_are_wider_inside_and_null_beyond(self, project: EngineProject) -> None:
        values = [2**63 - 1, 1, -5, -(2**63), -(2**63)]
        rows = [ReferenceRow((1,), BEGIN_US + place, None, place, {"v": value}) for place, value in enumerate(values)]
        view = events_view({"v": Int64}, [Aggregation("v", function, windows=[None]) for function in ("sum", "mean")])
        join = project.join(
            frame_of([1] * 5, [row.event_us for row in rows]),
            [join_of(view, [write_log(project.root / "l", view_log(view), rows)])],
        )
        sums, means = (join.batches().read_all().column(place).to_pylist() for place in (0, 1))
        assert sums == [2**63 - 1, None, 2**63 - 5, -5, None]
        assert means[1] == 2.0**63 / 2
        (facts,) = join.windowed()
        assert facts.overflowed == {"v_sum_all": 2, "v_mean_all": 0}

    def test_every_type_comes_back_as_it_was(self, project: EngineProject) -> None:
        kinds: dict[str, tuple[ValueType, list[Any]]] = {
            "i": (Int32, [3, -1, None]),
            "f": (Float32, [0.5, -0.25, None]),
            "b": (Bool, [True, False, None]),
            "d": (Date, [dt.date(2024, 2, 29), dt.date(1969, 12, 31), None]),
            "w": (
                Timestamp,
                [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(1969, 1, 1, 0, 0, 0, 7, dt.UTC), None],
            ),
            "s": (String, ["é", "", None]),
            "y": (Bytes, [b"\x00\xff", b"", None]),
            "n": (Decimal(10, 2), [None, None, None]),
        }
        rows = [
            ReferenceRow((1,), BEGIN_US + place, None, place, {name: kind[1][place] for name, kind in kinds.items()})
            for place in range(3)
        ]
        aggregations = [
            Aggregation(name, function, windows=[None], n=2 if function == "last_n" else None)
            for name in "ifbdwsyn"
            for function in {
                "i": ("sum", "min", "last_n", "count_distinct", "mean"),
                "f": ("sum", "max", "first", "last_n"),
                "b": ("sum", "first", "last_n", "count_distinct"),
                "d": ("min", "last", "last_n", "count_distinct"),
                "w": ("max", "first", "last_n", "count_distinct"),
                "s": ("first", "last", "last_n", "count_distinct"),
                "y": ("first", "last", "last_n", "count_distinct"),
                "n": ("count",),
            }[name]
        ]
        aggregations.append(Aggregation("bought_at", "last", windows=[None]))
        view = events_view({name: kind for name, (kind, _) in kinds.items()}, aggregations)
        file = write_log(project.root / "log.parquet", view_log(view), rows)
        table = project.joined(frame_of([1, 9], [BEGIN_US + 9] * 2), [join_of(view, [file])])
        rows = [row._replace(values={**row.values, "bought_at": moment(row.event_us)}) for row in rows]
        check(table, [expected(view, rows, (key,), BEGIN_US + 9, "available") for key in (1, 9)])
        for field in view.features:
            assert table.schema.field(f"purchases__{field.name}").type == view_type(field)

    def test_composite_keys_by_other_columns(self, project: EngineProject) -> None:
        view = events_view({"v": Int64}, [Aggregation("v", "sum", windows=[None])], keys={"shop": String, "day": Date})
        monday, tuesday = dt.date(2024, 1, 1), dt.date(2024, 1, 2)
        rows = [
            ReferenceRow((shop, day), BEGIN_US, None, place, {"v": 10**place})
            for place, (shop, day) in enumerate([("a", monday), ("a", tuesday), ("b", monday)])
        ]
        file = write_log(project.root / "log.parquet", view_log(view), rows)
        frame = pa.table(
            {
                "when": instants(*[BEGIN_US] * 5),
                "that day": pa.array([monday, tuesday, None, monday, tuesday]),
                "id": pa.array(["a", "a", "a", "b", "b"]),
            }
        )
        join = join_of(view, [file], columns={"shop": "id", "day": "that day"})
        assert project.joined(frame, [join]).column(0).to_pylist() == [1, 10, None, 100, None]

    def test_beside_a_plain_view(self, project: EngineProject) -> None:
        windowed = events_view({"v": Int64}, [Aggregation("v", "sum", windows=[timedelta(days=1)])])
        plain = log_view("plain", {"k": Int64}, {"x": String})
        files = [
            write_log(
                project.root / "w.parquet", view_log(windowed), [ReferenceRow((1,), BEGIN_US, None, 0, {"v": 5})]
            ),
            write_log(project.root / "p.parquet", plain, [ReferenceRow((1,), BEGIN_US, None, 0, {"x": "here"})]),
        ]
        plain_join = ViewJoin("plain", plain, names(files[1:]), {"k": "k"}, ("x",), "available")
        for views in ([join_of(windowed, files[:1]), plain_join], [plain_join, join_of(windowed, files[:1])]):
            table = project.joined(
                frame_of([1, 2, 1], [BEGIN_US, BEGIN_US, BEGIN_US + 3 * DAY_US]), views, batch_rows=2
            )
            assert table["plain__x"].to_pylist() == ["here", None, "here"]
            assert table["purchases__v_sum_1d"].to_pylist() == [5, None, None]
            assert table.column_names == [f"{join.name}__{name}" for join in views for name in join.features]

    def test_nothing_happened_and_nothing_is_known(self, project: EngineProject) -> None:
        view = events_view(
            {"v": String},
            [
                Aggregation("*", "count", windows=[None]),
                Aggregation("v", "count_distinct", windows=[None]),
                Aggregation("v", "last_n", n=2, windows=[None]),
            ],
        )
        frame = frame_of([1, None], [BEGIN_US] * 2)
        empty = join_of(view, [])
        assert project.joined(frame, [empty]).to_pydict() == {
            "purchases__count_all": [0, None],
            "purchases__v_count_distinct_all": [0, None],
            "purchases__v_last_2_all": [None, None],
        }
        assert set(map(tuple, project.joined(frame, [replace(empty, is_begun=False)]).to_pydict().values())) == {
            (None, None)
        }
        assert project.joined(frame_of([], []), [empty]).num_rows == 0

    def test_what_is_said_about_the_rows(self, project: EngineProject) -> None:
        view = events_view({"v": Int64}, [Aggregation("v", "sum", windows=[timedelta(hours=1), timedelta(days=1)])])
        rows = [
            ReferenceRow((1,), BEGIN_US, None, 0, {"v": 1}),
            ReferenceRow((2,), BEGIN_US, BEGIN_US + DAY_US // 2, 1, {"v": 1}),
        ]
        file = write_log(project.root / "log.parquet", view_log(view), rows)
        asked = [
            (1, BEGIN_US),  # its own event
            (1, BEGIN_US + 1),
            (2, BEGIN_US),  # its own event, which is not known yet: held back
            (2, BEGIN_US + HOUR_US),  # held back
            (2, BEGIN_US + 5 * DAY_US),  # long over
            (None, BEGIN_US),
        ]
        join = project.join(frame_of([key for key, _ in asked], [at for _, at in asked]), [join_of(view, [file])])
        (facts,) = join.facts()
        assert (facts.own_events, facts.held_back, facts.nulls) == (1, 2, {"null_key": 1})
        join.batches().read_all()
        assert join.windowed() == (facts,) == join.facts()

    def test_a_condition_may_use_keys_and_times(self, project: EngineProject) -> None:
        where = "k = 1 AND bought_at < '2024-01-01' -- early\n AND known_at IS NULL AND \"Odd\" > 0"
        view = events_view({"Odd": Int64}, [Aggregation("*", "count", windows=[None], name="early", where=where)])
        rows = [
            ReferenceRow((key,), BEGIN_US + late, known, place, {"Odd": odd})
            for place, (key, late, known, odd) in enumerate(
                [(1, 0, None, 1), (2, 0, None, 1), (1, 0, BEGIN_US, 1), (1, 0, None, None), (1, 300 * DAY_US, None, 1)]
            )
        ]
        rows.sort(key=lambda row: (row.event_us, row.created_or_event_us, row.sequence))
        file = write_log(project.root / "log.parquet", view_log(view), rows)
        frame = frame_of([1, 2], [BEGIN_US + 400 * DAY_US] * 2)
        assert project.joined(frame, [join_of(view, [file])]).column(0).to_pylist() == [1, 0]
        events = pa.table(
            {
                "k": [1, 1],
                "event_ts": instants(BEGIN_US, BEGIN_US),
                "created_ts": instants(None, BEGIN_US),
                "Odd": pa.array([1, None], pa.int64()),
            }
        )
        found = project.engine.joins.conditions(view, events)
        assert {text: marks.to_pylist() for text, marks in found.items()} == {where: [True, False]}

    @pytest.mark.parametrize(
        ("where", "true"),
        [
            ("n * 100 > 5", [True, False, True, False]),
            ("CAST(t AS INTEGER) >= 500", [True, False, False, False]),
            # Of a part that cannot be computed nothing depends on the others, or on the file that an event lies in.
            ("n > 1000000 OR n * n > 5", [True, False, False, False]),
            ("NOT (n < 1000 AND n * n > 5)", [False, False, True, False]),
            ("bought_at > '2000-01-01' AND t <> 'n/a' OR CAST(t AS INTEGER) > 5", [True, False, True, False]),
        ],
    )
    def test_an_event_of_which_a_condition_cannot_be_computed_does_not_count(
        self, project: EngineProject, where: str, true: list[bool]
    ) -> None:
        count = Aggregation("*", "count", windows=[None], name="some", where=where)
        view = events_view({"n": Int64, "t": String}, [count])
        values = [(10, "700"), (1 << 62, "n/a"), (1, "1"), (None, None)]
        rows = [ReferenceRow((place,), BEGIN_US, None, place, {"n": n, "t": t}) for place, (n, t) in enumerate(values)]
        frame = frame_of(range(4), [BEGIN_US] * 4)
        for some in (rows, *([row] for row in rows)):
            file = write_log(project.root / f"{some[0].sequence}-{len(some)}.parquet", view_log(view), some)
            wanted = [true[row.sequence] for row in some]
            found = project.joined(frame, [join_of(view, [file])]).column(0).to_pylist()
            assert [found[row.sequence] for row in some] == wanted
            (batch,) = project.engine.log.events(view, [str(file)], batch_rows=10)
            assert batch.column("c0").to_pylist() == wanted
            columns = {"k": [row.sequence for row in some], "event_ts": instants(*[BEGIN_US] * len(some))}
            columns |= {"created_ts": instants(*[None] * len(some))}
            for name, kind in (("n", pa.int64()), ("t", pa.string())):
                columns[name] = pa.array([row.values[name] for row in some], kind)
            assert project.engine.joins.conditions(view, pa.table(columns))[where].to_pylist() == wanted


def moment(instant_us: int) -> dt.datetime:
    """Return an instant as Arrow gives it."""
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + timedelta(microseconds=instant_us)


def view_log(view: FeatureView) -> FeatureView:
    """Return a plain view with the same log, for writing its files."""
    return log_view("log", view.join_keys, {field.name: field.type for field in view.stored})


def view_type(field: Field) -> pa.DataType:
    """Return a feature's type in Arrow."""
    from featurestore.types.arrow import arrow_type

    return arrow_type(field.type)
