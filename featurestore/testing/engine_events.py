"""Which rows of a source every engine must take for new events, held against plain loops.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.definitions import Aggregation, Entity, FeatureView, Field, ParquetSource
from featurestore.engine.interface import Span
from featurestore.errors import SourceSchemaError
from featurestore.testing.engine_project import EngineProject, EngineSuite, instants, paths_of, read_log
from featurestore.types import Float64, Int64, String
from featurestore.types.columns import CREATED, EVENT, ORIGIN
from featurestore.types.times import MAX_INSTANT

DAY_US = 86_400_000_000
HOUR_US = DAY_US // 24


def events_view(*, event_id: str | None = "id", path: str = "data", sql: str | None = None) -> FeatureView:
    """Return a view that counts events."""
    fields = [Field("v", Float64), Field("t", String)]
    if event_id is not None:
        fields.insert(0, Field(event_id, String))
    return FeatureView(
        "purchases",
        entities=[Entity("buyer", join_keys={"k": Int64})],
        source=ParquetSource("flights", path, "at", "known"),
        schema=fields,
        sql=sql,
        event_id=event_id,
        aggregations=[Aggregation("v", "sum", windows=[None]), Aggregation("t", "last", windows=[None])],
    )


BY_SQL = 'SELECT id, v, t, known, "at", k FROM flights'
Event = tuple[Any, ...]
"""Key, id, event time, created time, value, text."""


def write_events(project: EngineProject, name: str, events: Sequence[Event]) -> Path:
    """Write events into one file of the source."""
    keys, ids, at, known, values, texts = zip(*events, strict=True) if events else [()] * 6
    table = pa.table(
        {
            "k": pa.array(keys, pa.int64()),
            "id": pa.array(ids, pa.string()),
            "at": instants(*at),
            "known": instants(*known),
            "v": pa.array(values, pa.float64()),
            "t": pa.array(texts, pa.string()),
        }
    )
    return project.write(f"data/{name}.parquet", table)


def event(
    key: int | None = 1, id: str | None = "a", at: int = 0, known: int | None = None, v: Any = 1.0, t: Any = "x"
) -> Event:
    """Return one event."""
    return key, id, at, known, v, t


def logged(files: Sequence[Path]) -> list[Event]:
    """Return the events of files in the order in which they arrived."""
    rows = read_log(files)
    if not rows.num_rows:
        return []
    times = (rows[name].cast(pa.int64()).to_pylist() for name in (EVENT, CREATED))
    ids = rows["id"].to_pylist() if "id" in rows.column_names else [None] * rows.num_rows
    return list(zip(rows["k"].to_pylist(), ids, *times, rows["v"].to_pylist(), rows["t"].to_pylist(), strict=True))


def kept_by_id(log: list[Event], found: Sequence[Event]) -> tuple[list[Event], int, int]:
    """Return the events that are new by plain loops, how many are known and repeat no other, and how many conflict."""
    kept: list[Event] = []
    of_source: list[Event] = []
    known = conflicts = 0
    for one in sorted(found, key=lambda one: (one[2], one[2] if one[3] is None else one[3])):
        of_log = [other for other in log if is_one(one, other)]
        same = of_log or [other for other in kept if is_one(one, other)]
        if of_log and not any(is_one(one, other) for other in of_source):
            of_source.append(one)
            known += 1
        if not same:
            kept.append(one)
        elif not any(content(one) == content(other) for other in (same if of_log else same[:1])):
            conflicts += 1
    return kept, known, conflicts


def is_one(one: Event, other: Event) -> bool:
    """Tell whether two are one event."""
    return one[:2] == other[:2] and abs(one[2] - other[2]) <= DAY_US


def content(one: Event) -> Event:
    """Return what makes an event another one, although its id is the same."""
    return (one[2], *one[4:])


class EngineEventsConformance(EngineSuite):
    """What a run takes for a new event."""

    @pytest.mark.parametrize("sql", [None, BY_SQL])
    def test_one_id_within_a_day_is_one_event(self, project: EngineProject, sql: str | None) -> None:
        view = events_view(sql=sql)
        write_events(project, "1", [event(at=0), event(at=20 * HOUR_US, v=2.0), event(at=40 * HOUR_US), event(key=2)])
        first = project.stage(view)
        assert logged(paths_of(first)) == [event(key=2), event(at=0), event(at=40 * HOUR_US)] or sorted(
            logged(paths_of(first))
        ) == sorted([event(at=0), event(key=2), event(at=40 * HOUR_US)])
        assert (first.appended, first.duplicates, first.conflicts, first.conflicts_in_source) == (3, 1, 1, 1)
        again = project.stage(view, log=paths_of(first), first_sequence=10)
        # The one at 20 hours is known by both others now: it is at most a day from each.
        assert (again.appended, again.unchanged, again.duplicates, again.conflicts) == (0, 3, 1, 1)
        assert again.conflicts_in_source == 1
        (dropped,) = project.dropped(view, 5)
        assert (dropped["fs_dropped"], dropped["v"]) == ("duplicate", 2.0)

    def test_a_conflict_within_the_source_is_told_from_one_with_the_log(self, project: EngineProject) -> None:
        view = events_view()
        write_events(project, "1", [event(id=each) for each in "abcd"])
        first = project.stage(view)
        found = [
            *(event(id="a", v=2.0), event(id="a", v=2.0)),  # corrected: equal to one another
            *(event(id="b", v=2.0), event(id="b", v=3.0)),  # neither is the log's
            *(event(id="c", v=2.0), event(id="c")),  # the later one is the log's
            event(id="d", v=2.0),
        ]
        write_events(project, "1", found)
        again = project.stage(view, log=paths_of(first), first_sequence=10)
        counts = again.appended, again.unchanged, again.duplicates, again.conflicts, again.conflicts_in_source
        assert counts == (0, 4, 3, 6, 3)
        left = list(project.withdraw(view, paths_of(first), Span(0, DAY_US)).written)
        rebuilt = project.stage(view, log=left, first_sequence=20)
        assert (rebuilt.appended, rebuilt.conflicts, rebuilt.conflicts_in_source) == (3, 2, 2)

    def test_what_came_first_counts(self, project: EngineProject) -> None:
        view = events_view()
        write_events(project, "1", [event(v=1.0, known=5)])
        first = project.stage(view)
        write_events(project, "1", [event(v=2.0, known=9), event(v=1.0, known=7), event(id="b", v=3.0)])
        second = project.stage(view, log=paths_of(first), first_sequence=10)
        assert logged(paths_of(second)) == [event(id="b", v=3.0)]
        # Created times do not make events differ.
        assert (second.unchanged, second.duplicates, second.conflicts) == (1, 1, 1)

    @pytest.mark.parametrize("sql", [None, BY_SQL])
    @pytest.mark.parametrize("seed", range(6))
    def test_ids_by_plain_loops(self, project: EngineProject, seed: int, sql: str | None) -> None:
        dice, view, log, files = Random(seed), events_view(sql=sql), list[Event](), list[Path]()
        for run in range(4):
            found = [
                event(
                    dice.randrange(2),
                    dice.choice("abc"),
                    dice.randrange(12) * 9 * HOUR_US,
                    dice.choice([None, dice.randrange(12) * 9 * HOUR_US]),
                    dice.choice([None, 1.0, 2.0]),
                )
                for _ in range(dice.randrange(12))
            ]
            write_events(project, "1", found)
            staged = project.stage(view, log=files, first_sequence=100 * run)
            wanted, known, conflicts = kept_by_id(log, in_run_order(found, sql))
            assert Counter(logged(paths_of(staged))) == Counter(wanted)
            assert (staged.unchanged, staged.conflicts, staged.read) == (known, conflicts, len(found))
            assert staged.conflicts_in_source <= staged.conflicts
            assert staged.appended + staged.unchanged + staged.duplicates == len(found)
            files, log = [*files, *paths_of(staged)], [*log, *wanted]

    @pytest.mark.parametrize("seed", range(6))
    def test_without_ids_every_row_is_an_event(self, project: EngineProject, seed: int) -> None:
        dice, view, files = Random(seed), events_view(event_id=None), list[Path]()
        held: dict[str, list[Event]] = {}
        for run in range(5):
            name = dice.choice(["1", "2"])
            more = [event(dice.randrange(2), None, dice.randrange(2), dice.choice([None, 3])) for _ in range(4)]
            held[name] = [*held.get(name, []), *more]
            path = write_events(project, name, held[name])
            span = Span(0, MAX_INSTANT, files=(f"data/{path.name}",)) if dice.random() < 0.7 else Span(0, MAX_INSTANT)
            staged = project.stage(view, log=files, first_sequence=100 * run, spans=[span])
            files += paths_of(staged)
            assert staged.appended == 4
            assert Counter(logged(files)) == Counter(one for events in held.values() for one in events)
            again = project.stage(view, log=files, first_sequence=100 * run + 50)
            assert (again.appended, again.duplicates) == (0, 0)

    def test_without_ids_only_newly_created_rows_are_read(self, project: EngineProject) -> None:
        view = events_view(event_id=None)
        write_events(project, "1", [event(id=None, known=1)])
        files = paths_of(project.stage(view))
        write_events(project, "1", [event(id=None, known=1), event(id=None, known=5), event(id=None, known=5)])
        staged = project.stage(view, log=files, first_sequence=5, spans=[Span(0, MAX_INSTANT, created_after_us=2)])
        assert (staged.read, staged.appended) == (2, 2)

    @pytest.mark.parametrize("event_id", ["id", None])
    def test_a_rebuild_takes_what_the_source_holds_now(self, project: EngineProject, event_id: str | None) -> None:
        view = events_view(event_id=event_id)
        one = event(id="a" if event_id else None)
        before = [one, event(id="b", at=5), event(id="c", at=DAY_US)]
        before += [] if event_id else [one]
        write_events(project, "1", before)
        files = paths_of(project.stage(view))
        write_events(project, "1", [one, event(id="b", at=5, v=2.0)])
        span = Span(0, DAY_US)  # the third is not in it
        gone = project.withdraw(view, files, span)
        assert (gone.rows, gone.removed) == (1 if event_id else 2, tuple(map(str, files)))
        left = list(gone.written)
        assert Counter(one[2] for one in logged(left)) == Counter([0, DAY_US])
        corrected = project.stage(view, log=left, first_sequence=10, spans=[span])
        assert [one[4] for one in logged(paths_of(corrected))] == [2.0]
        assert project.withdraw(view, [*left, *paths_of(corrected)], span).rows == 0
        assert project.withdraw(view, files, span, dry=True).rows == gone.rows

    def test_a_rebuild_takes_corrections_of_pushed_events(self, project: EngineProject) -> None:
        view, span = events_view(), Span(0, DAY_US)
        at = DAY_US // 2
        write_events(
            project,
            "1",
            [event(id=each, at=at) for each in ("other value", "moved", "the same", "twice", "untold", "long", "later")]
            + [event(id="outside", at=DAY_US + 5), event(id="two", at=0), event(id="two", at=DAY_US + 5)],
        )
        (path,) = paths_of(project.stage(view))
        pushed = pq.read_table(path)
        pq.write_table(pushed.set_column(pushed.column_names.index(ORIGIN), ORIGIN, [["push"] * len(pushed)]), path)
        moved, corrected = event(id="moved", at=at - 5), event(id="other value", at=at, v=2.0)
        write_events(
            project,
            "1",
            [
                corrected,
                moved,
                event(id="the same", at=at, known=at + 5),
                event(id="twice", at=at),
                event(id="twice", at=at, v=2.0),
                event(id="long", at=at, t="x" * 257),  # cannot be kept
                event(id="later", at=at, known=MAX_INSTANT, v=2.0),  # is not known yet
                event(id="outside", at=DAY_US - 1),  # the pushed one is not in the span
                event(id="two", at=10, v=2.0),  # is at most a day from both
            ],
        )
        gone = project.withdraw(view, [path], span, now_us=DAY_US)
        assert (gone.rows, gone.removed) == (2, (str(path),))
        left = list(gone.written)
        assert {one[1] for one in logged([path])} - {one[1] for one in logged(left)} == {"moved", "other value"}
        staged = project.stage(view, log=left, first_sequence=100, spans=[span], now_us=DAY_US)
        assert Counter(logged(paths_of(staged))) == Counter([corrected, moved])
        assert project.withdraw(view, [*left, *paths_of(staged)], span, now_us=DAY_US).rows == 0

    def test_what_cannot_be_kept_is_counted(self, project: EngineProject) -> None:
        long = "é" * 129
        write_events(
            project,
            "1",
            [
                event(id=None),
                event(id="b", t=long),
                event(id=long),
                event(id="c", t="é" * 128),
                event(key=None),
                event(id="d", t=None),
            ],
        )
        staged = project.stage(events_view())
        assert (staged.read, staged.appended, staged.unusable, staged.null_keys) == (6, 2, 3, 1)
        assert [one[1] for one in logged(paths_of(staged))] == ["c", "d"]

    def test_conditions_are_checked_against_the_schema(self, project: EngineProject) -> None:
        def check(where: str) -> None:
            base = events_view()
            named = Aggregation("v", "sum", windows=[None], where=where)
            project.engine.sources.check_conditions(base.replaced(aggregations=(named, *base.aggregations[1:])))

        write_events(project, "empty", [])
        check("v < 0 AND t = 'x' AND id <> '' AND \"at\" > '2024-01-01' AND known IS NULL AND k = 1")
        with pytest.raises(SourceSchemaError, match="'v' is DOUBLE, and a condition is true or false"):
            check("v")
        with pytest.raises(SourceSchemaError, match=r"does not run: .* Here V is Float64, id is String\. "):
            check("regexp_matches(V, id)")
        for several in ("entropy(v) > 1", "mad(v) > 1", "unnest([v]) > 1"):
            with pytest.raises(SourceSchemaError, match="cannot be computed of one event alone"):
                check(several)
        with pytest.raises(SourceSchemaError, match=r"cannot be computed of any row: .*'big'"):
            check("v > 'big'")

    @pytest.mark.parametrize("sql", [None, BY_SQL], ids=["plain", "by SQL"])
    def test_conditions_are_tried_on_rows_of_the_source(self, project: EngineProject, sql: str | None) -> None:
        def check(where: str) -> dict[str, int]:
            base, named = events_view(sql=sql), Aggregation("v", "sum", windows=[None], where=where)
            view = base.replaced(aggregations=(named, *base.aggregations[1:]))
            return dict(project.engine.sources.check_conditions(view))

        number, date = "CAST(t AS INTEGER) > 5", "CAST(v AS DATE) > '2024-01-01'"
        write_events(project, "1", [event(id="a", t="shop"), event(id="b", t=None)])
        for where in (number, date):
            with pytest.raises(SourceSchemaError, match=r"cannot be computed of any row: .* TRY_CAST gives null"):
                check(where)
        for never in ("TRY_CAST(t AS INTEGER) > 5", "v = NULL", "id = 'A' -- in capitals"):
            assert check(never) == {never: 2}
        assert check("t IS NULL") == {}
        check("id = 'b' AND CAST(t AS INTEGER) > 5")
        write_events(project, "1", [event(id="a", t="shop"), event(id="b", t="6")])
        check(number)
        write_events(project, "1", [event(id="b", t=None)])
        check(number)


def in_run_order(found: Sequence[Event], sql: str | None) -> list[Event]:
    """Return events as a run numbers them: as they lie in the file; those that come from SQL by what they hold."""
    if sql is None:
        return list(found)
    return sorted(
        found,
        key=lambda one: (
            one[2],
            one[2] if one[3] is None else one[3],
            one[0],
            one[1],
            one[4] is None,
            one[4] or 0.0,
            one[5],
        ),
    )
