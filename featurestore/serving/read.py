"""In-process online reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from featurestore.errors import EntityKeyError
from featurestore.online.records.reading import FetchValue
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeaturesArgument, resolve
from featurestore.serving.compiled import Answer, CompiledRequest, Query
from featurestore.statuses import Status
from featurestore.tables import as_list, html_columns, import_polars, library_type, read_table, without_null_nan
from featurestore.types.times import to_datetime
from featurestore.types.values import ValueType, coerce, from_library
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

_MOST_SHAPES = 256


class OnlineResponse:
    """The newest values of some entities, in the order asked; the caller's own columns come first."""

    def __init__(
        self,
        compiled: CompiledRequest,
        own: Mapping[str, list[Any]],
        query: Query,
        records: Sequence[bytes | None],
        now_us: int,
    ) -> None:
        self._compiled = compiled
        self._own = own
        self._read = query, records, now_us
        self._rows = rows = compiled.fresh_rows(query, records, now_us)
        """The values, if the short way has them: statuses and event times are computed when somebody asks for them."""
        if rows is None or (compiled.has_defaults and any(None in row for row in rows)):
            self._rows, self._answer = None, compiled.answer(query, records, now_us)

    @cached_property
    def _answer(self) -> Answer:
        return self._compiled.answer(*self._read)

    def _columns(self) -> list[list[Any]]:
        return self._answer.columns() if self._rows is None else list(map(list, zip(*self._rows, strict=True)))

    @property
    def names(self) -> tuple[str, ...]:
        """The feature columns in the order asked."""
        return self._compiled.names

    @property
    def statuses(self) -> dict[str, list[Status]]:
        """What each value is, by feature column."""
        return dict(zip(self.names, self._answer.status_columns(), strict=True))

    @property
    def event_timestamps(self) -> dict[str, list[Any]]:
        """The event time of each row's values by view, as an aware datetime; None where nothing was found."""
        return {
            alias: [None if instant is None else to_datetime(instant) for instant in instants]
            for alias, instants in self._answer.event_us().items()
        }

    def to_dict(self, include_status: bool = False, include_event_timestamps: bool = False) -> dict[str, list[Any]]:
        """Return lists by column: the entity rows' own columns, then the features.

        ``include_status`` adds ``{feature}__status`` (PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE), and
        ``include_event_timestamps`` ``{view}__event_timestamp``.
        """
        own = {name: values.copy() for name, values in self._own.items()}
        columns = {**own, **dict(zip(self.names, self._columns(), strict=True))}
        if include_status:
            columns |= {f"{name}__status": [s.name for s in found] for name, found in self.statuses.items()}
        if include_event_timestamps:
            columns |= {f"{alias}__event_timestamp": found for alias, found in self.event_timestamps.items()}
        return columns

    def to_arrow(self) -> pa.Table:
        """Return a table; keys and features have their declared types, your other columns the type that Arrow infers.

        Raises InputError for a column of yours that mixes types.
        """
        import pyarrow as pa

        from featurestore.request.conversion import inferred_column
        from featurestore.types.arrow import column_from_values

        request = self._compiled.request
        types = {name: kinds[0] for name, kinds in request.key_types.items()}
        types |= {name: found.type for name, found in request.request_fields.items()}
        columns = {}
        for name, values in self._own.items():
            if name in types:
                columns[name] = column_from_values([_key_value(types[name], value) for value in values], types[name])
            else:
                columns[name] = inferred_column(values, name=name)
        for output, values in zip(request.outputs, self._columns(), strict=True):
            columns[output.name] = column_from_values(values, output.field.type)
        return pa.table(columns)

    def to_pandas(self) -> pd.DataFrame:
        """Return a frame, with dtypes as `TrainingSet.to_pandas`."""
        from featurestore.request.conversion import to_frame

        return to_frame(self.to_arrow())

    to_df = to_pandas

    def to_polars(self) -> pl.DataFrame:
        """Return a polars frame, with types as `to_arrow`; raises InputError where polars is not installed."""
        return import_polars().DataFrame(self.to_arrow())

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return `to_arrow` as a stream, so that any library that reads Arrow streams takes an answer as a table."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return self._read[0].rows

    def __repr__(self) -> str:
        return f"OnlineResponse({len(self)} rows, {len(self.names)} features)"

    def _repr_html_(self) -> str:
        return html_columns(self.to_dict(), len(self))


def get_online_features(
    workspace: Readers,
    features: FeaturesArgument,
    entity_rows: Any,
    *,
    full_feature_names: bool = False,
) -> OnlineResponse:
    """Read the newest values of some entities from the online store, each with a true status.

    ``entity_rows`` is any table (see `tables.read_table`) with join keys and request data. Raises EntityKeyError
    naming key, value and row, NotFoundError, OutputNameClashError, CodeMismatchError, InputError,
    OnlineStoreUnavailableError.
    """
    shapes = _by_workspace.get(workspace) or _by_workspace.setdefault(workspace, _Compiled())
    compiled = shapes.compile(workspace, features, full_feature_names)
    table = read_table(entity_rows, "entity_rows", row_error=EntityKeyError)
    own = {name: from_library(as_list(values), library_type(values)) for name, values in table.columns.items()}
    if not table.has_names:  # no rows: no answers
        own = {name: [] for name in (*compiled.request.key_types, *compiled.request.request_fields)}
    if not compiled.lower_names.isdisjoint([str(name).lower() for name in own]):
        compiled.request.check_own_columns(own)
    data = {
        name: without_null_nan(table.columns[name], own[name])
        for name in compiled.request.request_fields
        if name in table.columns
    }
    query = compiled.query({**own, **data})
    return OnlineResponse(compiled, own, query, workspace.online.mget(query.keys), workspace.clock())


class _Compiled:
    """Compiled shapes of one snapshot, by what was asked for. Threads share them."""

    def __init__(self) -> None:
        # Replaced as a whole, never cleared: another thread may be about to take a request from it.
        self._kept: tuple[Snapshot | None, dict[Any, tuple[Any, CompiledRequest]]] = (None, {})

    def compile(self, workspace: Readers, features: FeaturesArgument, full_names: bool) -> CompiledRequest:
        snapshot = workspace.recent_snapshot()
        known, shapes = self._kept
        if snapshot is not known or len(shapes) >= _MOST_SHAPES:
            self._kept = snapshot, shapes = snapshot, {}
        shape = (_shape(features), full_names)
        found = shapes.get(shape)
        if found is None:
            request = resolve(snapshot, features, full_feature_names=full_names)
            compiled = CompiledRequest(snapshot, request, fetch=_fetch_from(ref(workspace)))
            # It keeps the objects alive: otherwise another object could get the id that the shape holds.
            found = shapes[shape] = (
                tuple(features) if isinstance(features, list | tuple) else features,
                compiled,
            )
        return found[1]


_by_workspace: WeakKeyDictionary[Readers, _Compiled] = WeakKeyDictionary()


def _fetch_from(weak: ref[Readers]) -> FetchValue:
    """Return a function that looks up one key without keeping the workspace alive."""

    def fetch(key: bytes) -> bytes | None:
        workspace = weak()
        assert workspace is not None
        return workspace.online.mget([key])[0]

    return fetch


def _shape(features: Any) -> Any:
    if isinstance(features, list | tuple):
        if set(map(type, features)) == {str}:
            return tuple(features)
        return tuple(feature if isinstance(feature, str) else id(feature) for feature in features)
    return features if isinstance(features, str) else id(features)


def _key_value(value_type: ValueType, value: Any) -> Any:
    is_missing = isinstance(value, float) and math.isnan(value)
    return None if is_missing else coerce(value_type, value)
