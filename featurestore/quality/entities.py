"""The entities of served rows: plain keys as they are, hashed ones looked up among the keys that views hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.errors import SettingsError
from featurestore.offline.reading import opened
from featurestore.request.features import FeatureRequest
from featurestore.served.keep import KEYS_HINT, secret_of
from featurestore.served.shape import KEY, KEY_ID, key_id
from featurestore.statistics.sets import hashed
from featurestore.types.arrow import arrow_type
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa


def entity_columns(
    workspace: Readers, request: FeatureRequest, rows: pa.Table, *, also: Sequence[FeatureRequest] = ()
) -> dict[str, pa.Array]:
    """Return the join keys of served rows by column, in their types; null for an entity that no view's log holds.

    Hashed ones are looked up in the views of the request, and of ``also``. Raises SettingsError where keys are hashed
    with another secret than the settings have.
    """
    import pyarrow.compute as pc

    own = key_id(secret_of(workspace))
    ids = set(pc.unique(rows.column(KEY_ID)).to_pylist())
    if ids - {"", own}:
        raise SettingsError(
            "Join keys in the served log are hashed with another secret than the settings have.",
            hint=KEYS_HINT.replace("a long random text", "the one that the servers had then"),
            key="served.secret",
        )
    found = {}
    for name, types in request.key_types.items():
        column = rows.column(KEY + name).combine_chunks()
        found[name] = (
            column.cast(arrow_type(types[0])) if ids <= {""} else looked_up(workspace, [request, *also], name, column)
        )
    return found


def looked_up(workspace: Readers, requests: Sequence[FeatureRequest], name: str, hashes: pa.Array) -> pa.Array:
    """Return the keys that hashes stand for, by the settings' secret; null where no view's log holds one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = requests[0].key_types[name][0]
    values: dict[Any, None] = {}
    for table, key in _keys_of(workspace, requests, name):
        values |= dict.fromkeys(pc.unique(table.column(key)).drop_null().to_pylist())
    known = list(values)
    places = pc.index_in(hashes, value_set=pa.array(hashed(known, kind, secret_of(workspace)), pa.string()))
    return pa.array(known, arrow_type(kind)).take(places)


def _keys_of(workspace: Readers, requests: Sequence[FeatureRequest], name: str) -> Iterator[tuple[pa.Table, str]]:
    """Yield the columns of join keys of every view that is read by a column."""
    seen = set[tuple[str, str]]()
    for read in (read for request in requests for read in request.reads):
        for key, column in read.key_columns:
            if column != name or (read.view.name, key) in seen:
                continue
            seen.add((read.view.name, key))
            version = workspace.offline.current(read.registered.table)
            for file in () if version is None else version.files:
                with opened(workspace.offline, file) as parquet:
                    yield parquet.read(columns=[key]), key
