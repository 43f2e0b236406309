"""Files that were not written by one hand, beyond the engine: pinned schemas and entity frames."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.materialized import INSTANT, Sale, day, sales_view, write_sales
from support.projects import make_workspace
from support.sources import table_of, write

from featurestore import Entity, FeatureView, ParquetSource
from featurestore.definitions import Field
from featurestore.engine.duck.engine import open_engine
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.plan.schemas import pin_schemas
from featurestore.tables import read_parquet
from featurestore.training import get_historical_features
from featurestore.training.coverage import TrainingSetWarning
from featurestore.types import Int64, String


def test_a_pinned_schema_stays_when_a_file_has_no_value(tmp_path: Path) -> None:
    source = ParquetSource("flights", "data.parquet", "at")
    view = FeatureView("profile", entities=[Entity("thing", join_keys={"k": Int64})], source=source)
    write(tmp_path / "data.parquet", table_of(v=pa.array(["x"] * 3)))
    engine = open_engine(tmp_path)
    (pinned,), _ = pin_schemas([view], {}, engine, refresh=False)
    assert isinstance(pinned, FeatureView)
    assert pinned.features == (Field("v", String),)
    write(tmp_path / "data.parquet", table_of(v=pa.array([None] * 3, pa.float64())))
    assert pin_schemas([view], {"profile": pinned}, engine, refresh=False) == ([pinned], [])


@pytest.mark.parametrize(
    "sentinel", [datetime(9999, 12, 31), datetime(1, 1, 1), datetime(1677, 9, 21), datetime(2262, 4, 12)], ids=str
)
def test_old_timestamps_may_hold_any_day(tmp_path: Path, sentinel: datetime) -> None:
    moments = [datetime(2024, 1, 2, 3, 4, 5, 678901), sentinel, None]
    table = pa.table({"seen": pa.array(moments, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "data.parquet", use_deprecated_int96_timestamps=True)
    read = read_parquet(tmp_path / "data.parquet", "The table")
    wanted = [None if moment is None else moment.replace(tzinfo=UTC) for moment in moments]
    assert read["seen"].cast(INSTANT).to_pylist() == wanted


def test_an_entity_frame_with_old_timestamps_has_its_own_days(tmp_path: Path) -> None:
    write_sales(tmp_path / "sales.parquet", [Sale("a", day(1), day(1), 7)])
    workspace = make_workspace(tmp_path, [sales_view()], now_us=day(10))
    succeeded(materialize_incremental(workspace))
    frame = pa.table({"shop": ["a", "a"], "event_timestamp": pa.array([datetime(9999, 12, 31), datetime(1, 1, 1)])})
    pq.write_table(frame, tmp_path / "frame.parquet", use_deprecated_int96_timestamps=True)
    with pytest.warns(TrainingSetWarning, match="1 of 2 entity rows are after now"):
        made = get_historical_features(workspace, tmp_path / "frame.parquet", "shop_sales:amount")
    assert made.to_arrow()["amount"].to_pylist() == [7, None]
    assert len(made.warnings) == 1  # no run can commit what is far ahead
    workspace.close()
