"""One `FeatureStore` for all threads of an application: online reads and pushes at once, each value a known one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from support.materialized import Sale, day, write_sales

from featurestore import FeatureStore
from featurestore.serving import read as online

pytestmark = pytest.mark.uncounted

FEATURES = """
from featurestore import (
    Entity, FeatureService, FeatureView, Field, ParquetSource, PushSource, RequestSource, on_demand_feature_view,
)
from featurestore.types import Int64, String

shop = Entity("shop", {"shop": String})
sales = PushSource("sales_push", ParquetSource("sales", "sales.parquet", "sold_at", "known_at"))
shop_sales = FeatureView(
    "shop_sales", entities=[shop], source=sales, schema=[Field("amount", Int64), Field("note", String)]
)
fixed = FeatureView(
    "fixed", entities=[shop], source=ParquetSource("fixed", "sales.parquet", "sold_at", "known_at"),
    schema=[Field("amount", Int64)],
)


@on_demand_feature_view(sources=[fixed], schema=[Field("twice", Int64)])
def doubled(inputs):
    return {"twice": [None if amount is None else 2 * amount for amount in inputs["amount"]]}


both = FeatureService("both", features=[shop_sales, doubled])
"""

THREADS = 16
PUSHES = 12
NOW = datetime.now(UTC)


@pytest.fixture(params=["lmdb", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureStore]:
    url = "lmdb:///data/online" if request.param == "lmdb" else request.getfixturevalue("redis_url")
    # Definitions are looked at anew all the time, beside reads that are under way.
    settings = f"project: shop\nonline_store: {{url: '{url}'{', read_timeout_ms: 2000' if 'redis' in url else ''}}}\n"
    (tmp_path / "feature_store.yaml").write_text(f"{settings}server: {{refresh: 10ms}}\n")
    (tmp_path / "features.py").write_text(FEATURES)
    write_sales(tmp_path / "sales.parquet", [Sale(f"shop {n}", day(1), day(1), n) for n in range(THREADS)])
    with FeatureStore(tmp_path) as store:
        store.apply()
        store.materialize("2024-01-01", "2024-01-31")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with FeatureStore(tmp_path) as store:  # nothing is open yet: all threads open it at once
            yield store
    finally:
        sys.setswitchinterval(before)


def test_threads_share_a_store_for_reads_and_pushes(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "_MOST_SHAPES", 4)  # each selection is another shape: compiled requests come and go
    together = Barrier(THREADS)

    def work(number: int) -> None:
        own, seen = f"shop {number}", [0] * THREADS
        shops = [f"shop {n}" for n in range(THREADS)]
        together.wait()
        fixed = store.workspace.snapshot().views["fixed"].view
        for turn in range(1, PUSHES + 1):
            at = NOW - timedelta(minutes=PUSHES - turn)
            rows = [{"shop": own, "sold_at": at, "amount": turn * 100 + number, "note": f"{own}, {turn}"}]
            to: Any = "both" if turn == PUSHES // 2 else "online"
            pushed = store.push("sales_push", rows, to)
            assert pushed.views["shop_sales"].online is not None
            assert pushed.views["shop_sales"].online.written == 1
            found = store.get_online_features("both", {"shop": shops}).to_dict()
            assert found["twice"] == [2 * n for n in range(THREADS)]
            for other, (amount, note) in enumerate(zip(found["amount"], found["note"], strict=True)):
                if note is None:  # materialized, nothing pushed yet
                    assert (amount, seen[other]) == (other, 0)
                    continue
                assert note == f"shop {other}, {amount // 100}"
                assert amount % 100 == other
                assert amount >= seen[other]
                seen[other] = amount
            assert seen[number] == turn * 100 + number
            alone = store.get_online_features([fixed[["amount"]]], [{"shop": own}], full_feature_names=turn % 2 == 0)
            assert list(alone.to_dict().values())[1:] == [[number]]

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    last = store.get_online_features("both", {"shop": [f"shop {n}" for n in range(THREADS)]}).to_dict()
    assert last["amount"] == [PUSHES * 100 + n for n in range(THREADS)]


def test_what_threads_open_at_once_is_opened_once(store: FeatureStore) -> None:
    together = Barrier(THREADS)

    def opened(_: int) -> tuple[int, ...]:
        together.wait()
        workspace = store.workspace
        return id(workspace.online), id(workspace.registry), id(workspace.code), id(workspace.offline)

    with ThreadPoolExecutor(THREADS) as pool:
        assert len(set(pool.map(opened, range(THREADS)))) == 1
