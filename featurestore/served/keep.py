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
    KIND,
    About,
    ServedFile,
    files_of,
    joined,
    key_columns,
    merge_old,
    read,
    replace,
    rows_between,
    settled,
    what,
)
from featurestore.served.shape import KEY, ORDER, ServedShape, key_id, secret_key, shape_of
from featurestore.statistics.sets import hashed
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


def services_kept(workspace: Readers) -> list[str]:
    """Return the services of which there is a log, sorted; those that are gone, too."""
    kinds = workspace.offline.blob_kinds(workspace.project)
    return sorted(kind.removeprefix(KIND) for kind in kinds if kind.startswith(KIND))


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


def kept_logs(workspace: Readers) -> list[KeptLog]:
    """Return the logs that are declared or still there, by service."""
    services, found = workspace.snapshot().services, list[KeptLog]()
    declared = {name for name, each in services.items() if each.log is not None}
    for name in sorted({*services_kept(workspace), *declared}):
        log = services[name].log if name in services else None
        files = files_of(workspace.offline.blobs(workspace.project, KIND + name))
        if log is None and not files:
            continue
        first_us, last_us = (
            min((f.first_us for f in files), default=None),
            max((f.last_us for f in files), default=None),
        )
        sample, keys = (0.0, "") if log is None else (log.sample, log.keys)
        found.append(KeptLog(name, sample, keys, len(files), first_us, last_us))
    return found


def read_served(workspace: Readers, service: str, start_us: int, end_us: int) -> pa.Table:
    """Return what was served in [start, end), oldest first, in the columns of the service's newest revision."""
    snapshot = workspace.snapshot()
    shape = _shape(workspace, snapshot, service)
    tables = list(rows_between(workspace, service, start_us, end_us))
    if shape is None and not tables:
        known = services_kept(workspace)
        if service in snapshot.services:
            raise NotFoundError(
                f"Feature service {service!r} keeps no log.",
                hint="Declare FeatureService(..., log=ServedLog(sample=0.1)), and run `fs apply`.",
                name=service,
            )
        hint = did_you_mean(service, [*snapshot.services, *known])
        raise NotFoundError(f"There is no feature service {service!r}, and no log of one.", hint=hint, name=service)
    schema = tables[-1].schema if shape is None else shape.schema
    return joined(tables, schema).sort_by(ORDER)


def _shape(workspace: Readers, snapshot: Snapshot, service: str) -> ServedShape | None:
    if service not in snapshot.services:
        return None
    request = resolve(snapshot, snapshot.get(FeatureService, service), full_feature_names=True)
    return shape_of(snapshot, request, service, secret_of(workspace))


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `forget` did."""

    rows: int
    """Rows that are gone."""
    files: int
    """Files that were written again without them, or deleted."""


def forget(workspace: Workspace, entity: Mapping[str, Any], services: Sequence[str] | None = None) -> Forgotten:
    """Remove the rows of an entity, given by join key, from the logs of all services or of some.

    A row goes where all the join keys that it holds are the entity's. Raises InputError, NotFoundError, and
    SettingsError, having changed nothing, where keys are hashed with a secret that the settings do not have.
    """
    kept = services_kept(workspace)
    for name in services or ():
        if name not in kept:
            raise NotFoundError(f"There is no log of a service {name!r}.", hint=did_you_mean(name, kept), name=name)
    _check_keys(workspace.snapshot(), entity)
    secret, rows, files = secret_of(workspace), 0, 0
    chosen = services or kept
    for service in chosen:  # nothing is changed before all can be
        for _, about, _ in _read_all(workspace.offline.blobs(workspace.project, KIND + service), service):
            _check_secret(about, secret, entity)
    for service in chosen:
        blobs = workspace.offline.blobs(workspace.project, KIND + service)
        with _alone(workspace, service):
            for file, about, table in _read_all(blobs, service):
                left = _without(table, about, entity, secret)
                if left is not None and left.num_rows < table.num_rows:
                    replace(blobs, [file.name], left, about)
                    rows, files = rows + table.num_rows - left.num_rows, files + 1
    return Forgotten(rows, files)


def _read_all(blobs: Blobs, service: str) -> Iterator[tuple[ServedFile, About, pa.Table]]:
    for file in settled(blobs, service):
        table, about = read(blobs, file, service)
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
            f"Join keys in {what(about.service)} are hashed with another secret than the settings have. Nothing was "
            "changed.",
            hint=KEYS_HINT.replace("a long random text", "the one that the servers had then"),
            key="served.secret",
        )


def _without(table: pa.Table, about: About, entity: Mapping[str, Any], secret: bytes) -> pa.Table | None:
    """Return a file's rows without those of an entity; None where it holds none of the entity's join keys."""
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
    return None if is_gone is None else table.filter(pc.invert(is_gone))


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
    for service in services_kept(workspace):
        blobs = workspace.offline.blobs(workspace.project, KIND + service)
        log = services[service].log if service in services else None
        kept_us = None if log is None else log.retention // MICROSECOND
        old = []
        for file in files_of(blobs):
            # The footer is read only where nothing else says how long the file stays.
            of_file = read(blobs, file, service)[1].retention_us if kept_us is None else kept_us
            if file.last_us < now_us - of_file:
                old.append(file.name)
        removed += len(old)
        if dry_run:
            continue
        with _alone(workspace, service):
            for name in old:
                blobs.delete(name, what(service))
            merge_old(blobs, service, now_us - MERGED_AFTER_US)
    return removed


def drop_all(workspace: Workspace) -> None:
    """Remove the logs of all services."""
    for service in services_kept(workspace):
        blobs = workspace.offline.blobs(workspace.project, KIND + service)
        for blob in blobs.list():
            blobs.delete(blob.name, what(service))
