"""Labels against plain loops: late rows, corrections, ties, pushed rows, windows, and every boundary of a horizon."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import NamedTuple

import pandas as pd
import pytest
from support.clock import ManualClock
from support.projects import make_workspace
from support.rows import commit_rows, cover

from featurestore import Aggregation, Entity, FeatureView, Field, Label, ParquetSource, PushSource
from featurestore.definitions.aggregation import ExactAggregation
from featurestore.errors import CertificateError
from featurestore.ingest import push
from featurestore.training import get_historical_features
from featurestore.types import Float64, Int64
from featurestore.types.times import to_datetime, to_instant
from featurestore.workspace import Workspace

MINUTE_US = 60_000_000
BEGIN_US = to_instant("2024-02-01T00:00:00Z")
MINUTES = 60
"""Events lie in so many minutes, at few instants: many are at the boundaries of horizons, and tie."""
HORIZONS = [timedelta(minutes=1), timedelta(minutes=7), timedelta(minutes=12)]

driver = Entity("driver", {"driver": Int64})
stats = FeatureView(
    "stats", entities=[driver], source=ParquetSource("stats_file", "stats", "at"), schema=[Field("rides", Int64)]
)
outcomes = FeatureView(
    "outcomes",
    entities=[driver],
    source=PushSource("outcome_events", ParquetSource("outcome_file", "outcomes", "happened_at", "known_at")),
    ttl=timedelta(minutes=3),  # is no matter: the horizon says how long an outcome counts
    schema=[Field("delay", Float64)],
)
unstamped = FeatureView(
    "unstamped", entities=[driver], source=ParquetSource("plain", "plain", "at"), schema=[Field("delay", Float64)]
)
tips_view = FeatureView(
    "windows",
    entities=[driver],
    source=ParquetSource("tip_file", "tips", "at", "known_at"),
    schema=[Field("tip", Int64)],
    aggregations=[
        Aggregation("tip", "sum", windows=[timedelta(minutes=12)]),
        Aggregation("*", "count", windows=[timedelta(minutes=1)]),
    ],
)


class Event(NamedTuple):
    driver: int
    event_us: int
    created_us: int | None
    sequence: int
    value: float | None


def some_events(dice: Random, count: int, *, stamped: bool) -> list[Event]:
    events = []
    for sequence in range(count):
        event_us = BEGIN_US + dice.randrange(MINUTES) * MINUTE_US + dice.choice([0, 0, 0, -1, 1])
        created_us = dice.choice([None, event_us, event_us + dice.randrange(1, 20) * MINUTE_US + dice.choice([0, 1])])
        value = dice.choice([None, float(dice.randrange(100))])
        events.append(Event(dice.randrange(6), event_us, created_us if stamped else None, sequence, value))
    return events


def known_us(event: Event, as_of: str) -> int:
    return event.event_us if as_of == "event" else max(event.event_us, event.created_us or event.event_us)


def expected(events: Sequence[Event], who: int | None, at_us: int, horizon_us: int, as_of: str) -> float | None:
    """Return the label of a row: the greatest by event, created, arrival of what happened after it and was known."""
    best: Event | None = None
    for event in events:
        if event.driver != who or not at_us < event.event_us <= at_us + horizon_us:
            continue
        if known_us(event, as_of) > at_us + horizon_us:
            continue
        if best is None or order(event) > order(best):
            best = event
    return None if best is None else best.value


def order(event: Event) -> tuple[int, int, int]:
    return event.event_us, event.event_us if event.created_us is None else event.created_us, event.sequence


def counted(events: Sequence[Event], who: int | None, end_us: int, length_us: int) -> list[Event]:
    """Return what a window that ends there counts: both its ends are exact."""
    begin_us = end_us - length_us
    return [e for e in events if e.driver == who and begin_us < e.event_us <= end_us and known_us(e, "") <= end_us]


def frame_of(dice: Random, rows: int) -> pd.DataFrame:
    at = [
        BEGIN_US + dice.randrange(-3, MINUTES + 15) * MINUTE_US + dice.choice([0, 0, -1, 1])
        for _ in range(rows)
    ]  # fmt: skip
    who = pd.array([dice.choice([None, *range(7)]) for _ in range(rows)], dtype="Int64")
    index = dice.sample(range(10 * rows), rows)
    return pd.DataFrame({"driver": who, "at": pd.to_datetime(at, unit="us", utc=True), "own": range(rows)}, index=index)


def keep(workspace: Workspace, view: str, value: str, events: Sequence[Event], covers: tuple[int, int]) -> None:
    kind = float if value == "delay" else int
    rows = [
        {"driver": who, value: None if found is None else kind(found), "event_ts": event_us, "created_ts": created_us}
        for who, event_us, created_us, _, found in events
    ]
    commit_rows(workspace, view, rows, covers=covers)


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_those_of_plain_loops(tmp_path: Path, seed: int) -> None:
    dice = Random(seed)
    end_us = BEGIN_US + (MINUTES + 20) * MINUTE_US
    workspace = make_workspace(tmp_path, [stats, outcomes, unstamped, tips_view], now_us=BEGIN_US + MINUTES * MINUTE_US)
    clock = workspace.clock
    assert isinstance(clock, ManualClock)
    batch, plain, tips = (
        some_events(dice, count, stamped=stamped) for count, stamped in ((250, True), (120, False), (200, True))
    )
    # The views are committed up to different instants; those of windows with a hole.
    covers = (BEGIN_US - 60 * MINUTE_US, BEGIN_US + 66 * MINUTE_US)
    commit_rows(workspace, "stats", [{"driver": 1, "rides": 1, "event_ts": BEGIN_US}])
    keep(workspace, "outcomes", "delay", batch, covers)
    keep(workspace, "unstamped", "delay", plain, (BEGIN_US - 60 * MINUTE_US, end_us))
    hole = [(BEGIN_US - 60 * MINUTE_US, BEGIN_US + 20 * MINUTE_US), (BEGIN_US + 25 * MINUTE_US, end_us)]
    keep(workspace, "windows", "tip", tips, hole[0])
    cover(workspace, "windows", *hole[1])
    pushed = []
    for place in range(12):
        clock.now_us += MINUTE_US // 2 + 1
        event_us = clock() - dice.choice([0, 1, 3, 9]) * MINUTE_US // 2
        pushed.append(Event(dice.randrange(6), event_us, clock(), 10_000 + place, float(place)))
        row = {"driver": pushed[-1].driver, "happened_at": to_datetime(event_us), "delay": float(place)}
        push(workspace, "outcome_events", [row], "offline")
    frame, as_of = frame_of(dice, 700), dice.choice([None, "available", "event"])
    for horizon in HORIZONS:
        clock.now_us = BEGIN_US + (MINUTES + 10) * MINUTE_US
        labels = [
            Label("outcomes:delay", horizon=horizon),
            Label("unstamped:delay", horizon=HORIZONS[1], name="plain"),
            Label("windows:tip_sum_12min", horizon=HORIZONS[2], name="tips"),
            Label(tips_view[["count_1min"]], horizon=HORIZONS[1]),
        ]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            training = get_historical_features(
                workspace, frame, ["stats:rides"], timestamp_column="at", labels=labels, as_of=as_of
            )
            made = training.to_pandas()
        assert "rows are left out, because their labels are not known at" in str(told[0].message)
        h_us = horizon // timedelta(microseconds=1)
        wanted, left = [], {"delay": [0, 0], "plain": [0, 0], "tips": [0, 0], "count_1min": [0, 0]}
        for row in frame.itertuples():
            at_us = to_instant(row.at.to_pydatetime())
            is_out = False
            for name, span_us, spans in (
                ("delay", h_us, [covers]),
                ("plain", 7 * MINUTE_US, [(covers[0], end_us)]),
                ("tips", 12 * MINUTE_US, hole),
                ("count_1min", 7 * MINUTE_US, hole),
            ):
                if at_us + span_us > clock():
                    left[name][0] += 1
                    is_out = True
                elif not any(begin <= at_us + 1 and at_us + span_us < end for begin, end in spans):
                    left[name][1] += 1
                    is_out = True
            if is_out:
                continue
            who = None if pd.isna(row.driver) else int(row.driver)
            mode = "event" if as_of == "event" else "available"
            summed = counted(tips, who, at_us + 12 * MINUTE_US, 12 * MINUTE_US)
            many = counted(tips, who, at_us + 7 * MINUTE_US, MINUTE_US)
            values = [int(e.value) for e in summed if e.value is not None]
            wanted.append((
                row.Index,
                row.own,
                expected([*batch, *pushed], who, at_us, h_us, mode),
                expected(plain, who, at_us, 7 * MINUTE_US, "event"),
                sum(values) if values else None,
                None if who is None else len(many),
            ))  # fmt: skip
        if as_of == "event":  # windows by event time are another loop: the others are compared
            wanted = [(*row[:4], None, None) for row in wanted]
            made[["tips", "count_1min"]] = None
        got = made[["own", "delay", "plain", "tips", "count_1min"]].astype(object)
        listed = [
            (index, *(None if pd.isna(value) else value for value in values))
            for index, values in zip(got.index, got.itertuples(index=False), strict=True)
        ]
        assert listed == wanted
        assert 20 < len(wanted) < 680
        facts = {each.name: [each.not_matured, each.not_committed] for each in training.labels}
        assert facts == left
        certified = training.certificate
        assert certified.left_out == len(frame) - len(wanted)
        assert [label.view.from_future for label in certified.labels][:2] == [0, 0]
        nulls = [sum(row[place] is None for row in wanted) for place in (2, 3)]
        assert [label.without_label for label in certified.labels][:2] == nulls
        assert 0 < nulls[0] < len(wanted)


@pytest.mark.parametrize("after_us", [-1, 0, 1])
def test_the_boundaries_of_a_horizon(tmp_path: Path, after_us: int) -> None:
    """An event at t is none, one just after t is, one at t + horizon is, one just after it is none."""
    workspace = make_workspace(tmp_path, [stats, outcomes], now_us=BEGIN_US + 60 * MINUTE_US)
    at_us, horizon_us = BEGIN_US, 6 * MINUTE_US
    rows = [
        {"driver": 1, "delay": 1.0, "event_ts": at_us + after_us},
        {"driver": 2, "delay": 2.0, "event_ts": at_us + horizon_us + after_us},
        {"driver": 3, "delay": 3.0, "event_ts": at_us + 1, "created_ts": at_us + horizon_us + after_us},
    ]
    commit_rows(workspace, "outcomes", rows, covers=(at_us, at_us + horizon_us + 1))
    commit_rows(workspace, "stats", [{"driver": 1, "rides": 1, "event_ts": at_us}])
    frame = pd.DataFrame({"driver": [1, 2, 3], "at": pd.to_datetime([at_us] * 3, unit="us", utc=True)})
    label = Label("outcomes:delay", horizon=timedelta(minutes=6))
    training = get_historical_features(
        workspace, frame, "stats:rides", timestamp_column="at", labels=label, as_of="available"
    )
    made = training.to_pandas()
    found = [None if pd.isna(value) else value for value in made["delay"]]
    assert found == [1.0 if after_us > 0 else None, 2.0 if after_us <= 0 else None, 3.0 if after_us <= 0 else None]


def windowed_frame(workspace: Workspace) -> pd.DataFrame:
    """Keep events around rows at odd instants: one of each row is just before it, and one is its very instant."""
    at_us = [BEGIN_US + number * MINUTE_US // 3 + 7 for number in range(40)]
    around = (-20_000_000, -1, 0, 1, 20_000_000, 12 * MINUTE_US, 12 * MINUTE_US + 1)
    rows = [{"driver": n, "tip": 1, "event_ts": at + off} for n, at in enumerate(at_us) for off in around]
    commit_rows(workspace, "windows", rows, covers=(BEGIN_US - MINUTE_US, BEGIN_US + 60 * MINUTE_US))
    commit_rows(workspace, "stats", [{"driver": 1, "rides": 1, "event_ts": BEGIN_US}])
    return pd.DataFrame({"driver": range(40), "at": pd.to_datetime(at_us, unit="us", utc=True)})


def test_a_window_as_long_as_the_horizon_counts_nothing_before_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the certificate does not believe the join: its loops see only what happened after the row."""
    workspace = make_workspace(tmp_path, [stats, tips_view], now_us=BEGIN_US + 120 * MINUTE_US)
    frame = windowed_frame(workspace)
    label = Label("windows:tip_sum_12min", horizon=timedelta(minutes=12))
    training = get_historical_features(workspace, frame, "stats:rides", timestamp_column="at", labels=label)
    assert training.to_pandas()["tip_sum_12min"].tolist() == [3] * 40
    assert training.certificate.labels[0].recomputed_rows == 40
    monkeypatch.setattr(ExactAggregation, "features", Aggregation.features)  # as features have it, in steps
    stepped = get_historical_features(workspace, frame, "stats:rides", timestamp_column="at", labels=label)
    assert max(stepped.to_pandas()["tip_sum_12min"]) > 3
    with pytest.raises(CertificateError, match="plain loops over the files give 3"):
        assert stepped.certificate
