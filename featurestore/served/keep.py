"""Reading the served log, and what goes from it: rows past their retention, and those of an entity to be forgotten."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.definitions import Entity, FeatureService
from featurestore.errors import InputError, NotFoundError, SettingsError, ValueTypeError, did_you_mean
from featurestore.ledger.leases import holding
from featurestore.offline.interface import Blobs
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import resolve
from featurestore.served.files import (
    KINDS,
    PREDICTED,
    SERVED,
    About,
    Kind,
    ServedFile,
    files_of,
    joined,
    key_columns,
    merge_old,
    read,
    replace,
    rows_between,
    settled,
    without_others,
)
from featurestore.served.shape import KEY, REQUEST_ID, ROW, ServedShape, key_id, secret_key, shape_of
from featurestore.statistics.sets import hashed, thinned
from featurestore.types import ValueType, parse_type
from featurestore.types.times import MICROSECOND
from featurestore.types.values import coerce
from featurestore.workspace import Readers, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

KEYS_HINT = "Set `served: {secret: ${NAME}}` in feature_store.yaml, or FS_SERVED__SECRET: a long random text."
"""What to do without one."""
MERGED_AFTER_US = 3_600_000_000
"""Files that are older are merged: nobody adds to their hour."""


def secret_of(workspace: Readers) -> bytes:
    """Return the key of the hashes of join keys; empty where the settings have no secret."""
    return secret_key(workspace.settings.served.secret.get_secret_value())


def services_kept(workspace: Readers, kind: Kind = SERVED) -> list[str]:
    """Return the services of which there is a log, sorted; those that are gone, too."""
    found = workspace.offline.blob_kinds(workspace.project)
    return sorted(each.removeprefix(kind.prefix) for each in found if each.startswith(kind.prefix))


def blobs_of(workspace: Workspace, kind: Kind, service: str) -> Blobs:
    """Return the place of a service's files."""
    return workspace.offline.blobs(workspace.project, kind.prefix + service)


@dataclass(frozen=True, slots=True)
class KeptLog:
    """What is kept of one service, as far as the definitions and the names of its files say."""

    service: str
    sample: float
    """0 where the service keeps no log any more."""
    keys: str
    files: int
    first_us: int | None
    last_us: int | None
    predictions: int = 0
    """Files of predictions."""


def kept_logs(workspace: Readers) -> list[KeptLog]:
    """Return the logs that are declared or still there, by service."""
    services, found = workspace.snapshot().services, list[KeptLog]()
    declared = {name for name, each in services.items() if each.log is not None}
    kept = {name for kind in KINDS for name in services_kept(workspace, kind)}
    for name in sorted(kept | declared):
        log = services[name].log if name in services else None
        files, predicted = (
            files_of(workspace.offline.blobs(workspace.project, kind.prefix + name)) for kind in (SERVED, PREDICTED)
        )
        if log is None and not files and not predicted:
            continue
        first_us, last_us = (
            min((f.first_us for f in files), default=None),
            max((f.last_us for f in files), default=None),
        )
        sample, keys = (0.0, "") if log is None else (log.sample, log.keys)
        found.append(KeptLog(name, sample, keys, len(files), first_us, last_us, len(predicted)))
    return found


def read_served(workspace: Readers, service: str, start_us: int, end_us: int, *, most: int | None = None) -> pa.Table:
    """Return what was served in [start, end), oldest first, in the columns of the service's newest revision.

    Of more than ``most`` rows so many are returned, chosen by chance that is the same each time. With it a column that
    had another type, as its definition was another one, is null there; without it that raises InputError.
    """
    snapshot = workspace.snapshot()
    shape = _shape(workspace, snapshot, service)
    found = rows_between(SERVED, workspace, service, start_us, end_us)
    if most is None:
        tables = list(found)
    else:
        tables = thinned(found if shape is None else (without_others(each, shape.schema) for each in found), most)
    if shape is None and not tables:
        raise no_log(snapshot, service, services_kept(workspace))
    schema = tables[-1].schema if shape is None else shape.schema
    return joined(SERVED, tables, schema).sort_by(SERVED.order)


def no_log(snapshot: Snapshot, service: str, kept: Sequence[str] = ()) -> NotFoundError:
    """Return the error for a service without a log, or none of that name."""
    if service in snapshot.services:
        return NotFoundError(
            f"Feature service {service!r} keeps no log.",
            hint="Declare FeatureService(..., log=ServedLog(sample=0.1)), and run `fs apply`.",
            name=service,
        )
    hint = did_you_mean(service, [*snapshot.services, *kept])
    return NotFoundError(f"There is no feature service {service!r}, and no log of one.", hint=hint, name=service)


def _shape(workspace: Readers, snapshot: Snapshot, service: str) -> ServedShape | None:
    if service not in snapshot.services:
        return None
    request = resolve(snapshot, snapshot.get(FeatureService, service), full_feature_names=True)
    return shape_of(snapshot, request, service, secret_of(workspace))


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `forget` did."""

    rows: int
    """Rows of the served logs that are gone."""
    files: int
    """Files that were written again without them, or deleted."""
    predictions: int = 0
    """Predictions of these rows, which are gone as well."""


def forget(workspace: Workspace, entity: Mapping[str, Any], services: Sequence[str] | None = None) -> Forgotten:
    """Remove the rows of an entity, given by join key, from the logs of all services or of some, and their predictions.

    A row goes where all the join keys that it holds are the entity's. Raises InputError, NotFoundError, and
    SettingsError, having changed nothing, where keys are hashed with a secret that the settings do not have.
    """
    kept = services_kept(workspace)
    for name in services or ():
        if name not in kept:
            raise NotFoundError(f"There is no log of a service {name!r}.", hint=did_you_mean(name, kept), name=name)
    _check_keys(workspace.snapshot(), entity)
    secret, rows, files, predictions = secret_of(workspace), 0, 0, 0
    chosen = services or kept
    for service in chosen:  # nothing is changed before all can be
        for _, about, _ in _read_all(SERVED, blobs_of(workspace, SERVED, service), service):
            _check_secret(about, secret, entity)
    for service in chosen:
        blobs = blobs_of(workspace, SERVED, service)
        with _alone(workspace, service):
            found = []
            for file, about, table in _read_all(SERVED, blobs, service):
                is_gone = _is_of(table, about, entity, secret)
                if is_gone is not None and (gone := table.filter(is_gone)).num_rows:
                    found.append((file, about, gone))
            if not found:
                continue
            # Predictions first: if this is cut off, the served rows still say which ones are left to forget.
            more, again = _forget_predictions(workspace, service, [gone for _, _, gone in found])
            predictions, files = predictions + more, files + again
            for file, about, gone in found:
                table, _ = read(SERVED, blobs, file, service)
                replace(SERVED, blobs, [file.name], _others(table, _is_of(table, about, entity, secret)), about)
                rows, files = rows + gone.num_rows, files + 1
    return Forgotten(rows, files, predictions)


def _forget_predictions(workspace: Workspace, service: str, gone: Sequence[pa.Table]) -> tuple[int, int]:
    """Remove the predictions of served rows; returns how many, and in how many files."""
    import pyarrow as pa

    removed, files, blobs = 0, 0, blobs_of(workspace, PREDICTED, service)
    ids = pa.concat_tables([table.select([REQUEST_ID, ROW]) for table in gone])
    for file, about, table in _read_all(PREDICTED, blobs, service):
        places = pa.table({"place": pa.array(range(table.num_rows), pa.int64())})
        numbered = table.select([REQUEST_ID, ROW]).append_column("place", places.column(0))
        left = numbered.join(ids, [REQUEST_ID, ROW], join_type="left anti").column("place").combine_chunks()
        if len(left) < table.num_rows:
            replace(PREDICTED, blobs, [file.name], table.take(left), about)
            removed, files = removed + table.num_rows - len(left), files + 1
    return removed, files


def _read_all(kind: Kind, blobs: Blobs, service: str) -> Iterator[tuple[ServedFile, About, pa.Table]]:
    for file in settled(kind, blobs, service):
        table, about = read(kind, blobs, file, service)
        yield file, about, table


def _check_keys(snapshot: Snapshot, entity: Mapping[str, Any]) -> None:
    known = {key for each in snapshot.list(Entity.kind) if isinstance(each, Entity) for key in each.join_keys}
    for name in entity:
        if known and name not in known:
            raise InputError(f"{name!r} is not a join key.", hint=did_you_mean(name, sorted(known)), join_key=name)


def _check_secret(about: About, secret: bytes, entity: Mapping[str, Any]) -> None:
    if about.keys != "hashed" or about.key_id == key_id(secret):
        return
    if any(key_columns(about, name) for name in entity):
        raise SettingsError(
            f"Join keys in {SERVED.what(about.service)} are hashed with another secret than the settings have. "
            "Nothing was changed.",
            hint=KEYS_HINT.replace("a long random text", "the one that the servers had then"),
            key="served.secret",
        )


def _is_of(table: pa.Table, about: About, entity: Mapping[str, Any], secret: bytes) -> pa.ChunkedArray | None:
    """Tell for each row of a file whether it is of an entity; None where it holds none of the entity's join keys."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_gone: Any = None
    for name, given in entity.items():
        columns = key_columns(about, name)
        if not columns:
            return None
        is_any: Any = None
        for column in columns:
            kind = _kind(about, column.removeprefix(KEY))
            value = _value(name, given, kind)
            if about.keys == "hashed":
                (value,) = hashed([value], kind, secret)
            same = pc.fill_null(pc.equal(table.column(column), pa.scalar(value, table.column(column).type)), False)
            is_any = same if is_any is None else pc.or_(is_any, same)
        is_gone = is_any if is_gone is None else pc.and_(is_gone, is_any)
    return is_gone


def _others(table: pa.Table, is_gone: pa.ChunkedArray) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.invert(is_gone))


def _kind(about: About, column: str) -> ValueType:
    return parse_type(about.join_keys[column][0][1])


def _value(name: str, given: Any, kind: ValueType) -> Any:
    try:
        return coerce(kind, given)
    except ValueTypeError as error:
        raise InputError(f"Join key {name!r}: {error.message}", join_key=name) from None


@contextmanager
def _alone(workspace: Workspace, service: str) -> Iterator[None]:
    """Keep others from merging and forgetting rows of a service meanwhile."""
    holder = secrets.token_hex(8)
    name = f"served.{service}"
    with holding(workspace.ledger, workspace.project, name, holder=holder, clock=workspace.clock):
        yield


def retain(workspace: Workspace, *, dry_run: bool = False) -> int:
    """Remove files whose rows are all past their retention, and merge small ones; returns how many old ones went.

    The retention is that of the service now; of a service that is gone, or keeps no log any more, that of each file.
    """
    removed, now_us = 0, workspace.clock()
    services = workspace.snapshot().services
    for kind in KINDS:
        for service in services_kept(workspace, kind):
            log = services[service].log if service in services else None
            kept_us = None if log is None else log.retention // MICROSECOND
            blobs, old = blobs_of(workspace, kind, service), []
            for file in files_of(blobs):
                # The footer is read only where nothing else says how long the file stays.
                of_file = read(kind, blobs, file, service)[1].retention_us if kept_us is None else kept_us
                if file.last_us < now_us - of_file:
                    old.append(file.name)
            removed += len(old)
            if dry_run:
                continue
            with _alone(workspace, service):
                for name in old:
                    blobs.delete(name, kind.what(service))
                merge_old(kind, blobs, service, now_us - MERGED_AFTER_US)
    return removed


def drop_all(workspace: Workspace) -> None:
    """Remove the logs of all services."""
    for kind in KINDS:
        for service in services_kept(workspace, kind):
            blobs = blobs_of(workspace, kind, service)
            for blob in blobs.list():
                blobs.delete(blob.name, kind.what(service))
