"""Folders called ``name=value`` above a project mean nothing, from its sources to what is online."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from support.materialized import INSTANT, Sale, day, online_rows, sales_view, write_sales
from support.projects import make_workspace
from support.sources import write

from featurestore.materialization import materialize_incremental, succeeded
from featurestore.training import get_historical_features


def test_training_sets_and_online_rows_are_the_files_own_below_such_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "shop=us" / "amount=7" / "sold_at=2020-01-01"
    write_sales(root / "sales.parquet", [Sale("eu", day(1), day(1), 1, "a"), Sale("us", day(2), day(2), 2, "b")])
    frame = pa.table({"shop": ["eu", "us"], "event_timestamp": pa.array([day(5)] * 2, INSTANT)})
    write(root / "frame.parquet", frame)
    workspace = make_workspace(root, [sales_view()], now_us=day(10))
    succeeded(materialize_incremental(workspace))
    query = "SELECT shop, sold_at AS event_timestamp FROM sales ORDER BY shop"
    for entity_df in (frame, root / "frame.parquet", query):
        for direct in (False, True):
            made = get_historical_features(workspace, entity_df, "shop_sales:amount", direct=direct).to_arrow()
            assert (made["shop"].to_pylist(), made["amount"].to_pylist()) == (["eu", "us"], [1, 2])
    assert {shop: row[2] for shop, row in online_rows(workspace).items()} == {"eu": 1, "us": 2}
    workspace.close()
