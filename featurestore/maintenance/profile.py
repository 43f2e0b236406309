"""Profiles of views, before and after their rows are materialized, of files and of queries."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from featurestore_registry.lineage.columns import trace

from featurestore.definitions import (
    Definition,
    FeatureSelection,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    ParquetSource,
    PushSource,
)
from featurestore.definitions.sql import names_columns_by_values, read_tables
from featurestore.engine.interface import Span, StageRequest
from featurestore.errors import FeatureStoreError, InputError, NotFoundError, SourceFileError, did_you_mean
from featurestore.project.settings import make_settings, repo_folder
from featurestore.registered.snapshot import RegisteredView, Snapshot
from featurestore.request.select import is_sql, select
from featurestore.statistics.columns import Column, is_personal, of_view
from featurestore.statistics.profile import Profile, Profiles
from featurestore.statistics.profile import profile as profile_rows
from featurestore.tables import as_arrow, read_table
from featurestore.types import Bytes, String, ValueType
from featurestore.types.arrow import arrow_type, value_type_of
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT
from featurestore.workspace import Readers, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

_FILE = re.compile(r"[/\\*?\[]|\.parquet$")
_NOT_PARQUET = {".csv": "csv", ".json": "json", ".feather": "feather", ".orc": "orc", ".xlsx": "excel"}
"""Endings of files that pandas reads, and the name that it has for each."""


def profile(what: str | Path | Any) -> Profile:
    """Return what the columns of Parquet files or of a frame hold, drawn; no project is needed.

    ``what`` is a path, a folder or a pattern, or a table of pandas, polars or Arrow; a view, a service or a query needs
    `FeatureStore.profile`. Raises InputError, SourceError.
    """
    workspace = Workspace(repo_folder("."), make_settings({"project": "none"}))
    try:
        found = profile_alone(workspace, what, source=False)
        if found is not None:
            return found
        if isinstance(what, str) and is_there(what):
            return profile_file(workspace, what)
    finally:
        workspace.close()
    raise InputError(
        f"{what!r} is no path of Parquet files and no frame.",
        hint="Views, services, sources and queries are of a project: `FeatureStore(repo).profile(...)`.",
    )


def is_path(what: Any) -> bool:
    """Tell whether something can only mean files, by how it is written."""
    return isinstance(what, Path) or (isinstance(what, str) and not is_sql(what) and bool(_FILE.search(what)))


def profile_alone(workspace: Readers, what: Any, *, source: bool) -> Profile | None:
    """Profile files or a frame, of which no project knows; None for anything else."""
    if not (is_path(what) or not isinstance(what, str | Definition)):
        return None
    if source:
        shown = "a frame" if not isinstance(what, str | Path) else repr(str(what))
        raise InputError(f"Only a view or a service has a source, not {shown}.", hint="Leave `source` out.")
    return profile_file(workspace, str(what)) if isinstance(what, str | Path) else profile_frame(workspace, what)


def profile_named(
    workspace: Readers, what: str | FeatureView | FeatureService, snapshot: Snapshot, *, source: bool
) -> Profile | Profiles:
    """Profile a query, a view or a service of a snapshot, or a file; with ``source`` what a first run would bring.

    Raises NotFoundError with the closest name.
    """
    if isinstance(what, str) and is_sql(what):
        return profile_sql(workspace, what, snapshot)
    name = what.name if isinstance(what, FeatureView | FeatureService) else str(what)
    views = snapshot.views
    look = partial(profile_source if source else profile_log, workspace)
    if name in views and not isinstance(what, FeatureService):
        return look(views[name])
    services = {found.name: found for found in snapshot.services.values()}
    if name in services and not isinstance(what, FeatureView):
        read = dict.fromkeys(found for found in _views(services[name]))
        return Profiles(look(views[each]) for each in read)
    if is_there(name):
        if source:
            raise InputError(
                f"{name!r} is a file, and only a view or a service has a source.", hint="Leave `source` out."
            )
        return profile_file(workspace, name)
    others = {found.name: found for found in (*workspace.code, *snapshot.definitions.values())}
    if isinstance(other := others.get(name), ParquetSource | PushSource):
        return _profile_files(workspace, name, other.batch_source)
    raise _not_to_profile(name, other, [*views, *services])


def is_there(name: str) -> bool:
    """Tell whether a file or a folder has this name."""
    return bool(name) and os.path.exists(name)  # noqa: PTH110 - a path raises for a name that is too long


def _not_to_profile(name: str, other: Definition | None, known: Sequence[str]) -> FeatureStoreError:
    """Return the error for what no columns are stored of."""
    if isinstance(other, FeatureView | FeatureService):
        hint = f"Run `fs apply`, or profile what its sources hold: `fs profile {name} --source`."
        return NotFoundError(f"{name!r} is not applied yet.", hint=hint, name=name)
    if isinstance(other, OnDemandFeatureView):
        hint = "Profile a training set that has them: `.profile()`."
        return InputError(f"{name!r} computes its features when they are asked for: nothing holds them.", hint=hint)
    if other is not None:
        hint = "Pass a feature view, a service, a source, a path of a Parquet file, or a SELECT."
        return InputError(f"{name!r} is of kind {other.kind}, which has no rows.", hint=hint)
    return NotFoundError(
        f"There is no feature view, service or file {name!r}.",
        hint=did_you_mean(name, known) or "Pass a name, a path of a Parquet file, or a SELECT.",
        name=name,
    )


def _views(service: FeatureService) -> Iterator[str]:
    """Yield the names of the feature views that a service reads."""
    for feature in service.features:
        inputs = feature.inputs if isinstance(feature, OnDemandFeatureView) else [feature]
        yield from (each.view.name for each in inputs if isinstance(each, FeatureSelection))


def profile_log(workspace: Readers, registered: RegisteredView) -> Profile:
    """Profile every row version in a view's table; raises InputError while it has none."""
    version = workspace.offline.current(registered.table)
    name = registered.view.name
    if version is None or not version.rows:
        raise InputError(
            f"Nothing of view {name!r} is materialized yet.",
            hint=f"Run `fs materialize --view {name}`, or profile its source: `fs profile {name} --source`.",
        )
    workspace.offline.verify(version.files)
    return profile_rows(workspace.engine, name, [file.path for file in version.files], of_view(registered.view))


def profile_source(workspace: Readers, registered: RegisteredView) -> Profile:
    """Profile the rows that a first run of a view would bring."""
    view = registered.view
    with TemporaryDirectory(prefix="featurestore-") as folder:
        request = StageRequest(
            view=view,
            spans=(Span(MIN_INSTANT, MAX_INSTANT),),
            now_us=workspace.clock(),
            log_files=(),
            first_sequence=0,
            folder=Path(folder),
        )
        staged = workspace.engine.log.stage(request)
        return profile_rows(workspace.engine, f"the source of {view.name}", [*map(str, staged.paths)], of_view(view))


def profile_frame(workspace: Readers, frame: Any) -> Profile:
    """Profile a table of pandas, polars, Arrow or Python; raises InputError for anything else."""
    import pyarrow as pa

    columns = dict[str, pa.Array | pa.ChunkedArray]()
    for name, values in read_table(frame, "what").columns.items():
        try:
            columns[str(name)] = as_arrow(values)
        except ValueError as error:
            raise InputError(f"Column {str(name)!r} of the frame mixes types: {error}.") from None
    return _profile_table(workspace, "the frame", pa.table(columns))


def profile_file(workspace: Readers, path: str) -> Profile:
    """Profile a Parquet file, a folder or a pattern of them; raises SourceFileError."""
    reader = _NOT_PARQUET.get(Path(path).suffix.lower())
    if reader is not None and not Path(path).is_dir():
        raise SourceFileError(
            f"{path} is not a Parquet file.",
            hint=f"Write it as one, or pass a frame in Python: `store.profile(pandas.read_{reader}({path!r}))`.",
        )
    try:
        return _profile_files(workspace, path, ParquetSource("file", str(Path(path).absolute()), "event_timestamp"))
    except SourceFileError as error:  # which speaks of a source: nobody declared one
        if error.details.get("source"):
            raise SourceFileError(
                f"{path} matches no Parquet file.", hint="Check the path; relative paths start here.", path=path
            ) from None
        hint = "Write it as a Parquet file, or pass others; in Python a frame, too: `store.profile(frame)`."
        raise SourceFileError(error.message, hint=hint, path=path) from None


def _profile_files(workspace: Readers, name: str, source: ParquetSource) -> Profile:
    columns = workspace.engine.sources.columns(source)
    known, unknown = _columns({c.name: c.value_type for c in columns}, {c.name: c.native_type for c in columns})
    return profile_rows(workspace.engine, name, source, known, left_out=unknown)


def profile_sql(workspace: Readers, sql: str, snapshot: Snapshot) -> Profile:
    """Profile the result of a SELECT over sources and views, as an entity frame takes it; raises EntityFrameError.

    What it makes of a view's personal fields is hidden as they are. A name that it gives twice gets a number.
    """
    table = select(sql, workspace, snapshot, "the profile")
    table = table.rename_columns(_told_apart(table.column_names))
    read = [snapshot.views[name].view for name in read_tables(sql) if name in snapshot.views]
    personal = {(view.name, field.name.lower()) for view in read for field in view.stored if is_personal(field)}
    hidden = set[str]()
    if personal:
        known = tuple((view.name, frozenset(field.name.lower() for field in view.stored)) for view in read)
        traced = trace(sql, known, tuple(table.column_names)).columns
        among = {view for view, _ in personal}
        for name, origins in traced.items():
            if any(
                (o.source, o.column.lower()) in personal or (o.column == "*" and o.source in among) for o in origins
            ):
                hidden.add(name)
        if hidden and names_columns_by_values(sql):
            raise InputError(
                f"PIVOT makes names of columns of values, and the query reads {_listed(personal)}, tagged personal.",
                hint="Group by the column instead: `SELECT column, count(*) FROM view GROUP BY column`.",
            )
    return _profile_table(workspace, "the query", table, hidden)


def _told_apart(names: Sequence[str]) -> list[str]:
    """Return names of which no two differ only in case: a later one gets a number, as DuckDB does it in a subquery."""
    taken, made, seen = {name.lower() for name in names}, list[str](), set[str]()
    for name in names:
        found = name
        if name.lower() in seen:
            found = next(each for number in count(1) if (each := f"{name}_{number}").lower() not in taken)
        taken.add(found.lower())
        seen.add(found.lower())
        made.append(found)
    return made


def _listed(fields: Collection[tuple[str, str]]) -> str:
    return ", ".join(sorted(f"{view}:{field}" for view, field in fields))


def _profile_table(workspace: Readers, name: str, table: pa.Table, hidden: Collection[str] = ()) -> Profile:
    kinds = {field.name: value_type_of(field.type) for field in table.schema}
    known, unknown = _columns(kinds, {field.name: str(field.type) for field in table.schema})
    columns = [replace(column, is_hidden=column.name in hidden) for column in known]
    for at, field in enumerate(table.schema):
        table = table.set_column(at, field.name, _decoded(table.column(at), kinds[field.name]))
    return profile_rows(workspace.engine, name, table, columns, left_out=unknown)


def _decoded(column: pa.ChunkedArray, kind: ValueType | None) -> pa.ChunkedArray:
    """Return a column without a dictionary (pandas' category, DuckDB's enum), texts and bytes as Arrow counts them."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind is None or kind not in (String, Bytes) or column.type in (pa.string(), pa.large_string()):
        return column
    return column.cast(arrow_type(kind))


def _columns(
    kinds: Mapping[str, ValueType | None], natives: Mapping[str, str]
) -> tuple[Sequence[Column], dict[str, str]]:
    known = [Column(name, kind) for name, kind in kinds.items() if kind is not None]
    return known, {name: natives[name] for name, kind in kinds.items() if kind is None}
