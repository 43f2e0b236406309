"""The first day of a user: a fresh repo, every command a process of its own, the answers of all agreeing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.processes import plain_environment
from support.serving import serving

from featurestore import FeatureStore
from featurestore.cli.main import main

SERVICE = "trip_model_v1"


def fs(repo: Path, *arguments: str, expect: int = 0) -> str:
    command = [str(Path(sys.executable).parent / "fs"), *arguments]
    done = subprocess.run(command, cwd=repo, env=plain_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def fs_json(repo: Path, *arguments: str) -> Any:
    return json.loads(fs(repo, *arguments, "--json"))


@pytest.fixture(scope="module")
def new_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh repo, nothing applied."""
    parent = tmp_path_factory.mktemp("first_day")
    fs(parent, "init", "shop")
    return parent / "shop"


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, applied and materialized."""
    parent = tmp_path_factory.mktemp("second_day")
    fs(parent, "init", "shop")
    with FeatureStore(parent / "shop") as store:
        store.apply()
        store.materialize_incremental()
    return parent / "shop"


class Tables(HTMLParser):
    """The texts of a page's cells; every element that opens must close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.cells and self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def newest_by_hand(repo: Path, driver: int, at: Any = None) -> dict[str, Any]:
    rows = pd.read_parquet(repo / "data" / "driver_stats.parquet")
    rows = rows[rows["driver_id"] == driver]
    if at is not None:
        rows = rows[(rows["hour"] <= at) & (rows["created"] <= at)]
    return dict(rows.sort_values("hour").iloc[-1])


def trips_of_a_week(repo: Path, driver: int) -> int:
    now = pd.Timestamp.now("UTC")
    rows = pd.read_parquet(repo / "data" / "driver_stats.parquet")
    rows = rows[(rows["driver_id"] == driver) & (rows["created"] <= now)]
    return int(
        rows["trips"][rows["hour"].between((now - pd.Timedelta(days=7)).floor("h"), now, inclusive="right")].sum()
    )


def test_from_init_to_an_answer_over_http(new_repo: Path) -> None:
    plan = fs_json(new_repo, "plan")
    assert (plan["revision"], plan["worst"], len(plan["steps"])) == (0, "compatible", 7)
    fs(new_repo, "plan", "--check", expect=3)
    assert fs_json(new_repo, "apply", "--yes")["applied"] == 1
    fs(new_repo, "plan", "--check")
    for run in fs_json(new_repo, "materialize"):
        assert (run["state"], run["appended"], run["published"]["written"]) == ("done", 14_400, 20)

    arguments = ("training-set", "--entities", "data/trips.parquet", "--service", SERVICE, "--out", "training.parquet")
    made = fs_json(new_repo, *arguments, "--save", "first")
    assert (made["saved"], made["certificate"]["rows"]) == ("first", 500)
    frame, training = pq.read_table(new_repo / "data" / "trips.parquet"), pq.read_table(new_repo / "training.parquet")
    assert training.select(frame.column_names).equals(frame)
    for row in training.slice(0, 500).to_pylist()[::25]:
        expected = newest_by_hand(new_repo, row["driver_id"], row["event_timestamp"])
        assert (row["trips"], row["rating"]) == (expected["trips"], expected["rating"])
        assert row["km_per_trip"] == row["trip_km"] / (row["trips"] + 1)

    with FeatureStore(new_repo) as store:
        assert store.get_training_set("first").to_arrow().equals(training)

    asked = ("--service", SERVICE, "--entity", "driver_id=1007", "--entity", "trip_km=9.5")
    week = {trips_of_a_week(new_repo, 1007)}
    windows = fs_json(new_repo, "online", "--features", "driver_recent:trips_sum_7d", "--entity", "driver_id=1007")
    assert windows["features"]["trips_sum_7d"][0] in week | {
        trips_of_a_week(new_repo, 1007)
    }  # an hour may end meanwhile
    answer = fs_json(new_repo, "online", *asked)
    newest = newest_by_hand(new_repo, 1007)
    assert answer["features"]["rating"] == [newest["rating"]]
    with serving(new_repo, fresh=True) as server, server.client() as client:
        body = {"feature_service": SERVICE, "entities": {"driver_id": [1007]}, "request_data": {"trip_km": [9.5]}}
        served = client.post("/v1/online-features", json=body).json()
        assert served["rows"] == [[answer["features"][name][0] for name in served["names"]]]
        assert served["status"] == [[answer["statuses"][name][0] for name in served["names"]]]


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["list", "feature-views"],
        ["show", "driver_stats"],
        ["status"],
        ["log"],
        ["peek", "driver_stats"],
        ["materialize", "--dry-run"],
        ["verify"],
        ["optimize"],
        ["gc"],
        ["doctor"],
    ],
)
def test_what_prints_gives_one_json_document(
    repo: Path, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("FS_")]:
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--json", "--repo", str(repo)])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert json.loads(out)


def test_results_are_tables_in_a_notebook(repo: Path) -> None:
    with FeatureStore(repo) as store:
        training = store.get_historical_features(pd.read_parquet(repo / "data" / "trips.parquet"), SERVICE)
        for shown in (training, training.certificate):
            assert any("driver_stats" in cell for cell in Tables(shown._repr_html_()).cells)
        rows = [{"driver_id": 1001, "trip_km": 3.0, "note": "<b>&"}] * 25
        online = store.get_online_features(SERVICE, rows)
        assert "<b>&" in Tables(online._repr_html_()).cells
        assert "5 more rows" in online._repr_html_()
        assert "up to date" in Tables(store.plan()._repr_html_()).cells[0]
        assert "up to date" in str(store.plan())
        assert repr(store.plan()) == "Plan(shop at revision 1: 0 changes, nothing to change)"
        assert repr(store) == f"FeatureStore(project 'shop' in {repo})"
        runs = store.materialize("2026-01-01", "2026-01-02", dry_run=True)
        assert "driver_stats" in Tables(runs._repr_html_()).cells
        assert "dry run" in runs._repr_html_()
        assert repr(runs[1]).startswith("RunResult(driver_stats: done, 0 rows read, 0 appended, 0 online, ")
        view = store.get("feature_view", "driver_stats")
        assert "rating" in Tables(view._repr_html_()).cells
        assert repr(view).startswith("FeatureView('driver_stats', ")
