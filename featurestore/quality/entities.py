"""The entities of served rows: plain keys as they are, hashed ones looked up among the keys that views hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.errors import SettingsError
from featurestore.offline.reading import opened
from featurestore.request.features import FeatureRequest
from featurestore.served.hashing import EARLIER_HINT, LogKey, keys_of
from featurestore.served.shape import KEY, KEY_ID
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

    keys, ids = keys_of(workspace), pc.unique(rows.column(KEY_ID)).to_pylist()
    known = {each: key for each in ids if (key := keys.of(each)) is not None}
    if lost := sorted({*ids} - known.keys()):
        raise SettingsError(
            f"Join keys in the served log are hashed with another secret (key_id {', '.join(lost)}) than the settings "
            "have.",
            hint=EARLIER_HINT,
            key="served.earlier_secrets",
        )
    found, by = {}, rows.column(KEY_ID).combine_chunks()
    for name, types in request.key_types.items():
        column = rows.column(KEY + name).combine_chunks()
        values = pc.if_else(pc.equal(by, ""), column, None).cast(arrow_type(types[0]))
        for each in filter(None, ids):
            is_its = pc.equal(by, each)
            hashes = pc.if_else(is_its, column, None)
            values = pc.if_else(is_its, looked_up(workspace, [request, *also], name, hashes, known[each]), values)
        found[name] = values
    return found


def looked_up(
    workspace: Readers, requests: Sequence[FeatureRequest], name: str, hashes: pa.Array, by: LogKey
) -> pa.Array:
    """Return the keys that hashes stand for; null where no view's log holds one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = requests[0].key_types[name][0]
    values: dict[Any, None] = {}
    for table, key in _keys_of(workspace, requests, name):
        values |= dict.fromkeys(pc.unique(table.column(key)).drop_null().to_pylist())
    known = list(values)
    places = pc.index_in(hashes, value_set=pa.array(by.hashes(name, known, kind), pa.string()))
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
