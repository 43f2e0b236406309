"""Feast's side of a comparison, run by the Python of an environment that has Feast: one command, one line of JSON.

``feast_side.py REPO apply|historical OUT|materialize|reads N...``. The repo's folder holds ``plan.json``: the views,
where their rows lie, and what is asked.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, types
from feast.value_type import ValueType

KINDS = {
    "double": types.Float64,
    "float": types.Float32,
    "int64": types.Int64,
    "int32": types.Int32,
    "bool": types.Bool,
    "string": types.String,
    "timestamp[us, tz=UTC]": types.UnixTimestamp,
}


def apply(repo: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Register the views."""
    objects: list[Any] = []
    for view in plan["views"]:
        entity = Entity(name=view["key"], join_keys=[view["key"]], value_type=ValueType.INT64)
        source = FileSource(
            name=f"{view['name']}_source",
            path=view["source"],
            timestamp_field="event_ts",
            created_timestamp_column="created_ts",
        )
        fields = [Field(name=name, dtype=KINDS[kind]) for name, kind in view["features"].items()]
        ttl = timedelta(microseconds=view["ttl_us"])
        made = FeatureView(name=view["name"], entities=[entity], ttl=ttl, schema=fields, source=source, online=True)
        objects += [entity, made]
    FeatureStore(repo_path=str(repo)).apply(objects)
    return {}


def historical(repo: Path, plan: dict[str, Any], out: str) -> dict[str, Any]:
    """Build the training set and write it."""
    import pandas as pd
    import pyarrow.parquet as pq

    store = FeatureStore(repo_path=str(repo))
    start = time.perf_counter()
    frame = pd.read_parquet(plan["entities"])
    table = store.get_historical_features(entity_df=frame, features=plan["references"]).to_arrow()
    pq.write_table(table, out)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "rows": table.num_rows, "peak_mib": peak}


def materialize(repo: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Bring the newest rows online."""
    store = FeatureStore(repo_path=str(repo))
    now = datetime.now(UTC)
    start = time.perf_counter()
    store.materialize(now - timedelta(days=2), now)
    return {"seconds": time.perf_counter() - start}


def reads(repo: Path, plan: dict[str, Any], *counts: str) -> dict[str, Any]:
    """Return the median seconds of an online read of so many entities."""
    store = FeatureStore(repo_path=str(repo))
    found = {}
    for count in counts:
        times = []
        for columns in plan["requests"][count]:
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            start = time.perf_counter()
            answer = store.get_online_features(features=plan["references"], entity_rows=rows).to_dict()
            times.append(time.perf_counter() - start)
        assert any(value is not None for value in answer[plan["references"][0].partition(":")[2]])
        found[count] = sorted(times)[len(times) // 2]
    return found


def main() -> None:
    repo, command, *arguments = sys.argv[1:]
    plan = json.loads((Path(repo) / "plan.json").read_text())
    commands = {"apply": apply, "historical": historical, "materialize": materialize, "reads": reads}
    sys.stdout.write(json.dumps(commands[command](Path(repo), plan, *arguments)) + "\n")


if __name__ == "__main__":
    main()
