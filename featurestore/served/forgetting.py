"""Forgetting an entity: its rows in served logs, and what models predicted for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featurestore.definitions import Entity, FeatureService
from featurestore.errors import InputError, NotFoundError, OfflineStoreError, ValueTypeError, did_you_mean
from featurestore.offline.interface import BlobReader, Blobs
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import resolve
from featurestore.served.files import PREDICTED, SERVED, About, Kind, ServedFile, files_of, key_columns, read, replaced
from featurestore.served.hashing import EARLIER_HINT, LogKey, LogKeys, keys_of
from featurestore.served.keep import blobs_of, services_kept
from featurestore.served.replacing import Alone, alone
from featurestore.served.shape import KEY, REQUEST_ID, ROW
from featurestore.types import ValueType, parse_type
from featurestore.types.values import coerce, from_json
from featurestore.workspace import Readers, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

_WHOLE_NUMBER = re.compile(r"-?\d{1,20}")
MOST_NAMED = 3
"""So many files are named in a problem."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `forget` did, or would do."""

    rows: int
    """Rows of the served logs that are gone."""
    files: int
    """Files that were written again without them."""
    predictions: int = 0
    """Predictions of these rows, which are gone as well."""
    problems: tuple[str, ...] = ()
    """Files that were left as they are, because they are damaged or hashed with a secret that is not known."""


@dataclass
class _Found:
    """What is found of one entity, file by file."""

    entity: Mapping[str, Any]
    keys: LogKeys
    rows: int = 0
    files: int = 0
    predictions: int = 0
    problems: list[str] = field(default_factory=list)


def forget(
    workspace: Workspace, entity: Mapping[str, Any], services: Sequence[str] | None = None, *, dry_run: bool = False
) -> Forgotten:
    """Remove the rows of an entity, given by join key, from the logs of all services or of some, and their predictions.

    A row goes where all the join keys that are given are the entity's. What cannot be read stays and is told. Raises
    InputError and NotFoundError, having changed nothing.
    """
    kept = services_kept(workspace)
    for name in services or ():
        if name not in kept:
            raise NotFoundError(f"There is no log of a service {name!r}.", hint=did_you_mean(name, kept), name=name)
    chosen = services or kept
    _check(workspace, chosen, entity)
    found = _Found(entity, keys_of(workspace))
    for service in chosen:
        if dry_run:
            _count(workspace, service, found)
        else:
            with alone(workspace, service) as lease:
                _forget(workspace, service, lease, found)
    return Forgotten(found.rows, found.files, found.predictions, tuple(found.problems))


def only_part_of(workspace: Readers, entity: Mapping[str, Any]) -> list[str]:
    """Return what an entity's keys are only a part of the key of, in words: rows of many have them. Empty: of nothing.

    ``origin`` may be all of an airport's key and part of a route's. What nothing declares is named, too.
    """
    snapshot = workspace.snapshot()
    wholes = {each.name: [*each.join_keys] for each in snapshot.list(Entity.kind) if isinstance(each, Entity)}
    keys = {f"{name} ({', '.join(columns)})": {*columns} for name, columns in wholes.items()}
    for name in snapshot.services:
        request = resolve(snapshot, snapshot.get(FeatureService, name), full_feature_names=True)
        for asked in request.reads:
            columns = dict(asked.key_columns)
            for each in asked.view.entities:
                own = [columns[key] for key in each.join_keys]
                keys[f"{each.name} ({', '.join(own)})"] = {*own}
    parts = [what for what, whole in keys.items() if whole & entity.keys() and not whole <= entity.keys()]
    unknown = entity.keys() - set[str]().union(*keys.values())
    return [*sorted(parts), *(f"what nothing declares ({name})" for name in sorted(unknown))]


def _check(workspace: Workspace, services: Sequence[str], entity: Mapping[str, Any]) -> None:
    """Raise InputError for what is no join key, neither now nor in a file, and for values of no type that it has."""
    known = _declared(workspace.snapshot())
    types: dict[str, set[str]] = {name: set() for name in entity}
    for service in services:
        for _, about, _ in _readable(SERVED, blobs_of(workspace, SERVED, service), service, None, []):
            for column, pairs in about.join_keys.items():
                known |= {column, *(key for key, _ in pairs)}
            for name in entity:
                types[name] |= {str(_type_of(about, column)) for column in key_columns(about, name)}
    for name, value in entity.items():
        if known and name not in known:
            raise InputError(f"{name!r} is not a join key.", hint=did_you_mean(name, sorted(known)), join_key=name)
        kinds = [parse_type(each) for each in sorted(types[name])]
        if kinds and all(_value(value, kind) is None for kind in kinds):
            try:
                coerce(kinds[0], value)
            except ValueTypeError as error:
                raise InputError(f"Join key {name!r}: {error.message}", join_key=name) from None


def _declared(snapshot: Snapshot) -> set[str]:
    return {key for each in snapshot.list(Entity.kind) if isinstance(each, Entity) for key in each.join_keys}


def _count(workspace: Workspace, service: str, found: _Found) -> None:
    gone = [each for _, _, each in _rows_of(workspace, service, None, found)]
    found.rows += sum(each.num_rows for each in gone)
    found.files += len(gone)
    if gone:
        for _, _, table, left in _predictions_of(workspace, service, gone, None, found):
            found.predictions += table.num_rows - len(left)
            found.files += 1


def _forget(workspace: Workspace, service: str, lease: Alone, found: _Found) -> None:
    rows = [*_rows_of(workspace, service, lease, found)]
    if not rows:
        return
    # Predictions first: if this is cut off, the served rows still say which ones are left to forget.
    blobs = blobs_of(workspace, PREDICTED, service)
    for file, about, table, left in _predictions_of(workspace, service, [gone for _, _, gone in rows], lease, found):
        lease.replace(PREDICTED, blobs, [file], table.take(left), about)
        found.predictions += table.num_rows - len(left)
        found.files += 1
    blobs = blobs_of(workspace, SERVED, service)
    for file, about, gone in rows:
        table, _ = read(SERVED, blobs, file, service)
        is_gone = _is_of(table, about, found)
        assert is_gone is not None
        lease.replace(SERVED, blobs, [file], _others(table, is_gone), about)
        found.rows += gone.num_rows
        found.files += 1


def _rows_of(
    workspace: Workspace, service: str, lease: Alone | None, found: _Found
) -> Iterator[tuple[ServedFile, About, pa.Table]]:
    """Yield the files that hold rows of the entity, with these."""
    left = dict[str, list[str]]()
    for file, about, table in _readable(SERVED, blobs_of(workspace, SERVED, service), service, lease, found.problems):
        if not all(key_columns(about, name) for name in found.entity):
            continue
        if found.keys.of(about.key_id) is None:
            left.setdefault(about.key_id, []).append(file.name)
            continue
        is_gone = _is_of(table, about, found)
        if is_gone is not None and (gone := table.filter(is_gone)).num_rows:
            yield file, about, gone
    for key_id, names in left.items():
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        named = ", ".join(names[:MOST_NAMED]) + more
        files = "1 file" if len(names) == 1 else f"{len(names)} files"
        found.problems.append(
            f"Join keys in {files} of {SERVED.what(service)} are hashed with another secret (key_id {key_id}) than the "
            f"settings have: {named} stayed as it was. {EARLIER_HINT}"
        )


def _predictions_of(
    workspace: Workspace, service: str, gone: Sequence[pa.Table], lease: Alone | None, found: _Found
) -> Iterator[tuple[ServedFile, About, pa.Table, pa.Array]]:
    """Yield the files with predictions of served rows, with the places of the others."""
    import pyarrow as pa

    ids = pa.concat_tables([table.select([REQUEST_ID, ROW]) for table in gone])
    for file, about, table in _readable(
        PREDICTED, blobs_of(workspace, PREDICTED, service), service, lease, found.problems
    ):
        places = pa.table({"place": pa.array(range(table.num_rows), pa.int64())})
        numbered = table.select([REQUEST_ID, ROW]).append_column("place", places.column(0))
        left = numbered.join(ids, [REQUEST_ID, ROW], join_type="left anti").column("place").combine_chunks()
        if len(left) < table.num_rows:
            yield file, about, table, left.sort()


def _readable(
    kind: Kind, blobs: Blobs, service: str, lease: Alone | None, problems: list[str]
) -> Iterator[tuple[ServedFile, About, pa.Table]]:
    """Yield the files that count, and what is in them; without a lease nothing is cleaned up."""
    files = _files(kind, blobs, service, problems) if lease is None else lease.settled(kind, blobs, service, problems)
    for file in files:
        try:
            table, about = read(kind, blobs, file, service)
        except OfflineStoreError as error:
            if str(error) not in problems and file in files_of(blobs):
                problems.append(str(error))
            continue
        yield file, about, table


def _files(kind: Kind, blobs: BlobReader, service: str, problems: list[str]) -> list[ServedFile]:
    listed = files_of(blobs)
    gone = replaced(kind, blobs, listed, service, problems)
    return [file for file in listed if file.name not in gone]


def _is_of(table: pa.Table, about: About, found: _Found) -> pa.ChunkedArray | None:
    """Tell for each row of a file whether it is of the entity; None where it cannot be."""
    import pyarrow as pa
    import pyarrow.compute as pc

    key, is_gone = found.keys.of(about.key_id), None
    assert key is not None
    for name, given in found.entity.items():
        is_any: Any = None
        for column in key_columns(about, name):
            value = _stored(about, column, given, key)
            if value is None:
                continue
            same = pc.fill_null(pc.equal(table.column(column), pa.scalar(value, table.column(column).type)), False)
            is_any = same if is_any is None else pc.or_(is_any, same)
        if is_any is None:
            return None
        is_gone = is_any if is_gone is None else pc.and_(is_gone, is_any)
    return is_gone


def _stored(about: About, column: str, given: Any, key: LogKey) -> Any:
    """Return a value as a file has it in a column; None where no value of its type is meant."""
    kind = _type_of(about, column)
    value = _value(given, kind)
    if value is None or about.keys != "hashed":
        return value
    (value,) = key.hashes(column.removeprefix(KEY), [value], kind)
    return value


def _others(table: pa.Table, is_gone: pa.ChunkedArray) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.invert(is_gone))


def _type_of(about: About, column: str) -> ValueType:
    return parse_type(about.join_keys[column.removeprefix(KEY)][0][1])


def _value(given: Any, kind: ValueType) -> Any:
    """Return what is given in a type, None where that has no such value; a text may be what a command line says.

    Files keep the type that a key had then, so the same key may have another one elsewhere.
    """
    with suppress(ValueTypeError):
        return coerce(kind, given)
    if kind.name == "String" and isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if not isinstance(given, str):
        return None
    plain: Any = given
    if kind.name in ("Int32", "Int64"):
        plain = int(given) if _WHOLE_NUMBER.fullmatch(given) else given
    elif kind.name == "Bool":
        plain = {"true": True, "false": False}.get(given, given)
    with suppress(ValueTypeError):
        return from_json(kind, plain)
    return None
