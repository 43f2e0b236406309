"""Projects to measure: the workload's views applied, and its rows in the stores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workload import DAY_US, Workload, WorkloadView
from featurestore import FeatureStore
from featurestore.definitions import Definition, Entity, FeatureService, FeatureView, Field, ParquetSource, PushSource
from featurestore.project.settings import read_settings
from featurestore.types import Int64
from featurestore.types.arrow import value_type_of
from featurestore.workspace import Workspace

PROJECT = "bench"
SERVICE = "model"
PATIENCE_MS = 2_000


def view_definition(view: WorkloadView, with_ttl: bool, *, pushed: bool = False) -> FeatureView:
    """Return the view as a user would define it; ``pushed`` rows come to ``{view}_events``."""
    schema = pq.read_schema(view.source)
    fields = []
    for feature in view.features:
        kind = value_type_of(schema.field(feature).type)
        assert kind is not None
        fields.append(Field(feature, kind))
    source = ParquetSource(
        f"{view.name}_source",
        path=str(view.source),
        timestamp_field="event_ts",
        created_timestamp_field="created_ts",
    )
    return FeatureView(
        view.name,
        entities=[Entity(view.key.removesuffix("_id"), join_keys={view.key: Int64})],
        source=PushSource(f"{view.name}_events", source) if pushed else source,
        schema=fields,
        ttl=timedelta(microseconds=view.ttl_us) if with_ttl else None,
    )


def references(views: Sequence[WorkloadView]) -> list[str]:
    """Return every feature of the views as ``view:feature``."""
    return [f"{view.name}:{feature}" for view in views for feature in view.features]


def newest_rows(workload: Workload, folder: Path) -> tuple[WorkloadView, ...]:
    """Return views whose sources hold the newest row of each entity, its event within the past twelve hours."""
    views = []
    with duckdb.connect() as con:
        for view in workload.views:
            source = folder / f"{view.name}.newest.parquet"
            moved = f"make_timestamptz({_now_us()} - ({view.key} * 7919 % 43200 + 60) * 1000000)"
            con.execute(
                f"COPY (SELECT * EXCLUDE (file_row_number) REPLACE ({moved} AS event_ts, {moved} AS created_ts) "
                f"FROM read_parquet('{view.table}', file_row_number = true) "
                f"QUALIFY row_number() OVER (PARTITION BY {view.key} ORDER BY file_row_number DESC) = 1) "
                f"TO '{source}' (FORMAT parquet)"
            )
            views.append(replace(view, source=source))
    return tuple(views)


def wide_view(folder: Path, entities: int, features: int = 200) -> WorkloadView:
    """Return a view of many features: floats, no nulls."""
    names = [f"wide_{number:03d}" for number in range(features)]
    rng = np.random.default_rng(4)
    instants = pa.array([_now_us() - 60_000_000] * entities).cast(pa.timestamp("us", tz="UTC"))
    columns = {"customer_id": pa.array(range(entities), pa.int64()), "event_ts": instants, "created_ts": instants}
    columns |= {name: pa.array(rng.normal(size=entities)) for name in names}
    source = folder / "wide.parquet"
    pq.write_table(pa.table(columns), source)
    return WorkloadView("wide", "customer_id", 7 * DAY_US, tuple(names), source, source)


def make_project(
    root: Path,
    views: Sequence[WorkloadView],
    *,
    online_url: str,
    project: str = PROJECT,
    with_ttl: bool = True,
    unused_views: int = 0,
    pushed: bool = False,
) -> Path:
    """Apply the views, a service of them all and some views that nobody reads; bring the rows into both stores."""
    root.mkdir(parents=True, exist_ok=True)
    # The usual deadline is short: on a busy machine it would turn a stall, which the floor sits out, into an error.
    options = f", read_timeout_ms: {PATIENCE_MS}" if online_url.startswith("redis") else ""
    settings = f"project: {project}\nonline_store: {{url: '{online_url}'{options}}}\n"
    (root / "feature_store.yaml").write_text(settings)
    (root / "features.py").write_text("")
    defined = [view_definition(view, with_ttl, pushed=pushed) for view in views]
    objects: list[Definition] = [*defined, FeatureService(SERVICE, features=list(defined))]
    objects += [view_definition(replace(views[0], name=f"unused_{number}"), with_ttl) for number in range(unused_views)]
    with FeatureStore(root) as store:
        store.apply(objects)
        store.materialize_incremental(views=[view.name for view in views])
    return root


def open_workspace(root: Path, online_url: str) -> Workspace:
    """Open a project with another online store than it was made with; the caller closes it."""
    settings = read_settings(root)
    online = settings.online_store.model_copy(update={"url": online_url})
    return Workspace(root, settings.model_copy(update={"online_store": online}))


def requests_of(views: Sequence[WorkloadView], entities: int, count: int) -> list[dict[str, list[int]]]:
    """Return different requests: join key -> that many different entities, each of which has a record."""
    rng = np.random.default_rng(5)
    rows = {view.key: pq.read_metadata(view.source).num_rows for view in views}
    return [
        {key: rng.choice(number, entities, replace=False).tolist() for key, number in rows.items()}
        for _ in range(count)
    ]


def _now_us() -> int:
    return time.time_ns() // 1000
