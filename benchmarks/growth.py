"""Growth: what a table of many commits costs beside the same table compacted."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.context import Context
from benchmarks.pairs import measure, timed
from benchmarks.projects import open_workspace, view_definition
from benchmarks.report import Row, Section, Target
from benchmarks.windows import workspace_of
from benchmarks.windows_data import SPAN_DAYS, as_instants, events_view
from benchmarks.workload import DAY_US, WorkloadView
from featurestore import FeatureStore
from featurestore.ingest.events import EventWriter
from featurestore.ingest.push import push
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.optimize import optimize
from featurestore.maintenance.status import status
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.offline import groups
from featurestore.offline.local import archive
from featurestore.types.times import to_datetime
from featurestore.workspace import Workspace

PUSHES, EVENT_PUSHES, RUNS = 10_000, 20_000, 1_000
ENTITIES, BASE_ROWS, ENTITY_ROWS = 1_000, 100_000, 10_000
ONLINE = "lmdb:///data/online"
SOURCE, EVENTS = "growing_events", "events_push"
NAMES = tuple(f"feature_{number}" for number in range(5))
FEATURES = tuple(f"growing:{name}" for name in NAMES)
OF_FEW_FILES = ("fs peek", "identity of one event, the first of a process")
"""What reads one file of the compacted table, and of another one a few, however many commits it had."""
WANTED = "50 ms at most wanted"
INSTANT = pa.timestamp("us", tz="UTC")


def run(context: Context) -> Iterator[Section]:
    """Measure after pushes of one row each, and after daily runs."""
    pushes = 4 if context.is_quick else PUSHES
    yield _measured(context, f"Growth: {pushes:,} pushes of one row", "pushes", partial(_pushed, pushes), _works())
    yield from run_daily(context)


def run_daily(context: Context) -> Iterator[Section]:
    """Measure after daily runs alone."""
    runs = 3 if context.is_quick else RUNS
    yield _measured(context, f"Growth: {runs:,} daily runs", "runs", partial(_run_daily, runs), _works())


def run_events(context: Context) -> Iterator[Section]:
    """Measure after pushes of one event each to a view with windows."""
    pushes = 4 if context.is_quick else EVENT_PUSHES
    title = f"Growth: {pushes:,} pushes of one event, windows"
    yield _measured(context, title, "events", partial(_pushed_events, pushes), _event_works())


def _measured(
    context: Context, title: str, name: str, make: Callable[[Path], None], works: Mapping[str, Callable[[Path], float]]
) -> Section:
    with _as_over_days():
        grown, floor = _grown_and_compacted(context.place(name), make)
        files = [_state(root) for root in (grown, floor)]
        section = Section(
            title,
            f"{BASE_ROWS:,} rows and what was added to them; the floor is a copy of the project "
            f"after fs optimize. Files: {files[0]}, and {files[1]}. Each begins by opening the store.",
        )
        for work, seconds in works.items():
            pairs = measure(partial(seconds, grown), partial(seconds, floor), count=context.pairs)
            target = None if work in OF_FEW_FILES else Target(at_most=1.3)
            section.rows.append(
                Row(work, "s", pairs, target, note=WANTED if work.startswith("identity of one") else "")
            )
    return section


def _works() -> dict[str, Callable[[Path], float]]:
    return {
        "training set, 10,000 entity rows": lambda root: timed(_training_set, root, FEATURES)(),
        "incremental run that finds nothing": lambda root: timed(_run, root)(),
        "incremental run that publishes a push": _run_after_push,
        "push of one row, to='offline'": _one_push,
        "fs peek": lambda root: timed(_peek, root)(),
    }


def _training_set(root: Path, features: Sequence[str]) -> None:
    with FeatureStore(root) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (
            store.get_historical_features(root / "entities.parquet", list(features)).to_arrow().num_rows == ENTITY_ROWS
        )


def _run(root: Path) -> None:
    with FeatureStore(root) as store:
        (done,) = store.materialize_incremental()
        assert (done.state, done.appended) == ("done", 0)


def _run_after_push(root: Path) -> float:
    _one_push(root)
    return timed(_run, root)()


def _one_push(root: Path) -> float:
    with closing(open_workspace(root, ONLINE)) as workspace:
        begin_s = time.perf_counter()
        push(workspace, SOURCE, _row(_now_us(), 7), "offline")
        return time.perf_counter() - begin_s


def _event_works() -> dict[str, Callable[[Path], float]]:
    return {
        "identity of one event": _identity,
        "identity of one event, the first of a process": partial(_identity, is_first=True),
        "identity of 5,000 events": partial(_identity, count=5_000),
        "push of one event": _event_push,
        "push of one event, the first of a process": partial(_event_push, is_first=True),
        "incremental run that finds nothing": lambda root: timed(_run, root)(),
        "fs status": partial(_asked, lambda workspace: status(workspace)),
        "fs gc --dry-run": partial(_asked, lambda workspace: collect_garbage(workspace, dry_run=True)),
        "training set, 10,000 entity rows": lambda root: timed(_training_set, root, ["events:*"])(),
    }


def _identity(root: Path, count: int = 1, *, is_first: bool = False) -> float:
    """Measure how a commit finds out which of its events are new; one that is not the first knows all but the last."""
    with closing(open_workspace(root, ONLINE)) as workspace:
        view, writer = workspace.snapshot().views["events"], EventWriter()
        rows = _events(_now_us(), count).append_column("created_ts", as_instants(np.full(count, _now_us())))
        if not is_first:
            writer.judged(workspace, view, workspace.offline.current(view.table), rows)
            push(workspace, EVENTS, _events(_now_us()))
        version = workspace.offline.current(view.table)
        return timed(writer.judged, workspace, view, version, rows)()


def _event_push(root: Path, *, is_first: bool = False) -> float:
    with closing(open_workspace(root, ONLINE)) as workspace:
        if not is_first:
            push(workspace, EVENTS, _events(_now_us()))
        return timed(push, workspace, EVENTS, _events(_now_us()))()


def _asked(ask: Callable[[Workspace], object], root: Path) -> float:
    with closing(open_workspace(root, ONLINE)) as workspace:
        return timed(ask, workspace)()


def _peek(root: Path) -> None:
    with FeatureStore(root) as store:
        assert store.peek("growing", 10).num_rows == 10


def _pushed(count: int, root: Path) -> None:
    _make(root, days=1)
    with FeatureStore(root) as store:
        store.materialize_incremental()
    first_us = _now_us() - count * 1_000_000
    with closing(open_workspace(root, ONLINE)) as workspace:
        for number in range(count):
            push(workspace, SOURCE, _row(first_us + number * 1_000_000, number), "offline")
    with FeatureStore(root) as store:
        store.materialize_incremental()


def _pushed_events(count: int, root: Path) -> None:
    root.mkdir()
    rng, end_us = np.random.default_rng(9), _now_us()
    begin_us = end_us - SPAN_DAYS * DAY_US
    at = np.sort(rng.integers(begin_us, end_us - 1_000_000, BASE_ROWS))
    columns = {"user_id": rng.integers(0, ENTITIES, BASE_ROWS), "event_ts": as_instants(at)}
    columns |= {"created_ts": as_instants(at), "id": [f"b{number}" for number in range(BASE_ROWS)]}
    pq.write_table(pa.table({**columns, "amount": np.round(rng.random(BASE_ROWS) * 50, 2)}), root / "source.parquet")
    asked = as_instants(rng.integers(begin_us, end_us, ENTITY_ROWS))
    frame = {"user_id": rng.integers(0, ENTITIES, ENTITY_ROWS), "event_timestamp": asked}
    pq.write_table(pa.table(frame), root / "entities.parquet")
    with closing(workspace_of(root, events_view(pushed=True, path="source.parquet"), ONLINE)) as workspace:
        succeeded(materialize_incremental(workspace))
        for _ in range(count):
            push(workspace, EVENTS, _events(_now_us()))


def _events(now_us: int, count: int = 1) -> pa.Table:
    """Return events that happened just now."""
    columns = {"user_id": np.arange(now_us, now_us + count) % ENTITIES}
    columns |= {"event_ts": as_instants(np.full(count, now_us - 1_000))}
    return pa.table({**columns, "id": [f"p{now_us}-{row}" for row in range(count)], "amount": np.arange(count) / 8})


def _run_daily(count: int, root: Path) -> None:
    _make(root, days=count)
    first_us = _now_us() - count * DAY_US
    with FeatureStore(root) as store:
        for number in range(1, count):
            (done,) = store.materialize_incremental(to_datetime(first_us + number * DAY_US))
            assert done.appended
        store.materialize_incremental()


def _make(root: Path, days: int) -> None:
    """Apply a view whose source holds rows of so many days, and write an entity frame."""
    rng = np.random.default_rng(9)
    root.mkdir()
    end_us = _now_us()
    events = np.sort(rng.integers(end_us - days * DAY_US, end_us - 1_000_000, BASE_ROWS))
    columns = {
        "entity_id": pa.array(rng.integers(0, ENTITIES, BASE_ROWS)),
        "event_ts": pa.array(events).cast(INSTANT),
        "created_ts": pa.array(events).cast(INSTANT),
    }
    columns |= {name: pa.array(rng.normal(size=BASE_ROWS)) for name in NAMES}
    source = root / "source.parquet"
    pq.write_table(pa.table(columns), source)
    frame = {
        "entity_id": pa.array(rng.integers(0, ENTITIES, ENTITY_ROWS)),
        "event_timestamp": pa.array(rng.integers(events[0], end_us, ENTITY_ROWS)).cast(INSTANT),
    }
    pq.write_table(pa.table(frame), root / "entities.parquet")
    (root / "feature_store.yaml").write_text(f"project: growth\nonline_store: '{ONLINE}'\n")
    (root / "features.py").write_text("")
    view = WorkloadView("growing", "entity_id", 0, NAMES, source, source)
    with FeatureStore(root) as store:
        store.apply([view_definition(view, with_ttl=False, pushed=True)])


def _grown_and_compacted(folder: Path, make: Callable[[Path], None]) -> tuple[Path, Path]:
    grown, compacted = folder / "grown", folder / "compacted"
    make(grown)
    shutil.copytree(grown, compacted)
    with closing(open_workspace(compacted, ONLINE)) as workspace:
        optimize(workspace)
    return grown, compacted


def _state(root: Path) -> str:
    with closing(open_workspace(root, ONLINE)) as workspace:
        (table,) = workspace.offline.tables(workspace.project)
        version = workspace.offline.current(table)
    assert version is not None
    return f"{len(version.files)} at version {version.number:,}"


@contextmanager
def _as_over_days() -> Iterator[None]:
    """Commit without the pauses in between, and let old log entries move as if there had been some."""
    pause_s, settled_s = groups.PAUSE_SECONDS, archive.SETTLED_SECONDS
    groups.PAUSE_SECONDS = archive.SETTLED_SECONDS = 0.0
    try:
        yield
    finally:
        groups.PAUSE_SECONDS, archive.SETTLED_SECONDS = pause_s, settled_s


def _row(event_us: int, number: int) -> dict[str, list[object]]:
    return {
        "entity_id": [number % ENTITIES],
        "event_ts": pa.array([event_us]).cast(INSTANT).to_pylist(),
        **{name: [float(number)] for name in NAMES},
    }


def _now_us() -> int:
    return time.time_ns() // 1000
