"""The entities of served rows: plain keys as they are, hashed ones looked up among the keys that views hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.errors import SettingsError
from featurestore.offline.interface import DataFile
from featurestore.offline.reading import opened
from featurestore.request.features import FeatureRequest, ViewRead
from featurestore.served.hashing import EARLIER_HINT, LogKey, keys_of
from featurestore.served.shape import KEY, KEY_ID
from featurestore.types.arrow import arrow_type
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

Files = Callable[[ViewRead], Iterable[DataFile]]
"""The files of a read in which keys are looked up."""


def of_known_keys(workspace: Readers, rows: pa.Table) -> pa.Table:
    """Return the rows whose keys are plain, or hashed with a secret that the settings have.

    Raises SettingsError where no row has such keys, but some have others.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lost = _lost_ids(workspace, rows)
    if not lost:
        return rows
    found = rows.filter(pc.invert(pc.is_in(rows.column(KEY_ID), value_set=pa.array(lost, pa.string()))))
    if not found.num_rows:
        raise _other_secret(lost)
    return found


def entity_columns(
    workspace: Readers,
    request: FeatureRequest,
    rows: pa.Table,
    *,
    also: Sequence[FeatureRequest] = (),
    files: Files | None = None,
) -> dict[str, pa.Array]:
    """Return the join keys of served rows by column, in their types, row by row as they are or looked up.

    Hashed ones are looked up in the views of the request, and of ``also``: null for an entity that no file holds, and
    where the log lacks the key. Raises SettingsError where a row is hashed with a secret that the settings do not have.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if lost := _lost_ids(workspace, rows):
        raise _other_secret(lost)
    keys, by = keys_of(workspace), rows.column(KEY_ID).combine_chunks()
    known = {each: key for each in pc.unique(by).to_pylist() if each and (key := keys.of(each)) is not None}
    found = {}
    for name, types in request.key_types.items():
        kind = arrow_type(types[0])
        if KEY + name not in rows.column_names:
            found[name] = pa.nulls(rows.num_rows, kind)
            continue
        column = rows.column(KEY + name).combine_chunks()
        values = (pc.if_else(pc.equal(by, ""), column, None) if known else column).cast(kind)
        for each, key in known.items():
            is_its = pc.equal(by, each)
            hashes = pc.if_else(is_its, column, None)
            looked = looked_up(workspace, [request, *also], name, hashes, key, files)
            values = pc.if_else(is_its, looked, values)
        found[name] = values
    return found


def _lost_ids(workspace: Readers, rows: pa.Table) -> list[str]:
    import pyarrow.compute as pc

    keys = keys_of(workspace)
    return sorted(each for each in pc.unique(rows.column(KEY_ID)).to_pylist() if keys.of(each) is None)


def _other_secret(lost: Sequence[str]) -> SettingsError:
    return SettingsError(
        f"Join keys in the served log are hashed with another secret (key_id {', '.join(lost)}) than the settings "
        "have.",
        hint=EARLIER_HINT,
        key="served.earlier_secrets",
    )


def looked_up(
    workspace: Readers,
    requests: Sequence[FeatureRequest],
    name: str,
    hashes: pa.Array,
    by: LogKey,
    files: Files | None = None,
) -> pa.Array:
    """Return the keys that hashes stand for; null where no file of a view holds one.

    Without ``files`` those of the newest versions are read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = requests[0].key_types[name][0]
    values: dict[Any, None] = {}
    for table, key in _keys_of(workspace, requests, name, files or _newest(workspace)):
        values |= dict.fromkeys(pc.unique(table.column(key)).drop_null().to_pylist())
    known = list(values)
    places = pc.index_in(hashes, value_set=pa.array(by.hashes(name, known, kind), pa.string()))
    return pa.array(known, arrow_type(kind)).take(places)


def _keys_of(
    workspace: Readers, requests: Sequence[FeatureRequest], name: str, files: Files
) -> Iterator[tuple[pa.Table, str]]:
    """Yield the columns of join keys of every view that is read by a column."""
    seen = set[tuple[str, str]]()
    for read in (read for request in requests for read in request.reads):
        for key, column in read.key_columns:
            if column != name or (read.view.name, key) in seen:
                continue
            seen.add((read.view.name, key))
            for file in files(read):
                with opened(workspace.offline, file) as parquet:
                    yield parquet.read(columns=[key]), key


def _newest(workspace: Readers) -> Files:
    def files(read: ViewRead) -> Iterable[DataFile]:
        version = workspace.offline.current(read.registered.table)
        return () if version is None else version.files

    return files
