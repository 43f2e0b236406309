"""Causes of differences that no server on one machine can be made to show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import Entity, FeatureView, Field, ParquetSource
from featurestore.quality.causes import CAUSES, Causes, Question, ServedRecord, on_its_way
from featurestore.quality.past import Arrival, Past, Withdrawn, _PushedOnline
from featurestore.quality.rows import LogRow, LogRows
from featurestore.registered.snapshot import RegisteredView
from featurestore.types import Int64
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


def rows(*held: LogRow) -> LogRows:
    found = LogRows(None, RegisteredView("p", VIEW, 1), None, [pa.array([], pa.int64())], np.zeros(0, np.int64))  # type: ignore[arg-type]
    found.by_sequence = {each.sequence: each for each in held}
    found._by_key = {(1,): list(held)}
    return found


OLD = LogRow(AT - 2_000 * SECOND, AT - 2_000 * SECOND, 0, (1,), 11)
NEW = LogRow(AT - 1_000 * SECOND, AT - 1_000 * SECOND, 1, (2,), 22)


def cause(
    *,
    expected: LogRow | None = NEW,
    served: LogRow | None = OLD,
    arrivals: tuple[Arrival, ...] = (arrival(),),
    withdrawals: tuple[Withdrawn, ...] = (),
    ahead_us: int = 0,
    before: FeatureView | None = None,
    crc: int | None = None,
) -> str:
    record = ServedRecord(None, None, None, None)
    log = rows(OLD, NEW)
    if served is not None:
        record = ServedRecord(served.event_us, served.created_us, served.crc if crc is None else crc, log.schema)
    past = Past(arrivals, withdrawals, _PushedOnline())
    found = Causes(VIEW, past, log).of(Question((1,), AT, ahead_us, record, expected, before))
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
    same = LogRow(OLD.event_us, OLD.created_us, 1, (2,), 22)
    assert cause(arrivals=late, expected=same) == "corrected"


def test_what_nothing_explains_is_unexplained_and_what_something_does_is_not() -> None:
    assert cause() == "unexplained"
    stranger = LogRow(AT - 1_500 * SECOND, AT - 1_500 * SECOND, 7, (3,), 33)
    assert cause(served=stranger) == "in no commit"
    gone = Withdrawn(AT + 5, stranger.event_us, stranger.event_us + 1)
    assert cause(served=stranger, withdrawals=(gone,)) == "withdrawn"
    elsewhere = Withdrawn(AT + 5, stranger.event_us + 1, stranger.event_us + 9)
    assert cause(served=stranger, withdrawals=(elsewhere,)) == "in no commit"
    assert cause(served=OLD, crc=12) == "damaged"
    other = VIEW.replaced(fields=(Field("w", Int64),))
    assert cause(before=other) == "definition"


def test_clocks_explain_what_lies_between_them() -> None:
    near = LogRow(AT - 3 * SECOND, AT - 3 * SECOND, 1, (2,), 22)
    assert cause(expected=near) == "unexplained"
    assert cause(expected=near, ahead_us=2 * SECOND) == "unexplained"
    assert cause(expected=near, ahead_us=3 * SECOND) == "clocks"
    assert cause(arrivals=(arrival(finished_us=AT - SECOND),), ahead_us=SECOND) == "clocks"


def test_a_row_belongs_to_the_commit_whose_numbers_begin_before_it() -> None:
    first, second = arrival(first_sequence=5), arrival(first_sequence=9, version=2, finished_us=None, started_us=None)
    past = Past([second, first], [], _PushedOnline())
    assert [past.arrival(number) for number in (4, 5, 8, 9, 99)] == [None, first, first, second, second]
    assert past.since() == [(5, first.finished_us), (9, MAX_INSTANT)]
