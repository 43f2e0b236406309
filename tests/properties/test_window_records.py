"""Windowed records read at any instant against plain loops, however their events came and whenever they were folded."""

from __future__ import annotations

import itertools
import math
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.examples import examples

from featurestore.definitions import Aggregation, Entity, FeatureView, Field, ParquetSource
from featurestore.errors import DamagedRecordError
from featurestore.online.interface import ViewLayout
from featurestore.online.records import folding
from featurestore.online.records.bulk import Events, build, encode_events
from featurestore.online.records.folding import folded_at_once
from featurestore.online.records.reading import Form
from featurestore.online.records.windowed import (
    decode,
    empty,
    encode,
    encode_event,
    entries_of,
    folded,
    head_of,
    is_intact,
)
from featurestore.online.records.windows_read import WindowRecords
from featurestore.online.records.windows_values import hash_of
from featurestore.statuses import Status
from featurestore.training.reference_windows import ReferenceEvent, reference_window
from featurestore.types import Float64, Int64, String
from featurestore.windows.layout import layout_of
from featurestore.windows.tiles import TileEvent

MINUTE_US = 60_000_000
WINDOWS = [timedelta(minutes=1), timedelta(minutes=12), None]
NUMBERS = ("count", "sum", "mean", "min", "max", "var", "std", "first", "last", "count_distinct")
TEXTS = ("count", "first", "last", "count_distinct")
KEY = b"fs:p:v:{1}"


def view(*, with_texts: bool = True) -> FeatureView:
    aggregations = [
        *(Aggregation(column, name, windows=WINDOWS) for column in ("f", "i") for name in NUMBERS),
        *(Aggregation("t", name, windows=WINDOWS, n=2 if name == "count_distinct" else None) for name in TEXTS),
        *(Aggregation(column, "last_n", n=3, windows=WINDOWS) for column in ("f", "i", "t")),
        Aggregation("*", "count", windows=WINDOWS),
        Aggregation("f", "sum", windows=WINDOWS, name="some", where="i > 0"),
        Aggregation("at", "last", windows=WINDOWS),
    ]
    schema = [Field("id", String), Field("f", Float64), Field("i", Int64), Field("t", String)]
    return FeatureView(
        "v",
        entities=[Entity("e", join_keys={"k": Int64})],
        source=ParquetSource("s", "s", "at", "known"),
        schema=schema if with_texts else schema[:-1],
        event_id="id",
        aggregations=[each for each in aggregations if with_texts or each.column != "t"],
    )


VIEW = view()
LAYOUT, ASKED = layout_of(VIEW)
NAMES = [window.name for window in VIEW.windows]


def reader(names: list[str], form: Form = "python") -> WindowRecords:
    keys = ViewLayout("p", "v", 1, (("k", Int64),), (), None)
    return WindowRecords(keys, LAYOUT, [ASKED[name] for name in names], form=form)


READER, JSON_READER, SOME = reader(NAMES), reader(NAMES, "json"), NAMES[::-3]
READER_OF_SOME = reader(SOME)
FLOATS = st.one_of(
    st.none(),
    st.sampled_from((0.1, 12.34, -0.0, 0.0, 1e16, 1e-16, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf)),
    st.integers(-500, 500).map(lambda cents: cents / 100),
)
INTEGERS = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from((2**63 - 1, -(2**63))))
EVENTS = st.tuples(
    st.integers(-20 * MINUTE_US, 0).map(lambda at: at // 5_000_000 * 5_000_000),
    st.sampled_from((0, 0, 1, MINUTE_US)),
    FLOATS,
    INTEGERS,
    st.sampled_from((None, b"", b"a", b"b", "é".encode())),
)


def expected(events: list[TileEvent], at_us: int) -> list[Any]:
    found = []
    names = {"f": 0, "i": 1, "t": 2, "at": 3}
    own = [
        ReferenceEvent(
            event.event_us,
            event.known_us,
            event.sequence,
            {name: event.values[place] for name, place in names.items()},
            frozenset({"i > 0"} if event.true else ()),
        )
        for event in sorted(events, key=lambda event: event.order)
    ]
    for window in VIEW.windows:
        of = window.aggregation
        value = reference_window(
            own,
            at_us,
            of.function,
            column=None if of.column == "*" else of.column,
            is_float=of.column == "f",
            condition=of.where,
            length_us=window.length_us,
            resolution_us=window.resolution_us,
            n=of.bound,
            as_of="available",
        )
        found.append(value)
    return found


def plain(value: Any) -> Any:
    """Return a value of a feature as the record keeps it."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value.encode()
    if hasattr(value, "timestamp"):
        return (
            value - value.replace(year=1970, month=1, day=1, hour=0, minute=0, second=0, microsecond=0)
        ) // timedelta(microseconds=1)
    return value


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return (one != one and other != other) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    return type(one) is type(other) and one == other


def fold(record: bytes, now_us: int, settled_us: int, key: bytes = KEY) -> bytes:
    new = folded(key, LAYOUT, record, now_us, hashed=hash_of, settled_us=settled_us)
    assert new is not None
    return new


LATER = st.sampled_from((0, 1, 5_000_000, MINUTE_US, 12 * MINUTE_US, 12 * MINUTE_US - 1, 40 * MINUTE_US))


def check(key: bytes, record: bytes, events: list[TileEvent], at: int) -> None:
    """Compare what a record answers at an instant with plain loops."""
    rows = READER.read([key], [record], at)
    statuses = (rows.statuses or [[Status.PRESENT] * len(NAMES)])[0]
    for name, found, wanted, status in zip(NAMES, rows.values[0], expected(events, at), statuses, strict=True):
        if name.startswith("at_"):
            assert (found is None) == (wanted is None), name
            continue
        assert is_same(plain(found), wanted), (name, at, found, wanted)
        assert status is (Status.NULL_VALUE if wanted is None else Status.PRESENT)
    (some,) = READER_OF_SOME.fresh([record], at) or [[]]
    assert all(map(is_same, some, rows.values[0][::-3]))
    assert len(some) == len(SOME)
    (in_json,), found = JSON_READER.read([key], [record], at).values, JSON_READER.fresh([record], at)
    assert found is not None
    assert in_json == [finite(value) for value in found[0]]
    assert [value for value in in_json if isinstance(value, float)] == [
        value for value in rows.values[0] if isinstance(value, float) and math.isfinite(value)
    ]


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@settings(max_examples=examples(150))
@given(st.data())
def test_a_record_answers_as_plain_loops_do(data: st.DataObject) -> None:
    drawn = data.draw(st.lists(EVENTS, max_size=14))
    events = [event_of(each, number) for number, each in enumerate(drawn)]
    record, now = empty(KEY, LAYOUT), -20 * MINUTE_US
    for event in events:
        record += encode_event(KEY, LAYOUT, event)
        assert list(entries_of(record))[-1] == encode_event(KEY, LAYOUT, event)
        if data.draw(st.integers(0, 3)) == 0:
            now = max(now, event.available_us) + data.draw(st.sampled_from((0, 1, 2_000_000, MINUTE_US)))
            record = fold(record, now, 2_000_000)
        assert is_intact(KEY, record)
        assert not is_intact(KEY + b"x", record)
    for _ in range(3):
        check(KEY, record, events, now + data.draw(LATER))
    tiles = decode(KEY, LAYOUT, fold(record, now, -(10**12)))
    assert encode(KEY, decode(KEY, LAYOUT, encode(KEY, tiles))) == encode(KEY, tiles)


@pytest.mark.parametrize("of", VIEW.aggregations, ids=lambda each: f"{each.column} {each.function}")
def test_each_aggregation_alone(of: Aggregation) -> None:
    """A record may hold lists and no tiles, or tiles and no lists."""
    alone = FeatureView(
        "v",
        entities=[Entity("e", join_keys={"k": Int64})],
        source=ParquetSource("s", "s", "at", "known"),
        schema=[field for field in VIEW.stored if field.name in (of.column, *of.condition_columns)],
        aggregations=[of],
    )
    layout, asked = layout_of(alone)
    places = [{"f": 0, "i": 1, "t": 2, "at": 3}[name] for name, _ in layout.columns]
    drawn = [(-number * MINUTE_US, 0, number / 4, number % 3, [b"a", b"b", None][number % 3]) for number in range(9)]
    events = [event_of(each, number) for number, each in enumerate(drawn)]
    mine = []
    for event in events:
        values = tuple(event.values[place] for place in places)
        if of.function == "count":  # of the values of a column that is only counted nothing is kept
            values = tuple(None if value is None else 0 for value in values)
        mine.append(event._replace(values=values, true=event.true if of.where else 0))
    names = [window.name for window in alone.windows]
    own = WindowRecords(
        ViewLayout("p", "v", 1, (("k", Int64),), (), None), layout, [asked[name] for name in names], form="python"
    )
    wanted = dict(zip(NAMES, expected(events, 0), strict=True))
    record = empty(KEY, layout) + b"".join(encode_event(KEY, layout, event) for event in mine)
    for settled_us in (10**12, 4 * MINUTE_US, -1):  # none in the tiles, some, all
        found = folded(KEY, layout, record, 0, hashed=hash_of, settled_us=settled_us)
        assert found is not None
        record = found
        assert encode(KEY, decode(KEY, layout, record)) + b"".join(entries_of(record)) == record
        (row,) = own.read([KEY], [record], 0).values
        if of.column != "at":
            assert all(map(is_same, map(plain, row), (wanted[name] for name in names))), settled_us


@settings(max_examples=examples(100))
@given(st.lists(st.lists(EVENTS, max_size=9), min_size=1, max_size=5), st.lists(EVENTS, max_size=4), LATER)
@example([[(-MINUTE_US, 0, 1e200, 1, None), (-MINUTE_US, 0, 1e-200, 1, None)]], [(0, 0, -1e200, 1, None)], 0)
@example([[]], [(0, 0, value, 1, None) for value in (1e308, 1e308, -1e308)], 0)
@example([[]], [(0, 0, value, 1, None) for value in (math.inf, -math.inf)], 0)
@example([[(-MINUTE_US, 0, 1.5, 2**60, None)] * 9, []], [], 0)
def test_records_that_are_made_at_once_answer_as_plain_loops_do(
    drawn: list[list[Any]], more: list[Any], later: int
) -> None:
    number = itertools.count()
    entities = [sorted(map(event_of, own, number), key=lambda event: event.order) for own in drawn]
    now = 2 * MINUTE_US
    keys = [b"fs:p:v:{%d}" % place for place in range(len(entities))]
    records = build(LAYOUT, keys, columns_of(entities), 77, now)
    added = [event_of(each, place) for each, place in zip(more, itertools.count(100))]
    for key, record, own in zip(keys, records, entities, strict=True):
        assert is_intact(key, record)
        assert head_of(record).base_sequence == 77
        check(key, record, own, now + later)
        for event in added:
            record += encode_event(key, LAYOUT, event)
        check(key, record, own + added, now + later)
        check(key, fold(record, now, 0, key=key), own + added, now + later)


@settings(max_examples=examples(60))
@given(st.lists(st.lists(EVENTS, max_size=5), min_size=1, max_size=3))
def test_entries_that_are_made_at_once_are_those_of_each_event(drawn: list[list[Any]]) -> None:
    """Without the texts; an event with nulls is left to the other function."""
    layout = layout_of(view(with_texts=False))[0]
    number = itertools.count()
    entities = [[numeric(event_of(each, next(number))) for each in own] for own in drawn]
    keys = [b"fs:p:v:{%d}" % place for place in range(len(entities))]
    found, is_whole = encode_events(layout, keys, columns_of(entities, (0, 1, 2)))
    rows = [(key, event) for key, own in zip(keys, entities, strict=True) for event in own]
    assert is_whole.tolist() == [None not in event.values for _, event in rows]
    for entry, (key, event), whole in zip(found, rows, is_whole.tolist(), strict=True):
        assert not whole or entry == encode_event(key, layout, event)
    assert not encode_events(LAYOUT, keys, columns_of([[event_of((0, 0, 1.0, 1, b""), 0)]]))[1].any()


@settings(max_examples=examples(60))
@given(
    st.lists(st.tuples(st.lists(EVENTS, max_size=5), st.lists(EVENTS, max_size=9)), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from((1, 3)),
    LATER,
)
def test_records_that_are_folded_at_once_are_those_of_each(
    drawn: list[Any], with_texts: bool, least: int, later: int
) -> None:
    layout = layout_of(view(with_texts=with_texts))[0]
    number, records = itertools.count(), []
    for place, (tiled, newest) in enumerate(drawn):
        key = b"fs:p:v:{%d}" % place
        record = empty(key, layout)
        for own in (tiled, newest):
            record = folded(key, layout, record, 0, hashed=hash_of, settled_us=-MINUTE_US) or record
            for each in own:
                event = event_of(each, next(number))
                record += encode_event(key, layout, event if with_texts else numeric(event))
        records.append((key, record))
    now = later - 12 * MINUTE_US
    wanted = [folded(key, layout, record, now, hashed=hash_of, settled_us=0, least=least) for key, record in records]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "FEW_EVENTS", 0)
        found = folded_at_once(layout, records, now, settled_us=0, least=least)
        assert found == wanted
        for key, record in records:
            broken = record[:-1] + bytes([record[-1] ^ 1])
            with pytest.raises(DamagedRecordError):
                folded_at_once(layout, [(key, broken)], now, settled_us=0)


def numeric(event: TileEvent) -> TileEvent:
    """Return an event without its text."""
    f, i, _, at = event.values
    return event._replace(values=(f, i, at))


def event_of(drawn: Any, number: int) -> TileEvent:
    at, late, f, i, t = drawn
    return TileEvent(number, at, at + late, (f, i, t, at), int(i is not None and i > 0))


def columns_of(entities: list[list[TileEvent]], kept: tuple[int, ...] = (0, 1, 2, 3)) -> Events:
    rows = [(place, event) for place, own in enumerate(entities) for event in own]
    values: list[tuple[Any, Any]] = []
    kinds = [(np.float64, 0.0), (np.int64, 0), *[(object, None)] * (len(kept) - 3), (np.int64, 0)]
    for place, (kind, null) in zip(kept, kinds, strict=True):
        found = [event.values[place] for _, event in rows]
        filled = np.array([null if value is None else value for value in found], kind)
        values.append((filled, np.array([value is not None for value in found], np.bool_)))
    numbers = [(place, event.event_us, event.known_us, event.sequence, event.true) for place, event in rows]
    entity, event_us, known_us, sequence, true = np.array(numbers, np.int64).reshape(-1, 5).T
    return Events(entity, event_us, known_us, sequence, values, [true == 1])


def test_of_several_records_the_damaged_one_is_named() -> None:
    whole, second = empty(KEY, LAYOUT), KEY + b"second"
    with pytest.raises(DamagedRecordError, match=r"second.*cut off"):
        READER.read([KEY, second, KEY], [whole, whole[:-1], whole], 0)
