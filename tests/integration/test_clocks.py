"""Clocks that are apart: what a clock ahead has written is answered when its time has come, and who is off is named."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from support.clock import ManualClock
from support.materialized import DAY, INSTANT, Sale, sales_view, write_sales
from support.projects import apply_records, make_workspace
from support.redis_server import RedisServer
from support.serving import Project, serving_here, small_project, until

from featurestore import Entity, Field
from featurestore.cli.main import main
from featurestore.ingest import push
from featurestore.ledger.leases import holding
from featurestore.maintenance.doctor import Check, examine
from featurestore.maintenance.status import status
from featurestore.offline import groups
from featurestore.project.settings import make_settings
from featurestore.serving.read import get_online_features
from featurestore.statuses import Status
from featurestore.training import get_historical_features
from featurestore.training.coverage import TrainingSetWarning
from featurestore.types import Int64, String
from featurestore.types.times import system_clock, to_datetime
from featurestore.workspace import Workspace

pytestmark = pytest.mark.uncounted

NOW = system_clock() // 1_000_000 * 1_000_000
"""Redis drops by its own clock what is long expired."""
SECOND = 1_000_000


@pytest.fixture(params=["lmdb", "redis", "redis_cluster"])
def online_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "lmdb" else str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)


def clock_of(workspace: Workspace) -> ManualClock:
    assert isinstance(workspace.clock, ManualClock)
    return workspace.clock


def push_sale(workspace: Workspace, sale: Sale) -> None:
    """Push one row; where the view declares no created time, it is stamped with its arrival."""
    columns = {"shop": [sale.shop], "sold_at": [to_datetime(sale.sold_us or 0)], "amount": [sale.amount]}
    if sale.known_us is not None:
        columns["known_at"] = [to_datetime(sale.known_us)]
    push(workspace, "sales_push", columns | {"note": [sale.note]})


def offline(workspace: Workspace, shop: str) -> int | None:
    frame = pa.table({"shop": [shop], "event_timestamp": pa.array([workspace.clock()]).cast(INSTANT)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingSetWarning)  # what is pushed lies past what runs have read
        found: list[int | None] = (
            get_historical_features(workspace, frame, ["shop_sales:amount"]).to_arrow()["amount"].to_pylist()
        )
    return found[0]


def online(workspace: Workspace, *shops: str) -> tuple[list[Any], list[Status], list[Any]]:
    answer = get_online_features(workspace, ["shop_sales:amount"], {"shop": list(shops)})
    return answer.to_dict()["amount"], answer.statuses["amount"], answer.event_timestamps["shop_sales"]


@pytest.mark.parametrize("created", [True, False])
def test_pushes_from_a_clock_that_runs_ahead_wait_for_their_time(
    tmp_path: Path, online_url: str | None, created: bool
) -> None:
    write_sales(tmp_path / "sales.parquet", [])
    view = sales_view(pushed=True, created=created)
    with closing(make_workspace(tmp_path, [view], online_url=online_url, now_us=NOW)) as workspace:
        clock_of(workspace).set(NOW + 3 * SECOND)  # the writer's clock, and what it calls now
        push_sale(workspace, Sale("ahead", NOW + 2 * SECOND, NOW + 3 * SECOND if created else None, 1))
        push_sale(workspace, Sale("known later", NOW - SECOND, NOW + 3 * SECOND if created else None, 2))
        instants = [-SECOND - 1, -SECOND, 0, 2 * SECOND - 1, 2 * SECOND, 3 * SECOND - 1, 3 * SECOND, 9 * SECOND]
        seen: dict[str, list[Status]] = {"ahead": [], "known later": []}
        for instant in instants:
            clock_of(workspace).set(NOW + instant)
            for shop, statuses in seen.items():
                joined = offline(workspace, shop)
                for company in ([], ["nobody"], [shop]):  # the short way and the long way
                    values, told, events = online(workspace, shop, *company)
                    assert values[0] == joined
                    assert (events[0] is None) == (told[0] is Status.NOT_FOUND)
                statuses.append(told[0])
        first = {"ahead": 6 if created else 4, "known later": 6 if created else 1}
        for shop, statuses in seen.items():
            wanted = [Status.NOT_FOUND] * first[shop] + [Status.PRESENT] * (len(instants) - first[shop])
            assert statuses == wanted, shop


def test_a_value_that_waits_gives_the_default_and_what_it_replaced_is_gone(tmp_path: Path) -> None:
    write_sales(tmp_path / "sales.parquet", [])
    view = sales_view(pushed=True).replaced(fields=(Field("amount", Int64, default=-1), Field("note", String)))
    with closing(make_workspace(tmp_path, [view], now_us=NOW)) as workspace:
        push_sale(workspace, Sale("shop", NOW, NOW, 1))
        assert online(workspace, "shop") == ([1], [Status.PRESENT], [datetime.fromtimestamp(NOW // SECOND, UTC)])
        clock_of(workspace).set(NOW + 2)
        push_sale(workspace, Sale("shop", NOW + 1, NOW + 2, 2))
        clock_of(workspace).set(NOW + 1)
        assert offline(workspace, "shop") == 1
        assert online(workspace, "shop") == ([-1], [Status.NOT_FOUND], [None])
        clock_of(workspace).set(NOW + 2)
        assert online(workspace, "shop", "shop")[:2] == ([2, 2], [Status.PRESENT] * 2)
        assert offline(workspace, "shop") == 2


def checks(workspace: Workspace) -> dict[str, Check]:
    return {check.name: check for check in examine(workspace)}


@pytest.mark.parametrize("online_url", ["redis", "redis_cluster"], indirect=True)
@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [(-7_200, "02:00:00 behind"), (7_205, "02:00:04 ahead of"), (-7, "00:00:07 behind"), (4, None), (-4, None)],
)
def test_a_redis_whose_clock_is_off_is_named(tmp_path: Path, online_url: str, ahead_s: int, words: str | None) -> None:
    """It is this side's clock that is moved: the difference is the same."""
    write_sales(tmp_path / "sales.parquet", [])
    with closing(make_workspace(tmp_path, [sales_view()], online_url=online_url, now_us=NOW)) as workspace:
        workspace.clock = lambda: system_clock() - ahead_s * SECOND
        found = checks(workspace).get("clock of the online store")
        (view,) = status(workspace)
        told = [problem for problem in view.clocks if "online store" in problem]
        if words is None:
            assert (found, told) == (None, [])
        else:
            assert found is not None
            assert found.state == "failed"
            assert re.search(rf"clock of the online store is {words} this machine's", found.message)
            assert "Synchronise" in found.hint
            assert len(told) == 1
            assert re.search(rf"clock of the online store is {words} this machine's", told[0])


def write_with_clock(root: Path, clock: ManualClock, by: str) -> None:
    """Write to a project's registry as a machine with that clock does."""
    with closing(Workspace(root, make_settings({"project": "shop"}), clock=clock)) as far:
        if by == "apply":
            apply_records(far, [Entity("region", join_keys={"region": String})])
        else:
            with holding(far.ledger, "shop", "shop_sales", holder="far", clock=far.clock):
                pass


@pytest.mark.parametrize("by", ["run", "apply"])
@pytest.mark.parametrize(("ahead_us", "is_told"), [(5 * SECOND, False), (5 * SECOND + 1, True), (-SECOND, False)])
def test_a_machine_that_writes_to_the_registry_with_a_clock_ahead_is_named(
    tmp_path: Path, by: str, ahead_us: int, is_told: bool
) -> None:
    write_sales(tmp_path / "sales.parquet", [])
    with closing(make_workspace(tmp_path, [sales_view()], now_us=NOW + DAY)) as workspace:
        write_with_clock(tmp_path, ManualClock(NOW + DAY + ahead_us), by)
        found = checks(workspace)["clock"]
        assert found.state == ("failed" if is_told else "ok")
        words = "The clock of the newest writer to the registry is 00:00:05 ahead of this machine's."
        assert (words in found.message) == is_told
        assert {view.clocks for view in status(workspace)} == ({(words,)} if is_told else {()})


def test_the_status_page_says_so_below_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_project(tmp_path / "repo", NOW)
    write_with_clock(tmp_path / "repo", ManualClock(NOW + 2 * DAY), "run")
    monkeypatch.chdir(tmp_path / "repo")
    for arguments, code in ((["status"], 0), (["status", "--json"], 0), (["doctor"], 1)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        page = capsys.readouterr().out
        assert caught.value.code == code
        assert re.search(r"newest writer to the registry is (1 day|2 days).* ahead of this machine's\.", page)
        if arguments == ["status"]:
            assert page.splitlines()[-1].startswith("The clock of")
        if "--json" in arguments:
            assert len(json.loads(page)[0]["clocks"]) == 1


def test_the_status_is_shown_while_redis_is_down(tmp_path: Path, start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    write_sales(tmp_path / "sales.parquet", [])
    with closing(make_workspace(tmp_path, [sales_view()], online_url=server.url, now_us=system_clock())) as workspace:
        server.stop()
        begun = time.monotonic()
        assert [view.clocks for view in status(workspace)] == [()]
        assert time.monotonic() - begun < 5


def gauge(client: httpx.Client, piece: str) -> float | None:
    found = re.search(rf'^featurestore_clock_ahead_seconds{{piece="{piece}"}} (.+)$', client.get("/metrics").text, re.M)
    return None if found is None else float(found[1])


def test_a_server_tells_clocks_that_are_apart_by_a_metric_and_now_and_then_in_its_log(
    tmp_path: Path, start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    redis = start_redis()
    project = Project(tmp_path / "repo", online_url=redis.url, refresh="50ms", write_timeout_ms=500)
    clock = ManualClock(system_clock() - 7_200 * SECOND)
    with serving_here(project.workspace(clock)) as client:
        until(lambda: gauge(client, "online_store"))
        assert gauge(client, "online_store") == pytest.approx(7_200, abs=5)
        assert gauge(client, "registry") == pytest.approx(7_200, abs=5)
        refreshes = refreshed(client)
        until(lambda: refreshed(client) > refreshes + 5)
        told = [record.message for record in caplog.records if "clock" in record.message]
        assert len(told) == 1
        assert "newest writer to the registry is 0" in told[0]
        assert "clock of the online store is 0" in told[0]
        clock.set(system_clock() + 60 * SECOND)
        until(lambda: gauge(client, "registry") == 0)
        redis.stop()
        refreshes = refreshed(client)
        until(lambda: refreshed(client) > refreshes + 2)


def refreshed(client: httpx.Client) -> int:
    return sum(map(int, re.findall(r"registry_refreshes_total{.*} (\d+)", client.get("/metrics").text)))


def test_a_server_on_one_machine_tells_of_no_online_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    project = Project(tmp_path / "repo", refresh="50ms")
    with serving_here(project.workspace()) as client:
        until(lambda: gauge(client, "registry") == 0)
        assert gauge(client, "online_store") is None
    assert "clock" not in caplog.text
