"""Clocks that are apart: what a clock ahead has written is answered when its time has come, and who is off is named."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.clock import ManualClock
from support.materialized import INSTANT, Sale, sales_view, write_sales
from support.projects import make_workspace

from featurestore import Field
from featurestore.materialization import push, push_commit
from featurestore.metadata.workspace import Workspace
from featurestore.online.reading import Status
from featurestore.retrieval import get_historical_features
from featurestore.retrieval.coverage import TrainingSetWarning
from featurestore.retrieval.online import get_online_features
from featurestore.types import Int64, String
from featurestore.types.times import system_clock, to_datetime

NOW = system_clock() // 1_000_000 * 1_000_000
"""Redis drops by its own clock what is long expired."""
SECOND = 1_000_000


@pytest.fixture(params=["lmdb", "redis", "redis_cluster"])
def online_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "lmdb" else str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_commit, "PAUSE_SECONDS", 0.0)


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
