"""Causes of differences that no server on one machine can be made to show."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.quality.before import Change, comes_from
from featurestore.quality.causes import CAUSES, Causes, Question, ServedRecord, leaving, on_its_way
from featurestore.quality.held import Held
from featurestore.quality.past import Arrival, Past, Withdrawn, _PushedOnline
from featurestore.quality.rows import LogRow, LogRows
from featurestore.registered.snapshot import RegisteredView
from featurestore.request.features import ViewRead
from featurestore.training.joins import PinnedRead
from featurestore.types import Int32, Int64
from featurestore.types.times import MAX_INSTANT

VIEW = FeatureView(
    "views",
    entities=[Entity("e", {"k": Int64})],
    source=ParquetSource("s", "s.parquet", "at"),
    schema=[Field("v", Int64)],
)
AT = 1_700_000_000_000_000
SECOND = 1_000_000


def arrival(**times: Any) -> Arrival:
    """A commit of a run that was committed, published and done long before the instant, but for what is given."""
    usual = {"committed_us": AT - 900 * SECOND, "started_us": AT - 800 * SECOND, "finished_us": AT - 700 * SECOND}
    return Arrival(**{"first_sequence": 0, "version": 1, "origin": "run", **usual, **times})


def rows(*held: LogRow, lost: tuple[Withdrawn, ...] = ()) -> LogRows:
    past = Past([], [], _PushedOnline())
    pinned = PinnedRead(ViewRead("v", RegisteredView("p", VIEW, 1), (), ()), "event", None)
    none = Held(None, pinned, past, 0)  # type: ignore[arg-type]
    found = LogRows(None, RegisteredView("p", VIEW, 1), none, [pa.array([], pa.int64())], np.zeros(0, np.int64))  # type: ignore[arg-type]
    found.lost = lost
    found.by_sequence = {each.sequence: each for each in held}
    found._by_key = {(1,): list(held)}
    return found


OLD = LogRow(AT - 2_000 * SECOND, AT - 2_000 * SECOND, 0, lambda: 11)
NEW = LogRow(AT - 1_000 * SECOND, AT - 1_000 * SECOND, 1, lambda: 22)


def cause(
    *,
    expected: LogRow | None = NEW,
    served: LogRow | None = OLD,
    arrivals: tuple[Arrival, ...] = (arrival(),),
    withdrawals: tuple[Withdrawn, ...] = (),
    ahead_us: int = 0,
    change: Change | None = None,
    held: tuple[LogRow, ...] = (),
    crc: int | None = None,
) -> str:
    record = ServedRecord(None, None, None, None)
    log = rows(OLD, NEW, *held, lost=withdrawals)
    if served is not None:
        record = ServedRecord(served.event_us, served.created_us, served.crc if crc is None else crc, log.schema)
    past = Past(arrivals, withdrawals, _PushedOnline())
    found = Causes(VIEW, past, log).of(Question((1,), AT, ahead_us, record, expected, change))
    assert found in CAUSES
    return found


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ({"committed_us": AT + 1}, "late"),
        ({"committed_us": AT}, None),
        ({"finished_us": None, "started_us": None}, "not published"),
        ({"finished_us": AT + 1, "started_us": AT + 1}, "not published"),
        ({"finished_us": AT + 1, "started_us": AT}, "publishing"),
        ({"finished_us": None}, "publishing"),  # it died
        ({"finished_us": AT}, None),
        ({"origin": "push", "committed_us": AT - SECOND, "started_us": None, "finished_us": None}, "publishing"),
        ({"origin": "push", "started_us": None, "finished_us": None}, "not published"),
        ({"committed_us": None}, None),  # an earlier release wrote no instants
    ],
)
def test_a_commit_is_on_its_way_until_it_is_online(times: dict[str, Any], told: str | None) -> None:
    assert on_its_way(arrival(**times), AT, corrects=False) == told


def test_a_correction_is_told_from_a_late_row() -> None:
    late = (arrival(committed_us=AT + 1),)
    assert cause(arrivals=late) == "late"
    same = LogRow(OLD.event_us, OLD.created_us, 1, lambda: 22)
    assert cause(arrivals=late, expected=same) == "corrected"


def test_what_nothing_explains_is_unexplained_and_what_something_does_is_not() -> None:
    assert cause() == "unexplained"
    stranger = LogRow(AT - 1_500 * SECOND, AT - 1_500 * SECOND, 7, lambda: 33)
    assert cause(served=stranger) == "in no commit"
    gone = Withdrawn(AT + 5, stranger.event_us, stranger.event_us + 1)
    assert cause(served=stranger, withdrawals=(gone,)) == "withdrawn"
    elsewhere = Withdrawn(AT + 5, stranger.event_us + 1, stranger.event_us + 9)
    assert cause(served=stranger, withdrawals=(elsewhere,)) == "in no commit"
    assert cause(served=OLD, crc=12) == "damaged"
    other = RegisteredView("p", VIEW.replaced(fields=(Field("v", Int32),)), 1)
    assert cause(change=Change("definition", other)) == "definition"


def test_rows_are_withdrawn_only_after_they_were_served() -> None:
    gone = Withdrawn(AT - 5, 0, AT, 3, started_us=AT - 4, finished_us=AT - 3)
    assert leaving(gone, AT - 6) == "withdrawn"
    assert leaving(gone, AT - 5) == "not published"
    assert leaving(gone, AT - 4) == "publishing"
    assert leaving(gone, AT - 3) is None
    left = LogRow(AT - 1_500 * SECOND, AT - 1_500 * SECOND, 7, lambda: 33, gone)
    assert cause(served=left, held=(left,)) == "unexplained"  # it was offline by then
    later = LogRow(left.event_us, left.created_us, 7, left.checksum, Withdrawn(AT + 1, 0, AT, 3))
    assert cause(served=later, held=(later,)) == "withdrawn"


def test_a_ttl_explains_what_had_expired_and_nothing_else() -> None:
    short = Change("ttl", RegisteredView("p", VIEW.replaced(ttl=timedelta(seconds=1_500)), 1))
    nothing = {"served": None, "change": short}
    assert cause(expected=OLD, **nothing) == "ttl"
    assert cause(expected=NEW, **nothing) == "unexplained"


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ({"description": "of cars"}, True),
        ({"ttl": timedelta(1)}, True),
        ({"online": False}, True),
        ({"sources": (PushSource("p", VIEW.sources[0]),)}, True),
        ({"fields": (Field("v", Int64, tags={"a": "b"}), Field("w", Int64))}, True),
        ({"fields": (Field("v", Int32),)}, False),
        ({"sources": (ParquetSource("s", "t.parquet", "at"),)}, False),
        ({"sources": (ParquetSource("s", "s.parquet", "then"),)}, False),
        ({"sources": (ParquetSource("s", "s.parquet", "at", "known"),)}, False),
        ({"sql": "SELECT k, at, v FROM s"}, False),
        ({"entities": (Entity("e", {"l": Int64}),)}, False),
    ],
)
def test_values_come_from_these_parts_of_a_view(other: dict[str, Any], is_same: bool) -> None:
    changed = RegisteredView("p", VIEW.replaced(**other), 1)
    assert (comes_from(changed, "v") == comes_from(RegisteredView("p", VIEW, 1), "v")) is is_same
    assert comes_from(changed, "v") != comes_from(RegisteredView("p", changed.view, 2), "v")


def test_clocks_explain_what_lies_between_them() -> None:
    near = LogRow(AT - 3 * SECOND, AT - 3 * SECOND, 1, lambda: 22)
    assert cause(expected=near) == "unexplained"
    assert cause(expected=near, ahead_us=2 * SECOND) == "unexplained"
    assert cause(expected=near, ahead_us=3 * SECOND) == "clocks"
    assert cause(arrivals=(arrival(finished_us=AT - SECOND),), ahead_us=SECOND) == "clocks"


def test_a_row_belongs_to_the_commit_whose_numbers_begin_before_it() -> None:
    first, second = arrival(first_sequence=5), arrival(first_sequence=9, version=2, finished_us=None, started_us=None)
    past = Past([second, first], [], _PushedOnline())
    assert [past.arrival(number) for number in (4, 5, 8, 9, 99)] == [None, first, first, second, second]
    assert past.since() == [(5, first.finished_us), (9, MAX_INSTANT)]
