"""The life of a windowed view as commands that can be killed and run again, each in a process of its own."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.following import follow
from featurestore.ingest import push
from featurestore.materialization import materialize, materialize_incremental, republish, succeeded
from featurestore.plan import apply_plan, make_plan
from featurestore.project.loader import collect
from featurestore.project.settings import make_settings
from featurestore.types import Float64, Int64, String
from featurestore.types.times import to_datetime
from featurestore.workspace import Workspace
from support.clock import ManualClock
from support.crash_scenario import note_crash_points
from support.forked_fs import forked_fs
from support.materialized import day

MINUTE_US = 60_000_000
SHOPS = range(5)
WINDOWS = [timedelta(minutes=12), timedelta(days=3), None]
SCHEMA = pa.schema([("shop", pa.int64()), ("sold_at", pa.timestamp("us", "UTC")), ("id", pa.string()),
                    ("amount", pa.float64())])  # fmt: skip
PASSED_FILE = "passed.json"


def sales_view() -> FeatureView:
    batch = ParquetSource("sales_file", "sales", "sold_at", allowed_lateness=timedelta(days=400))
    return FeatureView(
        "sales",
        entities=[Entity("shop", join_keys={"shop": Int64})],
        source=PushSource("sales_push", batch),
        schema=[Field("id", String), Field("amount", Float64)],
        event_id="id",
        aggregations=[
            Aggregation("*", "count", windows=WINDOWS),
            *(Aggregation("amount", name, windows=WINDOWS) for name in ("sum", "std", "max", "last")),
        ],
    )


def sales(first: int, count: int, begin_us: int, *, shop: int | None = None) -> dict[str, list[Any]]:
    """Return events as columns: one a second, in turn of each shop or all of one."""
    numbers = range(first, first + count)
    return {
        "shop": [number % 4 if shop is None else shop for number in numbers],
        "sold_at": [to_datetime(begin_us + (number - first) * 1_000_000) for number in numbers],
        "id": [f"e{number}" for number in numbers],
        "amount": [number / 8 + 0.1 for number in numbers],
    }


def _write(workspace: Workspace, name: str, columns: dict[str, list[Any]]) -> None:
    (workspace.root / "sales").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns, schema=SCHEMA), workspace.root / "sales" / f"{name}.parquet")


def fill(workspace: Workspace) -> None:
    _write(workspace, "first", sales(0, 60, day(7)))
    _write(workspace, "gone", sales(60, 8, day(8)))
    apply_plan(workspace, make_plan(workspace, collect([sales_view()]), partial=False))
    succeeded(materialize_incremental(workspace, day(9)))


def push_events(workspace: Workspace) -> None:
    push(workspace, "sales_push", sales(100, 48, day(9), shop=2) | {"shop": [2] * 40 + [4] * 8})


def push_again(workspace: Workspace) -> None:
    push(workspace, "sales_push", sales(132, 48, day(9) + 5 * MINUTE_US, shop=2))


def late_events(workspace: Workspace) -> None:
    _write(workspace, "late", sales(200, 60, day(6)))
    succeeded(materialize_incremental(workspace, day(9)))


def publish_again(workspace: Workspace) -> None:
    succeeded(republish(workspace))


def rebuild(workspace: Workspace) -> None:
    (workspace.root / "sales" / "gone.parquet").unlink(missing_ok=True)
    confirm = lambda view, rows: rows == 8  # noqa: E731
    succeeded(materialize(workspace, day(0), day(9), rebuild=True, confirm=confirm))


COMMANDS = {each.__name__: each for each in (fill, push_events, push_again, late_events, publish_again, rebuild)}
HOURS = dict(zip(COMMANDS, (0, 1, 2, 3, 4, 5), strict=True))
"""When each command runs, in hours after the first."""


def open_life(folder: Path, url: str | None, command: str) -> Workspace:
    """Open the project at the instant at which a command runs."""
    settings = make_settings({"project": "shop", "online_store": url or "lmdb:///data/online"})
    return Workspace(folder, settings, clock=ManualClock(day(9) + 60 * MINUTE_US * (1 + HOURS[command])))


def run(folder: str, url: str | None, command: str) -> None:
    """Run a command in this process, and note how often it passed each crash point."""
    follow.MOST_OF_ONE, follow.PLACED_AT_ONCE = 9, 2
    passed: Counter[str] = note_crash_points()
    with closing(open_life(Path(folder), url, command)) as workspace:
        COMMANDS[command](workspace)
    Path(folder, PASSED_FILE).write_text(json.dumps(passed))


def run_in_a_process(folder: Path, url: str | None, command: str, crash_at: str | None = None) -> tuple[int, str]:
    """Run a command; returns the exit status and what it printed."""
    code = f"from support.windowed_life import run; run({str(folder)!r}, {url!r}, {command!r})"
    (ended,) = forked_fs().run_code(code, folder, [{} if crash_at is None else {"FS_CRASH_AT": crash_at}])
    return ended
