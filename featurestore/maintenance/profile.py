"""Profiles of views, before and after their rows are materialized, of files and of queries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from featurestore.definitions import (
    Definition,
    FeatureSelection,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    ParquetSource,
    PushSource,
)
from featurestore.engine.interface import Span, StageRequest
from featurestore.errors import FeatureStoreError, InputError, NotFoundError, did_you_mean
from featurestore.registered.snapshot import RegisteredView, Snapshot
from featurestore.request.select import is_sql, select
from featurestore.statistics.columns import Column, of_view
from featurestore.statistics.profile import Profile, Profiles, profile
from featurestore.types import ValueType
from featurestore.types.arrow import value_type_of
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT
from featurestore.workspace import Readers

_FILE = re.compile(r"[/\\*?\[]|\.parquet$")


def profile_named(
    workspace: Readers, what: str | Path | FeatureView | FeatureService, snapshot: Snapshot, *, source: bool
) -> Profile | Profiles:
    """Profile a query, a view or a service of a snapshot, or files; with ``source`` what a first run would bring.

    Raises NotFoundError with the closest name.
    """
    if isinstance(what, str) and is_sql(what):
        return profile_sql(workspace, what, snapshot)
    name = what.name if isinstance(what, FeatureView | FeatureService) else str(what)
    views = snapshot.views
    look = partial(profile_source if source else profile_log, workspace)
    if name in views and not isinstance(what, Path | FeatureService):
        return look(views[name])
    services = {found.name: found for found in snapshot.services.values()}
    if name in services and not isinstance(what, Path | FeatureView):
        read = dict.fromkeys(found for found in _views(services[name]))
        return Profiles(look(views[each]) for each in read)
    if isinstance(what, Path) or _FILE.search(name) or Path(name).exists():
        return profile_file(workspace, name)
    others = {found.name: found for found in (*workspace.code, *snapshot.definitions.values())}
    if isinstance(other := others.get(name), ParquetSource | PushSource):
        return _profile_files(workspace, name, other.batch_source)
    raise _not_to_profile(name, other, [*views, *services])


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
    return profile(workspace.engine, name, [file.path for file in version.files], of_view(registered.view))


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
        return profile(workspace.engine, f"the source of {view.name}", [*map(str, staged.paths)], of_view(view))


def profile_file(workspace: Readers, path: str) -> Profile:
    """Profile a Parquet file, a folder or a pattern of them; raises SourceFileError."""
    return _profile_files(workspace, path, ParquetSource("file", str(Path(path).absolute()), "event_timestamp"))


def _profile_files(workspace: Readers, name: str, source: ParquetSource) -> Profile:
    columns = workspace.engine.sources.columns(source)
    known, unknown = _columns({c.name: c.value_type for c in columns}, {c.name: c.native_type for c in columns})
    return profile(workspace.engine, name, source, known, left_out=unknown)


def profile_sql(workspace: Readers, sql: str, snapshot: Snapshot) -> Profile:
    """Profile the result of a SELECT over sources and views, as an entity frame takes it; raises EntityFrameError."""
    table = select(sql, workspace, snapshot, "the profile")
    kinds = {field.name: value_type_of(field.type) for field in table.schema}
    known, unknown = _columns(kinds, {field.name: str(field.type) for field in table.schema})
    return profile(workspace.engine, "the query", table, known, left_out=unknown)


def _columns(
    kinds: Mapping[str, ValueType | None], natives: Mapping[str, str]
) -> tuple[Sequence[Column], dict[str, str]]:
    known = [Column(name, kind) for name, kind in kinds.items() if kind is not None]
    return known, {name: natives[name] for name, kind in kinds.items() if kind is None}
