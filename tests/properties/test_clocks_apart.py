"""Writers' clocks run ahead of the reader's: nothing is answered before its time, by the short way and the long way.

Beside plain loops: the store keeps the greatest row, the point-in-time join knows all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from featurestore.online.interface import ViewLayout
from featurestore.online.records.encoder import RecordEncoder
from featurestore.online.records.fresh import RowRecords
from featurestore.online.records.reading import ViewReader
from featurestore.statuses import Status
from featurestore.types import Int64

START = 1_700_000_000_000_000
FEATURES = (("a", Int64), ("b", Int64))


class Row(NamedTuple):
    entity: int
    event: int
    created: int | None
    a: int | None
    b: int | None

    @property
    def known(self) -> int:
        return self.event if self.created is None else self.created


NOW = 0
events = st.sampled_from([-4, -3, -2, -1, -1, 0, 0, 0, 1])
createds = st.sampled_from([None, -4, -1, 0, 0, 1, 2])
values = st.sampled_from([None, 1, 2, 3, 4, 5])
rows_of_writers = st.lists(st.builds(Row, st.integers(0, 2), events, createds, values, values), min_size=1, max_size=6)


def is_available(row: Row, has_created: bool) -> bool:
    return row.event <= NOW and (not has_created or max(row.event, row.known) <= NOW)


def joined(rows: list[Row], entity: int, ttl: int | None, has_created: bool) -> tuple[Any, ...]:
    """Return the values that the point-in-time join gives: of equal rows the one that arrived last."""
    best: Row | None = None
    for row in rows:
        if row.entity != entity or not is_available(row, has_created):
            continue
        if ttl is not None and row.event < NOW - ttl:
            continue
        if best is None or (row.event, row.known) >= (best.event, best.known):
            best = row
    return (None, None) if best is None else (best.a, best.b)


def stored(rows: list[Row], entity: int) -> Row | None:
    best: Row | None = None
    for row in rows:
        if row.entity == entity and (best is None or (row.event, row.known) >= (best.event, best.known)):
            best = row
    return best


def expected_status(row: Row | None, value: int | None, ttl: int | None, has_created: bool) -> Status:
    if row is None or not is_available(row, has_created):
        return Status.NOT_FOUND
    if ttl is not None and row.event < NOW - ttl:
        return Status.OUTSIDE_MAX_AGE
    return Status.NULL_VALUE if value is None else Status.PRESENT


@settings(max_examples=examples(500))
@given(rows=rows_of_writers, data=st.data(), ttl=st.sampled_from([None, 1, 3]), has_created=st.booleans())
def test_a_value_counts_from_its_time_on(
    rows: list[Row], data: st.DataObject, ttl: int | None, has_created: bool
) -> None:
    known = sorted({row.entity for row in rows})
    entities = data.draw(st.lists(st.sampled_from([*known, *known, 3]), min_size=1, max_size=3))
    layout = ViewLayout("p", "v", 1, (("id", Int64),), FEATURES, ttl, has_created)
    encoder = RecordEncoder(layout)
    found = [stored(rows, entity) for entity in entities]
    records = [
        None
        if row is None
        else encoder.encode(
            b"key", START + row.event, None if row.created is None else START + row.created, [row.a, row.b]
        )
        for row in found
    ]
    keys = [b"key"] * len(records)
    answer = ViewReader(layout, ["a", "b"]).read(keys, records, START + NOW)
    statuses = [list(column) for column in zip(*answer.status_columns(), strict=True)]
    assert statuses == [
        [expected_status(row, value, ttl, has_created) for value in ((row.a, row.b) if row else (None, None))]
        for row in found
    ]
    for place, (entity, row) in enumerate(zip(entities, found, strict=True)):
        of_entity = [row for row in rows if row.entity == entity]
        told = tuple(answer.values[place])
        if all(is_available(row, has_created) for row in of_entity):
            assert told == joined(rows, entity, ttl, has_created)
        if row is not None and not is_available(row, has_created):
            assert told == (None, None)  # what it replaced is gone from here, what it says is not known yet
            assert answer.records[place] is None

    fresh = RowRecords(layout, ["a", "b"], form="json").fresh(records, START + NOW)
    is_plain = not {Status.NOT_FOUND, Status.OUTSIDE_MAX_AGE} & {status for row in statuses for status in row}
    assert fresh == ([list(values) for values in answer.values] if is_plain else None)
