"""A view whose features are not its log's columns: what reads, commits and compares rows asks for ``stored`` alone."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
from support.engines import open_duck

from featurestore import Entity, FeatureView, Field, ParquetSource
from featurestore.ingest.rows import PushedRows
from featurestore.registered.snapshot import RegisteredView
from featurestore.testing.engine_project import EngineProject, paths_of
from featurestore.types import Float64, Int64
from featurestore.types.times import MAX_INSTANT

MOMENT = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


class Totals(FeatureView):
    """Stores amounts, and answers their total."""

    @property
    def features(self) -> tuple[Field, ...]:
        return (Field("total", Float64),)


def totals() -> Totals:
    shop = Entity("shop", join_keys={"shop": Int64})
    return Totals(
        "totals", entities=[shop], source=ParquetSource("sales", "s.parquet", "at"), schema=[Field("amount", Float64)]
    )


def test_the_log_holds_what_is_stored(tmp_path: Path) -> None:
    project, view = EngineProject(tmp_path, open_duck), totals()
    project.write("s.parquet", pa.table({"shop": [1, 1], "at": [MOMENT, MOMENT], "amount": [1.0, 2.0]}))
    files = paths_of(project.stage(view))
    (newest,) = project.latest(view, files).to_pylist()
    assert newest == {"shop": 1, "event_ts": MOMENT, "created_ts": None, "amount": 2.0}
    assert project.stage(view, log=files).unchanged == 1
    (row,) = project.span(view, files, 0, MAX_INSTANT).to_pylist()
    assert row == {"shop": 1, "event_ts": MOMENT, "amount": 2.0}
    assert RegisteredView("p", view, 1).table_schema.stored == (("amount", Float64),)


def test_what_is_pushed_is_what_is_stored() -> None:
    rows = PushedRows({"shop": [1], "at": [MOMENT], "amount": [2.0]}).of_view(totals(), now_us=0, until_us=MAX_INSTANT)
    assert rows.table().column_names == ["shop", "event_ts", "created_ts", "amount"]
