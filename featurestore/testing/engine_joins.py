"""What every engine must answer to a point-in-time join, and which facts it must report.

See `featurestore.testing.engine_project` for the fixture that the suite takes. Plain loops over rows that share nothing
with an engine are in `featurestore.training.reference`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal as PythonDecimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.engine.interface import AsOf, ViewJoin
from featurestore.errors import DamagedFileError, EngineError
from featurestore.testing.engine_project import (
    INSTANT,
    EngineProject,
    EngineSuite,
    instants,
    log_view,
    names,
    write_log,
)
from featurestore.training.reference import ReferenceRow, reference_answer
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


def row(key: Any, event_us: int, created_us: int | None = None, sequence: int = 0, **values: Any) -> ReferenceRow:
    """Return a row of a log."""
    return ReferenceRow(key if isinstance(key, tuple) else (key,), event_us, created_us, sequence, values)


def one_view(
    project: EngineProject,
    rows: list[ReferenceRow],
    *,
    ttl_us: int | None = None,
    as_of: AsOf = "available",
    split: int = 0,
) -> ViewJoin:
    """Return a join of one view keyed by ``shop`` with the feature ``v``; rows from ``split`` on are a second file."""
    view = log_view("shops", {"shop": Int64}, {"v": Int64}, ttl_us)
    parts = [rows[:split], rows[split:]] if split else [rows]
    files = [write_log(project.root / f"{place}.parquet", view, part) for place, part in enumerate(parts)]
    return ViewJoin("shops", view, names(files), {"shop": "shop"}, ("v",), as_of)


def frame_of(shops: list[int | None], times: list[int]) -> pa.Table:
    """Return entity rows."""
    return pa.table({"shop": pa.array(shops, pa.int64()), "when": instants(*times)})


def values(project: EngineProject, view: ViewJoin, *asked: tuple[int | None, int]) -> list[Any]:
    """Return the feature ``v`` for each asked (shop, time)."""
    frame = frame_of([shop for shop, _ in asked], [time for _, time in asked])
    return list(project.joined(frame, [view]).column(0).to_pylist())


def _begun(sequence: int, since: Sequence[tuple[int, int]]) -> list[int]:
    """Return the instant of the last pair that begins at a number or before it."""
    return [instant for number, instant in since if number <= sequence][-1:]


IN_ZONE = """
from featurestore.testing.engine_joins import one_view, row, values
hour = 3_600_000_000
fall = 1_383_458_400_000_000  # 2013-11-03T06:00Z: New York's clocks go back from 2 to 1 o'clock
events = [-86_400_000_001, -1, 0, fall - hour, fall, fall + hour]
rows = [row(1, event, event + 1, place, v=place) for place, event in enumerate(events)]
view = one_view(project, rows, ttl_us=hour)
asked = [(1, event + after) for event in events for after in (0, 1, hour, hour + 1)]
print(values(project, view, *asked))
"""


class EngineJoinsConformance(EngineSuite):
    """The suite."""

    def test_bulk_load_with_one_created_time(self, project: EngineProject) -> None:
        """All rows become available at once: a running best by rows instead of peers answers with any of them."""
        loaded = NOON + 3600 * SECOND
        rows = [row(1, NOON + event, loaded, sequence=99 - event, v=event) for event in range(50)]
        view = one_view(project, rows)
        assert values(project, view, (1, loaded - 1), (1, loaded), (1, loaded + 1)) == [None, 49, 49]
        assert values(project, view, (1, loaded)) == [49]

    def test_rows_and_facts_may_be_asked_for_in_any_order(self, project: EngineProject) -> None:
        project.engine.prepare()
        view = one_view(project, [row(1, NOON, v=7)])
        frame = frame_of([1, None, 2], [NOON + 3] * 3)
        answers = []
        for first_facts in (False, True):
            join = project.join(frame, [view])
            facts = join.facts() if first_facts else None
            answers.append((join.batches().read_all().column(0).to_pylist(), facts or join.facts()))
        assert answers[0] == answers[1]
        assert answers[0] == ([7, None, None], project.facts(frame, [view]))

    @pytest.mark.parametrize("as_of", ["event", "available"])
    def test_rows_count_from_when_they_are_said_to_be_there(self, project: EngineProject, as_of: AsOf) -> None:
        """As plain loops over the rows that are there at an instant; the order among them stays that of the log."""
        dice = random.Random(7)
        rows = [
            row(dice.randrange(3), NOON + dice.randrange(9), NOON + dice.randrange(14), sequence=place, v=place)
            for place in range(60)
        ]
        since = [(10, NOON + 4), (25, NOON - 5), (40, NOON + 12), (55, MAX_INSTANT)]
        view = one_view(project, rows, ttl_us=6, as_of=as_of, split=30)
        asked = [(shop, NOON + after) for shop in (0, 1, 2, 7) for after in range(16)]
        frame = frame_of([*(shop for shop, _ in asked), None], [*(at for _, at in asked), NOON])
        (joined,) = project.join(frame, [view]).chosen()
        assert joined == project.engine.joins.chosen(frame, "when", view, since=[(0, MIN_INSTANT)])
        for given in ([(0, MIN_INSTANT)], since):
            wanted: list[int | None] = []
            for shop, at_us in asked:
                there = [each for each in rows if all(at_us >= start for start in _begun(each.sequence, given))]
                found = reference_answer((shop,), at_us, there, ttl_us=6, as_of=as_of)
                wanted.append(found.sequence if isinstance(found, ReferenceRow) else None)
            chosen = project.engine.joins.chosen(frame, "when", view, since=given)
            assert chosen.to_pylist() == [*wanted, None]
        empty = replace(view, files=())
        assert project.engine.joins.chosen(frame, "when", empty, since=since).null_count == len(frame)

    def test_ttl_bounds_are_inclusive(self, project: EngineProject) -> None:
        view = one_view(project, [row(1, NOON, NOON, v=7)], ttl_us=10)
        asked = [(1, NOON - 1), (1, NOON), (1, NOON + 10), (1, NOON + 11)]
        assert values(project, view, *asked) == [None, 7, 7, None]
        (facts,) = project.facts(frame_of([1] * 4, [time for _, time in asked]), [view])
        assert (facts.nulls["nothing_before"], facts.nulls["expired"], facts.greatest_age_us) == (1, 1, 10)
        assert values(project, view, (1, NOON + 10)) == [7], "an event at the bound was not read"

    def test_a_value_is_not_yet_available_where_event_time_alone_would_answer(self, project: EngineProject) -> None:
        rows = [row(1, NOON - 50, NOON - 50, 0, v=1), row(1, NOON, NOON + 30, 1, v=2)]
        view = one_view(project, rows, ttl_us=10)
        asked = [NOON + 10, NOON + 11]  # the second row would answer, had it been known; would not any more
        assert values(project, view, *((1, time) for time in asked)) == [None, None]
        for time, reason in zip(asked, ("not_yet_available", "expired"), strict=True):
            (facts,) = project.facts(frame_of([1], [time]), [view])
            assert {name for name, count in facts.nulls.items() if count} == {reason}

    def test_a_correction_counts_from_when_it_is_known(self, project: EngineProject) -> None:
        rows = [
            row(1, NOON, NOON, 0, v=1),
            row(1, NOON, NOON + 100, 1, v=2),  # corrects the first
            row(1, NOON + 10, NOON + 50, 2, v=3),
            row(1, NOON - 5, NOON + 200, 3, v=4),  # late, and older than what is known
        ]
        asked = [(1, NOON + after) for after in (-1, 0, 49, 50, 100, 200)]
        assert values(project, one_view(project, rows), *asked) == [None, 1, 1, 3, 3, 3]
        assert values(project, one_view(project, rows, as_of="event"), *asked) == [4, 2, 3, 3, 3, 3]

    def test_known_before_it_happens_counts_when_it_happens(self, project: EngineProject) -> None:
        view = one_view(project, [row(1, NOON, NOON - 500, v=1)])
        assert values(project, view, (1, NOON - 1), (1, NOON)) == [None, 1]

    @pytest.mark.parametrize("swapped", [False, True])
    def test_full_ties_go_to_the_later_arrival_in_any_file_order(self, project: EngineProject, swapped: bool) -> None:
        view = one_view(project, [row(1, NOON, None, 5, v=5), row(1, NOON, NOON, 4, v=4)], split=1)
        files = view.files[::-1] if swapped else view.files
        assert values(project, ViewJoin("shops", view.view, files, view.key_columns, ("v",), "event"), (1, NOON)) == [5]

    def test_every_type_comes_back_as_it_is(self, project: EngineProject) -> None:
        kinds = {name: kind for name, (kind, _) in EVERY_TYPE.items()}
        view = log_view("all_types", {"shop": Int64}, kinds)
        wanted = {
            name: instants(*given) if kind == Timestamp else pa.array(given, arrow_type(kind))
            for name, (kind, given) in EVERY_TYPE.items()
        }
        log = {
            "shop": pa.array([1, 2, 3]),
            "event_ts": instants(*[NOON] * 3),
            "created_ts": instants(*[None] * 3),
            "fs_seq": pa.array([0, 1, 2]),
            "fs_origin": pa.array(["push"] * 3),
        }
        path = project.write("log.parquet", pa.table({**log, **wanted}))
        joined = ViewJoin("all_types", view, names([path]), {"shop": "shop"}, tuple(kinds), "available")
        # The unknown shop puts nulls beside everything, which must not turn integers into floats.
        found = project.joined(frame_of([3, 9, 1, 2], [NOON] * 4), [joined], batch_rows=2)
        for name, column in wanted.items():
            expected = pa.concat_arrays([column[2:3], pa.nulls(1, column.type), column[:2]])
            assert found.column(f"all_types__{name}").type == column.type
            assert found.column(f"all_types__{name}").combine_chunks().equals(expected), name

    def test_keys_of_every_type(self, project: EngineProject) -> None:
        keys: dict[str, tuple[ValueType, list[Any]]] = {
            "small": (Int32, [-1, 2**31 - 1]),
            "large": (Int64, [2**62 + 1, 2**62 + 2]),
            "text": (String, ["a|b", "a"]),
            "flag": (Bool, [False, True]),
            "day": (Date, [date(1969, 12, 31), date(2020, 2, 29)]),
            "raw": (Bytes, [b"\x00", b""]),
        }
        view = log_view("wide", {name: kind for name, (kind, _) in keys.items()}, {"v": Int64})
        rows = [
            row(tuple(given[place] for _, given in keys.values()), NOON, sequence=place, v=place) for place in (0, 1)
        ]
        files = names([write_log(project.root / "log.parquet", view, rows)])
        frame = {name: pa.array([given[1], given[0], None], arrow_type(kind)) for name, (kind, given) in keys.items()}
        frame["flag"] = pa.array([True, True, False])  # the second differs from the first row in this key alone
        joined = ViewJoin("wide", view, files, {name: name for name in keys}, ("v",), "event")
        table = pa.table({**frame, "when": instants(*[NOON] * 3)})
        assert project.joined(table, [joined], batch_rows=9).column(0).to_pylist() == [1, None, None]
        (facts,) = project.facts(table, [joined])
        assert facts.nulls == {
            "null_key": 1,
            "no_entity": 1,
            "nothing_before": 0,
            "not_yet_available": 0,
            "expired": 0,
        }

    def test_names_that_mean_something_to_the_engine(self, project: EngineProject) -> None:
        features = ["row", "id", "seq", "k0", "at_us", "filename", "select", "Order"]
        view = log_view("tables", {"l": Int64, "range": Int64}, dict.fromkeys(features, Int64))
        rows = [row((1, 2), NOON, v=0, **{name: place for place, name in enumerate(features)})]
        # Neither a folder that looks like a partition nor columns that differ only in case may be mistaken for others.
        files = names([write_log(project.root / "row=7" / "log.parquet", view, rows)])
        joined = ViewJoin("tables", view, files, {"l": "Range", "range": "range"}, tuple(features), "event")
        frame = pa.table({"range": pa.array([2]), "Range": pa.array([1]), "k0": pa.array([5]), "row": instants(NOON)})
        found = project.joined(frame, [joined], time_column="row", batch_rows=1)
        assert found.to_pylist() == [{f"tables__{name}": place for place, name in enumerate(features)}]
        (facts,) = project.facts(frame, [joined], time_column="row")
        assert (facts.greatest_age_us, sum(facts.nulls.values())) == (0, 0)

    def test_nothing_to_join(self, project: EngineProject) -> None:
        full = one_view(project, [row(1, NOON, v=1)])
        bare = ViewJoin("bare", full.view, (), {"shop": "shop"}, ("v",), "available")
        empty = frame_of([], [])
        read = project.joined(empty, [full, bare], batch_rows=5)
        assert read.num_rows == 0
        assert read.schema == pa.schema([("shops__v", pa.int64()), ("bare__v", pa.int64())])
        frame = frame_of([1, None, 8], [NOON] * 3)
        assert project.joined(frame, [bare, full], batch_rows=5).to_pylist() == [
            {"bare__v": None, "shops__v": 1},
            {"bare__v": None, "shops__v": None},
            {"bare__v": None, "shops__v": None},
        ]
        facts = project.facts(frame, [bare, full])
        assert [(fact.nulls["null_key"], fact.nulls["no_entity"]) for fact in facts] == [(1, 2), (1, 1)]
        assert facts[0].greatest_age_us is None
        assert set(project.facts(empty, [full])[0].nulls.values()) == {0}

    def test_a_feature_that_no_file_holds_yet_is_null(self, project: EngineProject) -> None:
        view = log_view("shops", {"shop": Int64}, {"v": Int64, "new": Array(Float64)})
        files = names([write_log(project.root / "log.parquet", view, [row(1, NOON, v=3)], without=["new"])])
        joined = ViewJoin("shops", view, files, {"shop": "shop"}, ("new", "v"), "event")
        found = project.joined(frame_of([1], [NOON]), [joined], batch_rows=5)
        assert found.to_pylist() == [{"shops__new": None, "shops__v": 3}]
        assert found.schema.field("shops__new").type == pa.list_(pa.float64())

    def test_the_ends_of_time(self, project: EngineProject) -> None:
        rows = [row(shop, MIN_INSTANT, None, shop, v=shop) for shop in range(40)]
        ends = [row(shop, MAX_INSTANT, None, 100 + shop, v=100 + shop) for shop in range(40)]
        asked = [(shop, time) for shop in range(40) for time in (MIN_INSTANT, MAX_INSTANT - 1, MAX_INSTANT)]
        expected = [value for shop in range(40) for value in (shop, shop, 100 + shop)]
        assert values(project, one_view(project, rows + ends), *asked) == expected
        brief = one_view(project, rows + ends, ttl_us=1)
        assert values(project, brief, (5, MIN_INSTANT), (5, MIN_INSTANT + 1), (5, MIN_INSTANT + 2)) == [5, 5, None]

    def test_one_entity_with_very_many_events(self, project: EngineProject) -> None:
        rng = np.random.default_rng(11)
        events = np.sort(rng.integers(0, 10**9, 400_000))
        times = rng.integers(-10, 10**9, 50_000)
        log = {
            "shop": np.full(len(events), 4),
            "event_ts": instants(*(NOON + events).tolist()),
            "created_ts": pa.nulls(len(events), INSTANT),
            "fs_seq": np.arange(len(events)),
            "fs_origin": ["batch"] * len(events),
            "v": np.arange(len(events)),
        }
        path = project.write("log.parquet", pa.table(log))
        view = log_view("shops", {"shop": Int64}, {"v": Int64})
        frame = frame_of([4] * len(times), (NOON + times).tolist())
        joined = ViewJoin("shops", view, names([path]), {"shop": "shop"}, ("v",), "available")
        found = project.joined(frame, [joined], batch_rows=9_999).column(0)
        places = np.searchsorted(events, times, side="right") - 1
        assert found.to_pylist() == [int(place) if place >= 0 else None for place in places]

    def test_the_process_time_zone_changes_nothing(self, project: EngineProject) -> None:
        expected = [
            *(None, 0, 0, None),
            *(None, 1, 2, 2),
            *(1, 2, 2, None),
            *(None, 3, 3, 4),
            *(3, 4, 4, 5),
            *(4, 5, 5, None),
        ]
        assert project.run_in_zones(IN_ZONE) == [[str(expected)]] * 3

    def test_a_damaged_file_is_named(self, project: EngineProject) -> None:
        view = one_view(project, [row(1, NOON, v=1)])
        path = Path(view.files[0])
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DamagedFileError, match=path.name):
            values(project, view, (1, NOON))
        with pytest.raises(DamagedFileError, match=path.name):
            project.facts(frame_of([1], [NOON]), [view])

    def test_a_file_that_goes_while_rows_are_read_is_named(self, project: EngineProject) -> None:
        view = one_view(project, [row(1, NOON, v=1)])
        reader = project.join(frame_of([1], [NOON]), [view], batch_rows=1).batches()
        Path(view.files[0]).unlink()
        with pytest.raises(DamagedFileError, match=r"0\.parquet"):
            reader.read_all()

    def test_stored_frames_are_joined_as_those_that_are_passed(self, project: EngineProject) -> None:
        view = one_view(project, [row(1, NOON, sequence=0, v=1), row(2, NOON, sequence=1, v=2)])
        frames = [
            frame_of([2, None, 1, 2], [NOON, NOON, NOON + 1, NOON - 1]),
            frame_of([], []),
            frame_of([1] * 3, [NOON] * 3).append_column("label", pa.array(["x", None, "y"])),
        ]
        plain = [frame.select(["shop", "when"]) for frame in frames]
        found = project.joined_stored(frames, [view])
        assert [table.to_pylist() for table in found] == [project.joined(one, [view]).to_pylist() for one in plain]
        assert [table.num_rows for table in found] == [4, 0, 3]
        assert {table.schema for table in found} == {pa.schema([("shops__v", pa.int64())])}

    def test_a_stored_frame_that_cannot_be_joined_leaves_nothing_behind(self, project: EngineProject) -> None:
        view, frame = one_view(project, [row(1, NOON, v=1)]), frame_of([1], [NOON])
        files = [project.write("whole.parquet", frame), project.write("cut.parquet", frame)]
        files[1].write_bytes(files[1].read_bytes()[:-20])
        with pytest.raises(EngineError, match=r"cut\.parquet"):
            project.engine.joins.join_stored(names(files), "when", [view], project.staging)
        Path(view.files[0]).unlink()
        with pytest.raises(DamagedFileError):
            project.joined_stored([frame], [view])
        assert list(project.staging.iterdir()) == []
