"""The life of a small project as commands that can be killed and run again, each in a process of its own."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurestore import Field
from featurestore.consistency.belonging import markers_of
from featurestore.engine.duck.log import DuckLog
from featurestore.ingest import push
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.optimize import optimize
from featurestore.materialization import materialize, materialize_incremental, publish, succeeded
from featurestore.offline import merge
from featurestore.offline.local import archive
from featurestore.offline.local import store as delta
from featurestore.online.records.marker import Marker
from featurestore.plan import apply_plan, make_plan
from featurestore.prepare import prepare
from featurestore.project.loader import collect
from featurestore.project.settings import make_settings
from featurestore.repair import find_repairs, repair
from featurestore.types import Float64
from featurestore.types.times import to_datetime
from featurestore.workspace import Workspace
from support.clock import ManualClock
from support.forked_fs import forked_fs
from support.materialized import SOURCE_SCHEMA, Sale, day, sales_view, write_sales

NOW = day(30)
PASSED_FILE = "passed.json"


@dataclass(frozen=True)
class Job:
    """A command to run in a folder."""

    command: str
    folder: str
    url: str | None
    crash_at: str | None = None
    kill_after_ms: float | None = None
    """By SIGALRM."""


def open_workspace(folder: Path, url: str | None) -> Workspace:
    settings = make_settings({"project": "shop", "online_store": url or "lmdb:///data/online"})
    return Workspace(folder, settings, clock=ManualClock(NOW))


FIRST = [Sale(f"shop {number % 12}", day(number / 10), day(number / 10), number) for number in range(40)]
LATE = [
    Sale("shop 3", day(2.25), day(11), 33, "late"),
    Sale("shop 4", day(0.4), day(0.4), 4, "corrected"),
    Sale("shop 4", day(11.5), day(11.5), 44),
    Sale("brand new", day(11.5), day(11.5), 45),
]
SECOND = [sale for sale in FIRST if sale.sold_us != day(0.4)] + LATE
KEPT = [sale for sale in SECOND if sale.amount not in (44, 45, 39, 27)]
LAST = [*KEPT, Sale("shop 5", day(25), day(25), 55)]


def _apply(workspace: Workspace, *, doomed: bool, price: bool, prepared: bool = False) -> None:
    view = sales_view(pushed=True)
    views = [view.replaced(fields=(*view.fields, Field("price", Float64))) if price else view]
    if doomed:
        views.append(view.replaced(name="doomed"))
    plan = make_plan(workspace, collect(views), partial=False, prepare=prepared)
    prepare(workspace, plan)
    apply_plan(workspace, plan)


def read_source(sales: list[Sale]) -> dict[str, list[Any]]:
    """Return sales as columns of their source, as a caller pushes them."""
    instants = {"sold_at": [sale.sold_us for sale in sales], "known_at": [sale.known_us for sale in sales]}
    columns = {name: [to_datetime(instant) for instant in found if instant] for name, found in instants.items()}
    return columns | {name: [getattr(sale, name) for sale in sales] for name in ("shop", "amount", "note")}


def _write(workspace: Workspace, sales: list[Sale], *, price: bool = False) -> None:
    write_sales(workspace.root / "sales.parquet", sales)
    if price:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(workspace.root / "sales.parquet", schema=SOURCE_SCHEMA)
        prices = pa.array([float(row) for row in range(len(table))])
        pq.write_table(table.append_column("price", prices), workspace.root / "sales.parquet")


def apply_first(workspace: Workspace) -> None:
    _write(workspace, FIRST)
    _apply(workspace, doomed=True, price=False)


def first_run(workspace: Workspace) -> None:
    succeeded(materialize_incremental(workspace, day(10)))


def late_rows(workspace: Workspace) -> None:
    _write(workspace, SECOND)
    succeeded(materialize_incremental(workspace, day(12), ["shop_sales"]))


PUSHED = [
    Sale("shop 3", day(11.5), day(11.6), 300, "pushed"),
    Sale("shop 4", day(1), day(12), 400, "older than what is online"),
    Sale("pushed alone", day(11.7), day(11.7), 500),
]


def push_rows(workspace: Workspace) -> None:
    merge.MOST_SMALL = 1
    push(workspace, "sales_push", read_source(PUSHED))


def rebuild(workspace: Workspace) -> None:
    _write(workspace, KEPT)
    succeeded(
        materialize(workspace, day(0), day(12), ["shop_sales"], rebuild=True, confirm=lambda view, rows: rows == 4)
    )


def new_feature(workspace: Workspace) -> None:
    _write(workspace, KEPT, price=True)
    _apply(workspace, doomed=True, price=True)
    succeeded(materialize(workspace, day(1), day(2), ["shop_sales"]))


def _save(workspace: Workspace, name: str) -> None:
    import pandas as pd

    from featurestore.training import get_historical_features

    times = pd.to_datetime([day(5), day(6)], unit="us", utc=True)
    frame = pd.DataFrame({"shop": ["shop 1", "shop 2"], "event_timestamp": times})
    get_historical_features(workspace, frame, ["shop_sales:amount"]).save(name)


def save_training_set(workspace: Workspace) -> None:
    _save(workspace, "kept")


def delete_set(workspace: Workspace) -> None:
    from featurestore.training import delete_training_set

    _save(workspace, "given_up")
    delete_training_set(workspace, "given_up")


def compact(workspace: Workspace) -> None:
    optimize(workspace, ["shop_sales"])
    succeeded(materialize_incremental(workspace, day(12), ["shop_sales"]))  # publishes it: a death may have come before


def checkpoint(workspace: Workspace) -> None:
    delta.CHECKPOINT_EVERY = 1
    archive.KEPT_CHECKPOINTS, archive.SETTLED_SECONDS = 1, 0.0
    merge.MOST_SMALL = 1
    _write(workspace, LAST, price=True)
    for _ in range(2):  # the second publishes the version that the first ends with, a merge
        succeeded(materialize_incremental(workspace, day(26), ["shop_sales"]))


def drop(workspace: Workspace) -> None:
    _apply(workspace, doomed=False, price=True)
    collect_garbage(workspace)


def settle(workspace: Workspace) -> None:
    """Let the stores look as another project left them, and repair that: the accident is made again by each try."""
    registered = workspace.snapshot().registered("shop_sales")
    workspace.offline.bind("shop", "f" * 64, replace=True)
    markers_of(workspace.online, registered).write(Marker("f" * 64, "e" * 64, registered.generation))
    done = repair(workspace, find_repairs(workspace))
    succeeded(done.runs)
    assert [view.problems for view in done.checked] == [()]


def new_generation(workspace: Workspace) -> None:
    """Take the feature away again, the table without it filled before it is served."""
    _apply(workspace, doomed=False, price=False, prepared=True)


COMMANDS: dict[str, Callable[[Workspace], None]] = {
    command.__name__: command
    for command in (
        apply_first,
        first_run,
        late_rows,
        push_rows,
        rebuild,
        new_feature,
        save_training_set,
        delete_set,
        compact,
        checkpoint,
        drop,
        settle,
        new_generation,
    )
}


def run_in_a_process(job: Job) -> tuple[int, str]:
    """Run a command; returns the exit status, minus the signal for a process that was killed, and what it printed."""
    code = f"from support.crash_scenario import Job, run; run(Job(**{asdict(job)!r}))"
    environment = {} if job.crash_at is None else {"FS_CRASH_AT": job.crash_at}
    (ended,) = forked_fs().run_code(code, Path(job.folder), [environment])
    return ended


def run(job: Job) -> None:
    """Run a command in this process, and note how often it passed each crash point."""
    if job.kill_after_ms is not None:
        signal.setitimer(signal.ITIMER_REAL, job.kill_after_ms / 1000)  # its signal ends the process at once
    passed = note_crash_points()
    _send_few_at_once()
    workspace = open_workspace(Path(job.folder), job.url)
    COMMANDS[job.command](workspace)
    workspace.close()
    signal.setitimer(signal.ITIMER_REAL, 0)
    Path(job.folder, PASSED_FILE).write_text(json.dumps(passed))


def run_here(job: Job) -> None:
    """Run a command that nothing ends in this process, where all is loaded, and take back what it set for itself."""
    kept = [(owner, name, getattr(owner, name)) for owner, name in _SET_BY_COMMANDS]
    try:
        _send_few_at_once()
        with closing(open_workspace(Path(job.folder), job.url)) as workspace:
            COMMANDS[job.command](workspace)
        for thread in threading.enumerate():
            if thread.name.startswith("commit "):  # it merges after it has answered
                thread.join(20)
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


_SET_BY_COMMANDS: tuple[tuple[Any, str], ...] = (
    (publish, "MOST_WRITES"),
    (DuckLog, "latest"),
    (merge, "MOST_SMALL"),
    (delta, "CHECKPOINT_EVERY"),
    (archive, "KEPT_CHECKPOINTS"),
    (archive, "SETTLED_SECONDS"),
)
"""What the scenario sets in the product's modules, for as long as a process lives."""


def _send_few_at_once() -> None:
    """Make several batches of a few records, to die between; the engine alone would make one."""
    import pyarrow

    publish.MOST_WRITES = 4
    latest = DuckLog.latest

    def few(*arguments: Any, **options: Any) -> Iterator[Any]:
        batches = list(latest(*arguments, **options))
        if batches:
            yield from pyarrow.Table.from_batches(batches).combine_chunks().to_batches(max_chunksize=4)

    DuckLog.latest = few


def note_crash_points() -> Counter[str]:
    """Count the passing of every crash point from here on, beside what it does."""
    passed: Counter[str] = Counter()

    def noting(reached: Callable[[str], None]) -> Callable[[str], None]:
        def note(name: str) -> None:
            passed[name] += 1
            reached(name)

        return note

    for name, module in list(sys.modules.items()):
        if name.startswith("featurestore.") and hasattr(module, "reached") and name != "featurestore.steps":
            module.reached = noting(module.reached)
    return passed
