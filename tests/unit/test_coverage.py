"""Which entity rows look past what was committed, against a loop over the definition."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.definitions import Aggregation, Entity, FeatureView, Field, ParquetSource
from featurestore.ledger.watermarks import Interval, Watermark, merge
from featurestore.registered.snapshot import RegisteredView
from featurestore.training.coverage import RECENT_US, Gap, find_gap, gaps_text
from featurestore.types import Int64, String


def view(ttl_us: int | None) -> RegisteredView:
    made = FeatureView(
        "delays",
        entities=[Entity("carrier", {"carrier": String})],
        source=ParquetSource("s", "s.parquet", "at"),
        schema=[Field("x", Int64)],
        ttl=None if ttl_us is None else timedelta(microseconds=ttl_us),
    )
    return RegisteredView("shop", made, 1)


def is_covered(at: int, ttl_us: int | None, intervals: tuple[Interval, ...], begun_us: int | None) -> bool:
    """Every instant from the first committed one, or t - ttl, up to t is committed; or nothing was ever there."""
    if begun_us is not None and at < begun_us:
        return True
    first = intervals[0][0] if ttl_us is None else max(intervals[0][0], at - ttl_us)
    wanted = range(min(first, at), at + 1)
    return all(any(start <= instant < end for start, end in intervals) for instant in wanted)


INTERVALS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), min_size=1, max_size=4)


@given(
    intervals=INTERVALS,
    times=st.lists(st.integers(-5, 45), min_size=1, max_size=8),
    ttl_us=st.none() | st.integers(1, 30),
    begun_us=st.none() | st.integers(0, 5),
)
def test_rows_are_counted_as_the_definition_says(
    intervals: list[tuple[int, int]], times: list[int], ttl_us: int | None, begun_us: int | None
) -> None:
    merged = merge((start, start + length) for start, length in intervals)
    gap = find_gap(view(ttl_us), Watermark(intervals=merged, begun_us=begun_us), np.array(times), 1_000)
    expected = sum(not is_covered(at, ttl_us, merged, begun_us) for at in times)
    assert (0 if gap is None else gap.rows) == expected


@pytest.mark.parametrize(
    ("intervals", "times", "span"),
    [
        ([], [5], None),
        ([(0, 10)], [12], None),
        ([(10, 20)], [5], ("000005", "000010")),
        ([(0, 10), (20, 30)], [25], ("000010", "000020")),
        ([(0, 10), (20, 30)], [15], ("000010", "000016")),
        ([(0, 10), (20, 30)], [1_000], ("000010", "001000")),
    ],
)
def test_the_command_commits_what_is_missing(
    intervals: list[Interval], times: list[int], span: tuple[str, str] | None
) -> None:
    dates = "" if span is None else " ".join(f"1970-01-01T00:00:00.{part}Z" for part in span) + " "
    command = f"fs materialize {dates}--view delays"
    gap = find_gap(view(None), Watermark(intervals=tuple(intervals)), np.array(times), 1_000)
    assert gap is not None
    told = gaps_text([replace(gap, recent=0)]) or ""
    assert f"Fill the gap with `{command}`." in told
    text = f"{len(times)} of {len(times)} entity rows look past what was committed of view 'delays': values may be"
    assert told.startswith(text)


@pytest.mark.parametrize("intervals", [(), ((0, 10),), ((0, 10), (20, 30))])
def test_rows_after_now_are_no_gap_that_a_command_fills(intervals: tuple[Interval, ...]) -> None:
    watermark = Watermark(intervals=intervals)
    assert find_gap(view(None), watermark, np.array([9_999, 1_001]), 1_000) is None
    gap = find_gap(view(None), watermark, np.array([9_999, 50]), 1_000)
    assert gap is not None
    assert (gap.rows, gap.total) == (1, 2)
    assert gap == replace(find_gap(view(None), watermark, np.array([50]), 1_000) or gap, total=2)


DAY_US = 86_400_000_000


@pytest.mark.parametrize(
    ("windows", "begun", "at", "span"),
    [
        # What lies before the first committed span is unknown: windows that reach there are not covered.
        ([2], None, 13, (11, 12)),
        ([2], None, 14, ()),
        ([2, None], None, 15, None),
        ([None], 12, 15, ()),
        ([2], 12, 13, ()),
        ([2], 3, 13, (11, 12)),
        ([None], 3, 13, (3, 12)),
        ([2], 3, 5, (3, 12)),
        ([2], 3, 2, ()),
        ([2], None, 21, None),
    ],
)
def test_windows_need_what_they_look_back_to(
    windows: list[int | None], begun: int | None, at: int, span: tuple[int, ...] | None
) -> None:
    made = FeatureView(
        "delays",
        entities=[Entity("carrier", {"carrier": String})],
        source=ParquetSource("s", "s.parquet", "at"),
        aggregations=[
            Aggregation("*", "count", windows=[None if days is None else timedelta(days=days) for days in windows])
        ],
    )
    source_begun_us = None if begun is None else begun * DAY_US
    watermark = Watermark(intervals=((12 * DAY_US, 20 * DAY_US),), source_begun_us=source_begun_us)
    gap = find_gap(RegisteredView("shop", made, 1), watermark, np.array([at * DAY_US]), 30 * DAY_US)
    days = () if gap is None else gap.span and tuple(instant // DAY_US for instant in gap.span)
    assert days == span


STEP = RECENT_US // 6


@given(
    intervals=INTERVALS,
    times=st.lists(st.integers(-5, 60), min_size=1, max_size=8),
    ttl=st.none() | st.integers(1, 30),
)
def test_rows_just_behind_the_last_span_are_counted_and_not_told(
    intervals: list[tuple[int, int]], times: list[int], ttl: int | None
) -> None:
    merged = merge((start, start + length) for start, length in intervals)
    scaled = tuple((start * STEP, end * STEP) for start, end in merged)
    given_view = view(None if ttl is None else ttl * STEP)
    gap = find_gap(given_view, Watermark(intervals=scaled), np.array(times) * STEP, 1_000 * STEP)
    later = (*merged[:-1], (merged[-1][0], merged[-1][1] + 6))
    lacking = [at for at in times if not is_covered(at, ttl, merged, None)]
    told = [at for at in lacking if not is_covered(at, ttl, later, None)]
    assert (0 if gap is None else gap.rows) == len(lacking)
    assert (gaps_text([] if gap is None else [gap]) is not None) == bool(told)


def test_all_views_are_told_in_one_sentence() -> None:
    gaps = [Gap("a", 5, 7), Gap("b", 3, 7, recent=3), Gap("c", 7, 7, (0, 1_000_000), 6), Gap("d", 7, 7)]
    assert gaps_text(gaps) == (
        "5 of 7 entity rows look past what was committed of view 'a', 7 of view 'c', 7 of view 'd': values may be "
        "missing or old only because of that. Fill the gaps with `fs materialize --view a --view d`, "
        "`fs materialize 1970-01-01T00:00:00.000000Z 1970-01-01T00:00:01.000000Z --view c`."
    )
    assert gaps_text([gaps[1]]) is None
    assert gaps_text([]) is None


@pytest.mark.parametrize("times", [[], [5]])
def test_nothing_is_told_where_nothing_is_missing(times: list[int]) -> None:
    assert find_gap(view(None), Watermark(intervals=((0, 10),)), np.array(times, dtype=np.int64), 1_000) is None


def test_a_backfilled_group_makes_large_tables_suspect(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from featurestore.offline.interface import DataFile, TableId, TableVersion
    from featurestore.offline.local.store import DeltaStore
    from featurestore.request.features import ViewRead
    from featurestore.training import coverage
    from featurestore.training.joins import PinnedRead

    def pinned(events: list[int], created: list[int | None]) -> PinnedRead:
        times = pa.timestamp("us", tz="UTC")
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        pq.write_table(pa.table({"event_ts": pa.array(events, times), "created_ts": pa.array(created, times)}), path)
        file = DataFile(str(path), len(events), 1, "", 0, 0, 0, 8)
        read = ViewRead("delays", view(None), (("carrier", "carrier"),), ("x",))
        return PinnedRead(read, "available", TableVersion(TableId("shop", "delays", 1), 0, (file,), 9, 0, ""))

    offline = DeltaStore(tmp_path / "offline")
    assert coverage._loaded_later(offline, pinned([1, 2], [1, 2]))  # small: always looked at
    monkeypatch.setattr(coverage, "_SMALL_TABLE_ROWS", 0)
    assert not coverage._loaded_later(offline, pinned([1, 2, 3], [1, 9, 9]))
    assert coverage._loaded_later(offline, pinned([1, 2, 3], [4, 9, 9]))
    assert coverage._loaded_later(offline, pinned([1, 2, 3], [None, None, None]))
