"""The rows that drift compares: of the served log, of a saved training set, of a view's log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from featurestore_registry.documents import BinsDocument, ColumnStatistics

from featurestore.definitions import FeatureService
from featurestore.errors import TrainingSetError
from featurestore.ledger.saved_sets import read_set
from featurestore.ledger.statistics import read_edges
from featurestore.quality.observed import SEVERAL, Int64s, Observed, ObservedFeature, numbered
from featurestore.registered.snapshot import RegisteredView
from featurestore.request.features import FeatureRequest, OutputColumn, ViewRead, resolve
from featurestore.served.keep import read_served
from featurestore.served.shape import (
    AT,
    CODE,
    EVENT,
    GENERATION,
    KEY,
    KEY_ID,
    REQUEST,
    STATUS,
    VALUE,
    named_outputs,
    view_column,
)
from featurestore.statistics.columns import is_personal
from featurestore.statistics.sets import SALT, TIMES, SetColumn, statistics_of_set, thinned
from featurestore.training.profiling import columns_of, read_sample
from featurestore.types.arrow import arrow_type, one_array
from featurestore.types.columns import EVENT as EVENT_TS
from featurestore.types.times import to_second
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 1_000_000
"""Of more rows a sample is compared."""
BATCH_ROWS = 100_000


def request_of(workspace: Readers, service: str) -> FeatureRequest:
    """Return what a service reads, by full names; raises NotFoundError."""
    snapshot = workspace.snapshot()
    return resolve(snapshot, snapshot.get(FeatureService, service), full_feature_names=True)


def served(workspace: Readers, service: str, start_us: int, end_us: int) -> Observed:
    """Return what was served for a service in [start, end). Raises as `read_served`."""
    import pyarrow as pa

    request = request_of(workspace, service)
    rows = read_served(workspace, service, start_us, end_us, most=MOST_ROWS)
    at_us: Int64s = rows.column(AT).cast(pa.int64()).to_numpy()
    owners = _Owners(request, rows, KEY)
    made = {read.name: _only(rows, view_column(read, GENERATION)) for read in request.reads}
    code, bins = _only(rows, CODE), _Bins(workspace)
    features = {}
    outputs = zip(named_outputs(request).items(), columns_of(request), strict=True)
    for (name, output), column in outputs:
        if VALUE + name not in rows.column_names:
            continue  # personal
        made_by = code
        if output.read is not None:
            generation, view = made[request.reads[output.read].name], column.key.rpartition(".")[0]
            made_by = SEVERAL if generation == SEVERAL else f"{view}.{generation}"
        features[name] = ObservedFeature(
            name,
            output.field.type,
            one_array(rows.column(VALUE + name)).cast(arrow_type(output.field.type)),
            owners.of(output),
            made_by,
            one_array(rows.column(STATUS + name)),
            _inputs(request, output),
            bins.of(column.key, column.feature),
        )
    ages = {}
    for read in request.reads:
        event_us = rows.column(view_column(read, EVENT)).cast(pa.int64()).cast(pa.float64())
        ages[read.name] = at_us - event_us.to_numpy()
    more = {name: one_array(rows.column(name)) for name in rows.column_names if name.startswith(REQUEST)}
    keys = {name: one_array(rows.column(KEY + name)) for name in request.key_types}
    what = _what(f"what {service} served", start_us, end_us)
    return Observed("served", what, at_us, features, owners.found, ages, more, keys, _only(rows, KEY_ID))


def training(workspace: Readers, service: str, name: str) -> Observed:
    """Return the sampled rows of a saved training set, by the features of a service.

    Raises NotFoundError, and TrainingSetError where no rows were kept with the set.
    """
    import pyarrow as pa

    saved = read_set(workspace.ledger, workspace.project, name)
    rows, document = read_sample(workspace, saved), statistics_of_set(workspace, name)
    if document is None:
        raise TrainingSetError(
            f"Training set {name!r} has no statistics.", hint="Save it again under its name.", name=name
        )
    request, bins = request_of(workspace, service), _Bins(workspace)
    counted = {column.name for column in document.columns}
    keys = [each for each in rows.column_names if each not in counted and each != TIMES]
    owners = _Owners(request, rows, "", default=keys)
    features = {}
    for (called, output), column in zip(named_outputs(request).items(), columns_of(request), strict=True):
        found = _of_set(document.columns, column, output)
        if found is None or found.name not in rows.column_names:
            continue
        made_by = document.code_hash if output.read is None else found.feature.partition(":")[0]
        values = one_array(rows.column(found.name)).cast(arrow_type(output.field.type))
        features[called] = ObservedFeature(
            called,
            output.field.type,
            values,
            owners.of(output),
            made_by,
            bins=bins.of(column.key, column.feature),
        )
    at_us: Int64s = rows.column(TIMES).cast(pa.int64()).to_numpy()
    own, salt = {each: one_array(rows.column(each)) for each in keys}, (rows.schema.metadata or {}).get(SALT, b"")
    return Observed("training", f"training set {name!r}", at_us, features, owners.found, keys=own, hashes=salt.decode())


def batch(workspace: Readers, registered: RegisteredView, start_us: int, end_us: int) -> Observed:
    """Return the rows of a view with event times in [start, end), each with its last correction."""
    import pyarrow as pa

    view, version = registered.view, workspace.offline.current(registered.table)
    files = [] if version is None else [file.path for file in version.files]
    fields = [field for field in view.stored if not is_personal(field)]
    kinds = {**view.join_keys, **{field.name: field.type for field in fields}}
    schema = pa.schema([(EVENT_TS, pa.timestamp("us", "UTC")), *((n, arrow_type(kind)) for n, kind in kinds.items())])
    parts: Iterable[pa.Table] = ()
    if files:
        read = workspace.engine.queries.span(view, files, start_us, end_us, batch_rows=BATCH_ROWS)
        parts = (pa.table({name: found.column(name) for name in schema.names}, schema) for found in read)
    rows = pa.concat_tables([schema.empty_table(), *thinned(parts, MOST_ROWS)])
    bins, owner = _Bins(workspace), ", ".join(view.join_keys)
    features = {
        field.name: ObservedFeature(
            field.name,
            field.type,
            one_array(rows.column(field.name)),
            owner,
            registered.ledger_key,
            bins=bins.of(registered.ledger_key, field.name),
        )
        for field in fields
    }
    entities = {owner: numbered([rows.column(name) for name in view.join_keys])}
    at_us: Int64s = rows.column(EVENT_TS).cast(pa.int64()).to_numpy()
    what, keys = (
        _what(f"the rows of {view.name}", start_us, end_us),
        {n: one_array(rows.column(n)) for n in view.join_keys},
    )
    return Observed("batch", what, at_us, features, entities, keys=keys)


class _Owners:
    """Numbers of entities by the join keys that views read, of columns of one table."""

    def __init__(self, request: FeatureRequest, rows: pa.Table, prefix: str, default: Iterable[str] = ()) -> None:
        self._request, self._rows, self._prefix, self._default = request, rows, prefix, tuple(default)
        self.found: dict[str, Int64s] = {}

    def of(self, output: OutputColumn) -> str:
        """Return the name of a feature's join keys in ``found``."""
        if output.read is not None:
            reads: Iterator[ViewRead] = iter([self._request.reads[output.read]])
        else:
            assert output.on_demand is not None
            inputs = self._request.on_demand[output.on_demand].inputs
            reads = (self._request.reads[each.read] for each in inputs if each.read is not None)
        names = tuple(dict.fromkeys(column for read in reads for _, column in read.key_columns))
        if not names or not {self._prefix + name for name in names} <= {*self._rows.column_names}:
            names = self._default or tuple(self._request.key_types)
        called = ", ".join(names)
        if called not in self.found:
            columns = [self._rows.column(self._prefix + name) for name in names]
            rows = self._rows.num_rows
            self.found[called] = numbered(columns) if columns else np.arange(rows, dtype=np.int64)
        return called


class _Bins:
    """The bins of features, each view's read once."""

    def __init__(self, workspace: Readers) -> None:
        self._workspace = workspace
        self._known: dict[str, Mapping[str, BinsDocument]] = {}

    def of(self, key: str, feature: str) -> BinsDocument | None:
        if key not in self._known:
            self._known[key] = read_edges(self._workspace.ledger, self._workspace.project, key)[0].columns
        return self._known[key].get(feature)


def _inputs(request: FeatureRequest, output: OutputColumn) -> tuple[str, ...]:
    """Return the features of a request that an on-demand feature is made of, as they are called there."""
    if output.on_demand is None:
        return ()
    taken = {(each.read, each.field.name) for each in request.on_demand[output.on_demand].inputs}
    named = named_outputs(request).items()
    return tuple(name for name, each in named if each.read is not None and (each.read, each.field.name) in taken)


def _only(rows: pa.Table, column: str) -> str:
    """Return the one value of a column as text; `SEVERAL` where there are more."""
    import pyarrow.compute as pc

    found = pc.unique(rows.column(column)).to_pylist()
    return SEVERAL if len(found) > 1 else str(found[0]) if found else ""


def _of_set(columns: Iterable[ColumnStatistics], wanted: SetColumn, output: OutputColumn) -> ColumnStatistics | None:
    """Return a set's column of a feature, also of another generation; by its name where a view is read twice."""
    view = wanted.key.rpartition(".")[0]
    found = [
        each
        for each in columns
        if (each.feature.partition(":")[0].rpartition(".")[0], each.feature.partition(":")[2]) == (view, wanted.feature)
    ]
    named = [each for each in found if each.name in (output.name, output.field.name)]
    return next(iter(named or found), None)


def _what(of: str, start_us: int, end_us: int) -> str:
    return f"{of} from {to_second(start_us)} to {to_second(end_us)}"
