"""What the engine suites share: a project folder with an engine opened on it, and what they write into it.

Give a suite a fixture ``open_engine``: a class or function at the top of a module that takes the folder from which
relative paths of sources start, and returns an engine. A test may call it again in a process of its own.

class TestMyEngineSources(EngineSourcesConformance):
    @pytest.fixture
    def open_engine(self):
        return open_my_engine
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from textwrap import indent
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.definitions import Entity, FeatureView, Field, ParquetSource
from featurestore.engine.interface import (
    Engine,
    Join,
    JoinFacts,
    SourceColumn,
    SourceFile,
    Span,
    StagedRows,
    StageRequest,
    ViewJoin,
    Withdrawal,
)
from featurestore.training.reference import ReferenceRow
from featurestore.types import Float64, Int64, ValueType
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT

OpenEngine = Callable[[Path], Engine]
ALWAYS = Span(MIN_INSTANT, MAX_INSTANT)
INSTANT = pa.timestamp("us", tz="UTC")


class EngineProject:
    """A project folder, the engine that is opened on it, and each call that the suites make of that engine."""

    def __init__(self, root: Path, open_engine: OpenEngine) -> None:
        self.root = root
        self.open_engine = open_engine
        self.engine = open_engine(root)

    def at(self, folder: str | Path) -> EngineProject:
        """Return another project in a folder below this one."""
        return EngineProject(self.root / folder, self.open_engine)

    def write(self, path: str | Path, table: pa.Table, **options: Any) -> Path:
        """Write a table, creating folders."""
        return write_parquet(self.root / path, table, **options)

    # Sources ---------------------------------------------------------------------------------------------------------

    def files(self, path: str) -> tuple[SourceFile, ...]:
        """Return the files of a source."""
        return self.engine.sources.files(source_at(path))

    def reads(self, path: str, file: Path) -> bool:
        """Tell whether a file would belong to a source."""
        return self.engine.sources.reads(source_at(path), file)

    def digest(self, file: SourceFile) -> str:
        """Return a hash of what a file holds."""
        return self.engine.sources.digest(file)

    def columns(self, source: FeatureView | ParquetSource) -> tuple[SourceColumn, ...]:
        """Return the columns of a source, or of what a view reads."""
        return self.engine.sources.columns(source)

    def value_types(self, source: FeatureView | ParquetSource) -> dict[str, ValueType | None]:
        """Return the type of each column."""
        return {column.name: column.value_type for column in self.columns(source)}

    def first_event_us(self, view: FeatureView) -> int | None:
        """Return the least event time of a view's source."""
        return self.engine.sources.first_event_us(view)

    def dropped(self, view: FeatureView, rows: int) -> list[dict[str, Any]]:
        """Return rows of a view's source that no run takes."""
        return list(self.engine.sources.dropped(view, rows).to_pylist())

    # The log ---------------------------------------------------------------------------------------------------------

    @property
    def staging(self) -> Path:
        """The folder in which the engine writes."""
        folder = self.root / "staging"
        folder.mkdir(exist_ok=True)
        return folder

    def stage(
        self,
        view: FeatureView,
        *,
        log: Sequence[Path] = (),
        now_us: int = MAX_INSTANT,
        spans: Sequence[Span] = (ALWAYS,),
        first_sequence: int = 0,
        counts_later: bool = False,
    ) -> StagedRows:
        """Stage a view's rows, which are checked to lie in the table's order within each file."""
        staged = self.engine.log.stage(
            StageRequest(view, tuple(spans), now_us, names(log), first_sequence, self.staging, counts_later)
        )
        assert sum(table.num_rows for table in map(read_file, paths_of(staged))) == staged.appended
        assert all(is_in_order(read_file(path)) for path in paths_of(staged))
        return staged

    def rows(self, view: FeatureView, **options: Any) -> list[dict[str, Any]]:
        """Stage a view's rows and return them in the table's order."""
        return in_order(read_log(paths_of(self.stage(view, **options))).to_pylist())

    def latest(
        self, view: FeatureView, files: Sequence[Path], *, changed: Sequence[Path] | None = None, **options: Any
    ) -> pa.Table:
        """Return the newest row of each entity."""
        read = names(files if changed is None else changed)
        batches = self.engine.log.latest(view, read, **{"batch_rows": 100, **options})
        return table_from(batches)

    def entities(self, view: FeatureView, files: Sequence[Path], since_us: int, until_us: int) -> tuple[int, int]:
        """Return how many entities there are, and how many of them have a row in a span."""
        return self.engine.log.entities(view, names(files), since_us=since_us, until_us=until_us)

    def withdraw(
        self, view: FeatureView, files: Sequence[Path], span: Span, *, dry: bool = False, now_us: int = MAX_INSTANT
    ) -> Withdrawal:
        """Find the rows that the source no longer holds, and unless ``dry`` write what stays."""
        folder = None if dry else self.staging
        return self.engine.log.withdraw(view, names(files), span, now_us=now_us, folder=folder)

    def replacements(
        self, view: FeatureView, files: Sequence[Path], *, removed: Sequence[str], added: Sequence[Path], **options: Any
    ) -> pa.Table:
        """Return the rows that went, each with the newest row that is left of its entity."""
        batches = self.engine.log.replacements(
            view, names(files), removed=removed, added=names(added), **{"batch_rows": 100, **options}
        )
        return table_from(batches)

    def compact(self, view: FeatureView, files: Sequence[Path]) -> list[Path]:
        """Write the rows of files again and return where they lie now."""
        return list(self.engine.log.compact(view, names(files), self.staging))

    # Joins and queries -----------------------------------------------------------------------------------------------

    def join(
        self, frame: pa.Table, views: Sequence[ViewJoin], *, time_column: str = "when", batch_rows: int = 1000
    ) -> Join:
        """Return the join of features to entity rows."""
        return self.engine.joins.join(frame, time_column, views, batch_rows=batch_rows)

    def joined(self, frame: pa.Table, views: Sequence[ViewJoin], **options: Any) -> pa.Table:
        """Join features to entity rows."""
        return self.join(frame, views, **options).batches().read_all()

    def joined_stored(self, frames: Sequence[pa.Table], views: Sequence[ViewJoin]) -> list[pa.Table]:
        """Store frames, join features to them where they lie, and return what came of each."""
        files = [self.write(f"frames/{number}.parquet", frame) for number, frame in enumerate(frames)]
        return [read_file(path) for path in self.engine.joins.join_stored(names(files), "when", views, self.staging)]

    def facts(self, frame: pa.Table, views: Sequence[ViewJoin], **options: Any) -> tuple[JoinFacts, ...]:
        """Return what the engine finds out about a join."""
        return self.join(frame, views, **options).facts()

    def query(
        self, sql: str, sources: Iterable[ParquetSource] = (), views: Iterable[tuple[FeatureView, Sequence[Path]]] = ()
    ) -> pa.Table:
        """Return the result of a SELECT over sources and views."""
        by_name = {view.name: (view, names(files)) for view, files in views}
        return self.engine.queries.query(sql, {source.name: source for source in sources}, by_name)

    def span(self, view: FeatureView, files: Sequence[Path], start_us: int, end_us: int) -> pa.Table:
        """Return a view's rows with event times in a span."""
        return self.engine.queries.span(view, names(files), start_us, end_us, batch_rows=3).read_all()

    def run_in_zones(self, script: str) -> list[list[str]]:
        """Run a script in processes of three time zones, which find this project as ``project``; return their lines."""
        opener: Any = self.open_engine
        code = IN_ZONES.replace("SCRIPT", indent(script, 8 * " ").strip())
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.root), opener.__module__, opener.__qualname__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [lines.splitlines() for lines in done.stdout.split("\0")[:-1]]


IN_ZONES = """\
import os, sys, time
from importlib import import_module
from pathlib import Path
from featurestore.testing.engine_project import *
root, module, name = sys.argv[1:]
for zone in ("UTC", "America/New_York", "Asia/Kolkata"):
    child = os.fork()
    if child == 0:  # the engine is imported in the zone: it may look at it then
        os.environ["TZ"] = zone
        time.tzset()
        project = EngineProject(Path(root), getattr(import_module(module), name))
        SCRIPT
        print(end="\\0")
        break
    if os.waitpid(child, 0)[1]:
        sys.exit(f"failed in {zone}")
"""


class EngineSuite:
    """What every suite of an engine begins with."""

    @pytest.fixture
    def project(self, open_engine: OpenEngine, tmp_path: Path) -> EngineProject:
        """Return an empty project."""
        return EngineProject(tmp_path, open_engine)


# Sources and views over them ------------------------------------------------------------------------------------------


def source_at(path: str, created: str | None = None, *, at: str = "at") -> ParquetSource:
    """Return the source ``flights``."""
    return ParquetSource("flights", path, at, created)


def view_of(
    path: str = "data.parquet",
    *,
    keys: Mapping[str, ValueType] | None = None,
    features: Mapping[str, ValueType] | None = None,
    created: str | None = None,
    sql: str | None = None,
) -> FeatureView:
    """Return a view over the source ``flights``, event time in ``at``; by default key ``k`` and feature ``v``."""
    return FeatureView(
        "profile",
        entities=[Entity("thing", join_keys=dict(keys or {"k": Int64}))],
        source=source_at(path, created),
        schema=[Field(name, kind) for name, kind in (features or {"v": Float64}).items()],
        sql=sql,
    )


def instants(*values: int | None, unit: str = "us", zone: str | None = "UTC") -> pa.Array:
    """Return timestamps of a unit, as counted since 1970."""
    return pa.array(values, pa.timestamp(unit, tz=zone))


def table_of(**columns: Any) -> pa.Table:
    """Return a table with key ``k``, time ``at`` and value ``v`` unless given: as many rows as the first column."""
    rows = len(next(iter(columns.values()))) if columns else 3
    made = {"k": pa.array(range(rows), pa.int64()), "at": instants(*range(rows)), "v": pa.array([1.5] * rows)}
    return pa.table({**made, **columns})


def write_parquet(path: Path, table: pa.Table, **options: Any) -> Path:
    """Write a table, creating folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def damage(path: Path, start: int, stop: int) -> None:
    """Overwrite bytes of a file."""
    content = bytearray(path.read_bytes())
    content[start:stop] = b"\xff" * (stop - start)
    path.write_bytes(content)


# Files of a view's log ------------------------------------------------------------------------------------------------


def log_view(
    name: str, keys: Mapping[str, ValueType], features: Mapping[str, ValueType], ttl_us: int | None = None
) -> FeatureView:
    """Return a view whose source is never read."""
    return FeatureView(
        name,
        entities=[Entity(f"{name}_entity", join_keys=dict(keys))],
        source=ParquetSource(
            f"{name}_source", path="unread.parquet", timestamp_field="at", created_timestamp_field="known_at"
        ),
        schema=[Field(feature, kind) for feature, kind in features.items()],
        ttl=None if ttl_us is None else timedelta(microseconds=ttl_us),
    )


def write_log(
    path: Path,
    view: FeatureView,
    rows: Sequence[ReferenceRow],
    *,
    types: Mapping[str, pa.DataType] | None = None,
    without: Iterable[str] = (),
    origin: str = "batch",
    row_group_size: int | None = None,
) -> Path:
    """Write rows as they come into one file; ``types`` narrows features, ``without`` leaves some out."""
    columns: dict[str, Any] = {
        key: pa.array([row.keys[place] for row in rows], arrow_type(kind))
        for place, (key, kind) in enumerate(view.join_keys.items())
    }
    columns[EVENT] = instants(*(row.event_us for row in rows))
    columns[CREATED] = instants(*(row.created_us for row in rows))
    columns[SEQUENCE] = pa.array([row.sequence for row in rows], pa.int64())
    columns[ORIGIN] = pa.array([origin] * len(rows), pa.string())
    for field in view.features:
        if field.name not in without:
            kind = (types or {}).get(field.name, arrow_type(field.type))
            columns[field.name] = pa.array([row.values.get(field.name) for row in rows], kind)
    return write_parquet(path, pa.table(columns), row_group_size=row_group_size)


def paths_of(staged: StagedRows) -> list[Path]:
    """Return the files that were staged."""
    return list(staged.paths)


def names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return files as the engine takes them."""
    return tuple(map(str, paths))


def read_file(path: Path) -> pa.Table:
    """Return what one file holds."""
    return pq.ParquetFile(path).read()


def read_log(paths: Iterable[Path]) -> pa.Table:
    """Return what files hold, in the order in which the rows arrived."""
    tables = [read_file(path) for path in paths]
    return pa.concat_tables(tables, promote_options="default").sort_by(SEQUENCE) if tables else pa.table({})


def table_from(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Return batches as one table, which without any has no columns."""
    found = list(batches)
    return pa.Table.from_batches(found) if found else pa.table({})


def in_microseconds(table: pa.Table) -> pa.Table:
    """Return a table with its instants as integers."""
    kinds = [pa.int64() if pa.types.is_timestamp(field.type) else field.type for field in table.schema]
    return table.cast(pa.schema(zip(table.schema.names, kinds, strict=True)))


def is_in_order(table: pa.Table) -> bool:
    """Tell whether the rows of a file lie by event time, created time and sequence number."""
    event, created = (table[name].cast(pa.int64()).to_pylist() for name in (EVENT, CREATED))
    known = [at if when is None else when for at, when in zip(event, created, strict=True)]
    orders = list(zip(event, known, table[SEQUENCE].to_pylist(), strict=True))
    return orders == sorted(orders)


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of several files in the table's order."""
    return sorted(rows, key=lambda row: (row[EVENT], row[CREATED] or row[EVENT], row[SEQUENCE]))
