"""Reading the served log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureService
from featurestore.errors import NotFoundError, did_you_mean
from featurestore.offline.interface import Blobs
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import resolve
from featurestore.served.files import KINDS, PREDICTED, SERVED, Kind, files_of, rows_between
from featurestore.served.joined import joined, without_others
from featurestore.served.shape import ServedShape, shape_of
from featurestore.served.showing import shown
from featurestore.statistics.sets import thinned
from featurestore.types.times import MAX_INSTANT
from featurestore.workspace import Readers, Workspace

if TYPE_CHECKING:
    import pyarrow as pa


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


def read_served(
    workspace: Readers,
    service: str,
    start_us: int,
    end_us: int,
    *,
    most: int | None = None,
    with_checksums: bool = False,
) -> pa.Table:
    """Return what was served in [start, end), oldest first, in the columns of the service's newest revision.

    Of more than ``most`` rows so many are returned, chosen by chance that is the same each time. With it a column that
    had another type, as its definition was another one, is null there; without it rows of both raise InputError. What
    became personal does not show; ``with_checksums`` is for those who compare, as `showing.shown`.
    """
    snapshot = workspace.snapshot()
    shape = _shape(snapshot, service)

    def take(found: Iterator[pa.Table]) -> list[pa.Table]:
        if most is None:
            return list(found)
        return thinned(found if shape is None else (without_others(each, shape.schema) for each in found), most)

    tables = rows_between(SERVED, workspace, service, start_us, end_us, take)
    if shape is None and not tables:
        raise no_log(snapshot, service, services_kept(workspace))
    schema = tables[-1].schema if shape is None else shape.schema
    rows = joined(SERVED, tables, schema).sort_by(SERVED.order)
    return shown(snapshot, service, rows, with_checksums=with_checksums)


def rows_after(workspace: Readers, service: str, at_us: int) -> int:
    """Return how many rows were served for a service from an instant on."""

    def count(found: Iterator[pa.Table]) -> int:
        return sum(table.num_rows for table in found)

    return rows_between(SERVED, workspace, service, at_us, MAX_INSTANT + 1, count)


def after_now_text(rows: int) -> str:
    """Return a note of served rows that lie after now, and are therefore in no figure."""
    return (
        f"{rows:,} served rows lie after now and are in no figure: the clock of a server is ahead, or this one behind; "
        "`fs served list` shows until when"
    )


def no_log(snapshot: Snapshot, service: str, kept: Sequence[str] = ()) -> NotFoundError:
    """Return the error for a service without a log, or none of that name."""
    if service in snapshot.services:
        return NotFoundError(
            f"Feature service {service!r} keeps no log.",
            hint="Declare FeatureService(..., log=ServedLog(sample=0.1)), and run `fs apply`.",
            name=service,
        )
    if service in kept:
        return NotFoundError(
            f"Nothing of the log of {service!r}, which is no feature service any more, lies in this span.",
            hint="`fs served list` says from when to when it is.",
            name=service,
        )
    hint = did_you_mean(service, [*snapshot.services, *kept])
    return NotFoundError(f"There is no feature service {service!r}, and no log of one.", hint=hint, name=service)


def _shape(snapshot: Snapshot, service: str) -> ServedShape | None:
    if service not in snapshot.services:
        return None
    request = resolve(snapshot, snapshot.get(FeatureService, service), full_feature_names=True)
    return shape_of(snapshot, request, service)
