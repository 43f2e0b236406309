"""`make loop` as a process, on a tenth of the boards: what it tells is compared with the package's own flights."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from support.example import EXAMPLE
from support.processes import plain_environment

from featurestore import FeatureStore

SERVED_FROM = datetime(2013, 10, 10, 8, tzinfo=UTC)
DAY, WEEK, WINDOW = timedelta(days=1), timedelta(weeks=1), timedelta(days=5)
STEPS = ["Look", "Define", "Validate", "Train", "Certify", "Register", "Serve", "Compare", "Watch", "Drift"]
STEPS += ["Find out, and train again", "Judge", "Promote"]
HORIZON = timedelta(hours=36)


@pytest.mark.slow(45)
@pytest.mark.uncounted
def test_the_loop_closes(tmp_path: Path) -> None:
    """One run, for it takes its time: each claim of the page is looked at."""
    repo = tmp_path / "feature_repo"
    shutil.copytree(EXAMPLE, repo, ignore=shutil.ignore_patterns("data", "played", ".featurestore", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "feature_repo/loop/play.py", "--every", "7", "--days", "5"],
        cwd=tmp_path,
        env={**plain_environment(), "FS_ONLINE_STORE": "redis://nowhere.invalid", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    told = done.stdout
    assert done.returncode == 0, told + done.stderr
    assert re.findall(r"^\d+\. ([^.]+)\.", told, re.MULTILINE) == STEPS
    assert "Traceback" not in told + done.stderr
    played = repo / "loop" / "played"
    steps = dict(zip(STEPS, re.split(r"^\d+\. .*$", told, flags=re.MULTILINE)[1:], strict=True))
    weeks = _weeks(played)
    assert "1048.36058" in steps["Validate"]
    _see_that_nothing_bad_was_committed(steps, weeks)
    _see_that_served_is_known(steps["Compare"])
    assert re.search(
        r"^delays: (ok|watch)\.", steps["Watch"], re.MULTILINE
    )  # five days may differ from seven weeks, once
    _see_that_the_cause_is_named(steps["Find out, and train again"], weeks)
    with FeatureStore(played) as store:
        _see_that_models_are_judged_rightly(steps["Judge"], store, weeks)
        assert [each.name for each in store.list_training_sets()] == ["delays_1", "delays_2"]
    assert (played / "data" / "models" / "champion").read_text() == "delays_2"
    assert "baseline: delays_1 -> delays_2" in steps["Promote"]
    _see_the_page((played / "loop.html").read_text(encoding="utf-8"))


def _weeks(played: Path) -> timedelta:
    """Return how far the flights were moved: by whole weeks."""
    board = pd.read_parquet(played / "data" / "board.parquet", columns=["flight_id", "sched_dep"])
    moved = board.set_index("flight_id")["sched_dep"] - _flights()["sched_dep"]
    (by,) = set(moved.dropna())
    assert by % WEEK == timedelta(0)
    return by.to_pytimedelta()


def _flights() -> pd.DataFrame:
    sys.path.insert(0, str(EXAMPLE))
    try:
        import make_sources
    finally:
        sys.path.remove(str(EXAMPLE))
    return make_sources.build_tables()["flights"].set_index("flight_id")


def _see_that_nothing_bad_was_committed(steps: dict[str, str], weeks: timedelta) -> None:
    night = SERVED_FROM + 2 * WINDOW - 4 * DAY + weeks
    assert f"{night:%d %B}: 1 of 5 feature views failed" in steps["Serve"]
    assert re.search(r"visib: NotNull\(max_share=0.5\): 7\d of 7\d rows", steps["Serve"])


def _see_that_served_is_known(told: str) -> None:
    shares = re.findall(r"^(\w+) +[\d,]+ +([\d.]+ %) +([\d.]+ %)", told, re.MULTILINE)
    assert len(shares) == 9
    assert {then for _, then, _ in shares} == {"100 %"}
    assert {name for name, _, now in shares if now != "100 %"} <= {"wind_speed", "visib", "pressure"}
    assert "unexplained" not in told


def _see_that_the_cause_is_named(told: str, weeks: timedelta) -> None:
    assert "delays: alarm." in told
    assert "dep_delay: values are as if multiplied by 60" in told
    night = SERVED_FROM + 2 * WINDOW + weeks
    assert f"at {night + timedelta(minutes=10):%Y-%m-%dT%H:%M:%SZ}, which read {night:%Y-%m-%d}.parquet first" in told
    assert "delays_2 is trained on" in told


def _see_that_models_are_judged_rightly(told: str, store: FeatureStore, weeks: timedelta) -> None:
    """Judge the predictions of the last week by the flights themselves."""
    flights = _flights()
    start = SERVED_FROM + 4 * WINDOW + weeks
    served = store.read_served("delays_v1", start, start + WINDOW).to_pandas()
    scores = store.read_predictions("delays_v1", start, start + WINDOW).to_pandas()
    rows = scores.merge(served[["request_id", "row", "served_at", "request.flight_id"]], on=["request_id", "row"])
    truth = flights.loc[rows["request.flight_id"]]
    arrived = (truth["arrived_at"] + weeks).to_numpy("datetime64[us]")
    eight = np.timedelta64(8, "h")
    night = (arrived - eight).astype("datetime64[D]") + np.timedelta64(1, "D") + eight
    asked = rows["served_at"].dt.tz_localize(None).to_numpy("datetime64[us]")
    is_known = truth["arr_delay"].notna().to_numpy() & (night <= asked + np.timedelta64(HORIZON))
    late = (truth["arr_delay"] > 15).to_numpy()
    losses = {}
    for model in ("delays_1", "delays_2"):
        of_model = is_known & (rows["model"] == model).to_numpy()
        actual, score = late[of_model], rows["prediction.late"].to_numpy()[of_model]
        losses[model] = log_loss(actual, score)
        figures = [f"{figure:.4g}" for figure in (np.mean((score >= 0.5) == actual), roc_auc_score(actual, score))]
        (line,) = re.findall(rf"^{model} +(.*)$", told, re.MULTILINE)
        assert line.split() == [f"{len(actual):,}", "0", line.split()[2], *figures, f"{losses[model]:.4g}"]
    assert losses["delays_2"] < losses["delays_1"]


def _see_the_page(page: str) -> None:
    seen = _Seen()
    seen.feed(page)
    assert [title.partition(". ")[2] for title in seen.titles] == STEPS
    assert seen.pictures >= 4
    assert not seen.tags & {"script", "link", "img", "iframe"}
    assert seen.links <= {f"#step-{number}" for number in range(1, 14)} | {"monitor.html"}


class _Seen(HTMLParser):
    """What is on a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()
        self.titles: list[str] = []
        self.pictures = 0
        self._is_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.pictures += tag == "svg"
        self._is_title = tag == "h2"
        if tag == "a":
            self.links.add(str(dict(attrs)["href"]))

    def handle_data(self, data: str) -> None:
        if self._is_title:
            self.titles.append(data)
            self._is_title = False
