"""Four threads push rows of the same keys, to both stores: beside a dict of the greatest (event, created) of each."""

from __future__ import annotations

import random
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.materialized import day, log_rows, online_rows, sales_view, write_sales
from support.projects import make_workspace

from featurestore.errors import FeatureStoreError
from featurestore.ingest import push
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.offline import groups
from featurestore.types.times import to_datetime
from featurestore.workspace import Workspace

NOW = day(20)
THREADS, PUSHES = 4, 12
SHOPS = [f"shop {number}" for number in range(5)]

Row = tuple[str, int, int, int, str]
"""(shop, event_us, created_us, amount, note); amount and note tell of the same push."""


@pytest.fixture(params=["lmdb", "redis"])
def online_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "lmdb" else request.getfixturevalue("redis_url")


def pushes_of(thread: int, seed: int) -> list[list[Row]]:
    """Return what a thread pushes: few instants, so that they meet, none of them shared with another thread."""
    dice = random.Random(f"{thread} {seed}")
    found = []
    for number in range(PUSHES):
        rows = []
        for _ in range(dice.choice([1, 2, 100])):
            amount = thread * 1_000_000 + number * 1_000 + len(rows)
            # Whole ties between writers may settle either way (P5), so created times tell threads apart.
            created_us = day(dice.randrange(3)) + thread
            rows.append((dice.choice(SHOPS), day(dice.randrange(3)), created_us, amount, f"note {amount}"))
        found.append(rows)
    return found


def columns(rows: list[Row]) -> dict[str, list[Any]]:
    shops, events, createds, amounts, notes = map(list, zip(*rows, strict=True))
    times = {"sold_at": list(map(to_datetime, events)), "known_at": list(map(to_datetime, createds))}
    return {"shop": shops, **times, "amount": amounts, "note": notes}


def model_of(pushes: list[list[Row]], best: dict[str, Row]) -> tuple[int, int]:
    """Do to a dict what one writer's pushes do; returns how many rows were written and stale."""
    written = stale = 0
    for rows in pushes:
        for row in rows:
            if row[0] not in best or row[1:3] >= best[row[0]][1:3]:
                best[row[0]] = row
                written += 1
            else:
                stale += 1
    return written, stale


def run_threads(workspace: Workspace, work: list[list[list[Row]]]) -> list[Any]:
    results: list[Any] = []
    start = threading.Barrier(len(work))

    def run(pushes: list[list[Row]]) -> None:
        start.wait(60)
        for number, rows in enumerate(pushes):
            to: Any = "both" if number % 4 == 0 else "online"
            try:
                results.append(push(workspace, "sales_push", columns(rows), to))
            except FeatureStoreError as error:  # shown by the comparison below
                results.append(error)

    threads = [threading.Thread(target=run, args=(pushes,)) for pushes in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("seed", [1, 2])
def test_four_writers_leave_the_newest_row_of_each_key(tmp_path: Path, online_url: str | None, seed: int, monkeypatch):
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.05)
    with closing(make_workspace(tmp_path, [sales_view(pushed=True)], online_url=online_url, now_us=NOW)) as workspace:
        workspace.snapshot()
        work = [pushes_of(thread, seed) for thread in range(THREADS)]
        results = run_threads(workspace, work)
        assert not [result for result in results if isinstance(result, Exception)]

        best: dict[str, Row] = {}
        for pushes in work:
            model_of(pushes, best)
        assert online_rows(workspace) == {shop: row[1:] for shop, row in best.items()}

        rows = sum(len(rows) for pushes in work for rows in pushes)
        counted = [result.views["shop_sales"].online for result in results]
        assert sum(found.written + found.stale for found in counted) == rows

        # Offline: every row of every acknowledged push once, those of one thread in its order.
        committed = [(row, number) for number, row in enumerate(log_rows(workspace))]
        for pushes in work:
            own = [row for rows in pushes[::4] for row in rows]
            places = dict(committed)
            assert [places[row] for row in own] == sorted(places[row] for row in own)
        assert sorted(row for row, _ in committed) == sorted(
            row for pushes in work for rows in pushes[::4] for row in rows
        )


@pytest.mark.parametrize("seed", [3, 4])
def test_one_writer_is_answered_as_the_dict_is(tmp_path: Path, online_url: str | None, seed: int, monkeypatch):
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)
    with closing(make_workspace(tmp_path, [sales_view(pushed=True)], online_url=online_url, now_us=NOW)) as workspace:
        best: dict[str, Row] = {}
        for rows in pushes_of(0, seed):
            expected = model_of([rows], best)
            online = push(workspace, "sales_push", columns(rows)).views["shop_sales"].online
            assert (online.written, online.stale) == expected
            assert online_rows(workspace) == {shop: row[1:] for shop, row in best.items()}
        write_sales(tmp_path / "sales.parquet", [])
        succeeded(materialize_incremental(workspace))
        assert online_rows(workspace) == {shop: row[1:] for shop, row in best.items()}
