"""With which run a change began: planted in the statistics of runs, beside rows that were judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from featurestore_registry.documents import StatisticsDocument
from featurestore_registry.findings import MonitorDocument, WatchedFeature
from featurestore_registry.interface import Registry
from featurestore_registry.sql import open_registry

from featurestore.ledger.monitors import newest_finding, write_finding
from featurestore.ledger.statistics import write_statistics
from featurestore.quality.drift_causes import Change, change_of
from featurestore.quality.drift_history import of_runs
from featurestore.quality.explaining import Judged, _fine_since
from featurestore.quality.observed import DAY_US, Observed, ObservedFeature
from featurestore.statistics.bins import count_in, make_bins
from featurestore.statistics.columns import Column, statistics_of
from featurestore.statistics.counting import count
from featurestore.statistics.totals import Totals
from featurestore.types import Float64
from featurestore.types.times import MIN_INSTANT

ROWS, VERSIONS = 400, (1, 2)
VIEW = SimpleNamespace(ledger_key="rides.1", view=SimpleNamespace(name="rides"))
BINS = make_bins(count(Float64, pa.array(np.random.default_rng(0).normal(10, 2, 5_000))), rows=5_000, made_us=0)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with open_registry(f"sqlite:///{tmp_path}/registry.db") as registry:
        yield registry


def values(mean: float, nulls: float, seed: int, rows: int = ROWS, deviation: float = 2) -> pa.Array:
    random = np.random.default_rng(seed)
    return pa.array(random.normal(mean, deviation, rows), mask=random.random(rows) < nulls)


def change(before: pa.Array, after: pa.Array, line: str) -> Change:
    sides = [
        Observed(
            "served",
            what,
            np.zeros(len(each), np.int64),
            {"x": ObservedFeature("x", Float64, each, "", "", bins=BINS)},
            {},
        )
        for what, each in (("before", before), ("after", after))
    ]
    found = change_of(sides[0], sides[1], "x", {line})
    assert found is not None
    return found


def named(
    registry: Registry,
    days: list[tuple[float, float]],
    judged: Change,
    since: int | None = None,
    until: int = 99,
    versions: tuple[int, int] = (1, 1),
    deviations: Sequence[float] | None = None,
) -> list[str]:
    """Return the run that is named of one run a day, with a mean and a share of nulls each."""
    for day, (mean, nulls) in enumerate(days):
        rows = values(mean, nulls, day + 10, deviation=2 if deviations is None else deviations[day])
        counted, totals = count(Float64, rows), Totals(Float64)
        totals.see(rows)
        found = statistics_of(Column("x", Float64), ROWS, counted, totals.found(None), BINS, count_in(counted, BINS))
        if versions != (1, 1):
            found = type(found)(
                **{**{name: getattr(found, name) for name in found.__slots__}, "bins": versions[day % 2]}
            )
        document = StatisticsDocument(day * DAY_US, ROWS, ROWS, (found,), run_id=f"day {day}")
        write_statistics(registry.ledger, "taxi", VIEW.ledger_key, document)
    workspace: Any = SimpleNamespace(ledger=registry.ledger, project="taxi")
    since_us = MIN_INSTANT if since is None else since * DAY_US
    causes = of_runs(workspace, VIEW, "x", judged, since_us, until * DAY_US)  # type: ignore[arg-type]
    return [cause.told.split(" at ")[0] for cause in causes]


FINE, FAR, NULL = (10.0, 0.1), (14.0, 0.1), (10.0, 0.4)
MEANS = change(values(10, 0.1, 1, 4_000), values(14, 0.1, 2, 4_000), "psi")
NULLS = change(values(10, 0.3, 1, 4_000), values(10, 0.5, 2, 4_000), "nulls")
"""Of served rows: there more are null, because records are missing."""


@pytest.mark.parametrize(
    ("days", "judged", "expected"),
    [
        ([FINE] * 9 + [FAR] * 3, MEANS, "day 9"),
        ([FINE] * 9 + [FAR], MEANS, "day 9"),
        ([FINE] + [FAR] * 9, MEANS, "day 1"),
        ([FINE] * 8 + [(10.8, 0.1)] + [FAR] * 3, MEANS, "day 8"),  # a fifth of its rows is as the later ones
        ([FINE] * 5 + [NULL] * 3, NULLS, "day 5"),
        ([FINE] * 3 + [FAR] * 2 + [FINE] * 5 + [FAR] * 2, MEANS, "day 10"),
        ([FINE] * 3 + [(13.0, 0.1)] * 3 + [FINE] * 4 + [FAR] * 3, MEANS, "day 10"),
        ([FAR] * 6, MEANS, None),
        ([FINE] * 6, MEANS, None),
        ([FAR] * 3 + [FINE] * 3, MEANS, None),
        ([FINE] * 3 + [FAR] * 3 + [FINE] * 3, MEANS, None),
        ([FINE] * 6, NULLS, None),
        ([FINE] * 3 + [(6.0, 0.1)] * 3, MEANS, None),
    ],
)
def test_the_run_is_named_that_brought_what_was_judged(
    registry: Registry, days: list[tuple[float, float]], judged: Change, expected: str | None
) -> None:
    assert named(registry, days, judged) == ([] if expected is None else [f"it began with run {expected}"])


@pytest.mark.parametrize(
    ("days", "since", "until", "expected"),
    [
        ([FINE] * 5 + [FAR] * 3, None, 5, None),  # the runs after the window brought nothing to it
        ([FINE] * 3 + [FAR] * 3 + [(18.0, 0.1)] * 6, None, 6, "day 3"),
        ([FINE] * 3 + [FAR] * 4, 4, 99, None),  # a window after the run was fine
        ([FINE] * 3 + [FAR] * 6 + [FINE] + [FAR] * 2, 9, 99, "day 10"),
        ([FINE] * 3 + [FAR], 3, 99, "day 3"),
    ],
)
def test_neither_a_run_after_the_window_nor_one_before_a_fine_window_is_named(
    registry: Registry, days: list[tuple[float, float]], since: int | None, until: int, expected: str | None
) -> None:
    found = named(registry, days, MEANS, since, until)
    assert found == ([] if expected is None else [f"it began with run {expected}"])


def test_where_bins_were_made_again_means_tell_it(registry: Registry) -> None:
    assert named(registry, [FINE] * 5 + [FAR] * 3, MEANS, versions=VERSIONS) == ["it began with run day 5"]


@pytest.mark.parametrize(
    ("deviations", "expected"),
    [
        ([2.0] * 6 + [120.0] * 4, ["it began with run day 6"]),
        ([2.0, 2.2, 1.8, 2.1, 1.9, 2.4, 100.0, 140.0, 90.0, 150.0], ["it began with run day 6"]),
        ([2.0] * 10, []),
        ([120.0] * 4 + [2.0] * 6, []),
        ([2.0, 2.6] * 5, []),
    ],
)
def test_where_means_say_nothing_deviations_tell_it(
    registry: Registry, deviations: list[float], expected: list[str]
) -> None:
    """Delays around 0 that are in seconds: their mean is anything, and they are 60 times as far apart."""
    wider = change(values(10, 0.1, 1, 4_000), values(10, 0.1, 2, 4_000, deviation=120), "psi")
    days = [(mean, 0.1) for mean in (10, 12, 9, 11, 10, 13, 4, 80, -40, 20)]
    assert named(registry, days, wider, versions=VERSIONS, deviations=deviations) == expected


def test_the_last_window_that_was_fine_is_found_behind_many_that_were_not(registry: Registry) -> None:
    for day in range(12):
        features = (WatchedFeature("x", "ok" if day < 2 else "alarm"),)
        span = day * DAY_US, (day + 1) * DAY_US
        found = MonitorDocument("watch", "feature_view:rides", "ok", day, *span, "b", features=features, definition="d")
        _, version = newest_finding(registry.ledger, "taxi", "watch")
        write_finding(registry.ledger, "taxi", found, if_version=version)
    workspace: Any = SimpleNamespace(ledger=registry.ledger, project="taxi")
    monitor: Any = SimpleNamespace(name="watch")
    nothing: Any = None
    judged = Judged(monitor, "d", nothing, nothing, 12 * DAY_US)
    assert _fine_since(workspace, judged) == {"x": DAY_US}
