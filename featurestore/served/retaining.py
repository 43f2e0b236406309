"""What goes from the logs of services by itself: rows past their retention, and many small files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.errors import FeatureStoreError, OfflineStoreError
from featurestore.offline.interface import BlobReader
from featurestore.served.files import KINDS, Kind, ServedFile, files_of, read, replaced
from featurestore.served.keep import blobs_of, services_kept
from featurestore.served.replacing import alone, many, merge
from featurestore.types.times import MICROSECOND
from featurestore.workspace import Readers, Workspace

MERGED_AFTER_US = 3_600_000_000
"""Files that are older are merged: nobody adds to their hour."""


@dataclass(frozen=True, slots=True)
class Retained:
    """What `retain` did."""

    removed: int
    """Files that are gone, because all their rows were past their retention."""
    problems: tuple[str, ...] = ()
    """What could not be done, and what to do."""


NOTHING_REMOVED = Retained(0)


@dataclass(frozen=True, slots=True)
class FilesChecked:
    """The files of one log, read."""

    what: str
    files: int
    problems: tuple[str, ...]


def retain(workspace: Workspace, *, dry_run: bool = False) -> Retained:
    """Remove files whose rows are all past their retention, then merge small ones.

    The retention is that of the service now; of a service that is gone, or keeps no log any more, that of each file.
    All that go are removed first: a full disk has room for a merge then. What fails is told, and the rest is done.
    """
    logs = [(kind, service) for kind in KINDS for service in services_kept(workspace, kind)]
    removed, problems = 0, list[str]()
    for kind, service in logs:
        try:
            removed += _remove_old(workspace, kind, service, problems, dry_run=dry_run)
        except FeatureStoreError as error:
            problems.append(str(error))
    for kind, service in () if dry_run else logs:
        try:
            _merge(workspace, kind, service, problems)
        except FeatureStoreError as error:
            problems.append(f"Files of {kind.what(service)} were not merged: {error}")
    return Retained(removed, tuple(dict.fromkeys(problems)))


def _remove_old(workspace: Workspace, kind: Kind, service: str, problems: list[str], *, dry_run: bool) -> int:
    blobs = blobs_of(workspace, kind, service)
    if dry_run:
        listed = files_of(blobs)
        gone = replaced(kind, blobs, listed, service, problems)
        files = [file for file in listed if file.name not in gone]
        return len(_old(workspace, kind, blobs, files, service, problems))
    with alone(workspace, service) as lease:
        # Before any goes: an old file that replaces another goes after it, or that one would show again.
        files = lease.settled(kind, blobs, service, problems)
        old = _old(workspace, kind, blobs, files, service, problems)
        lease.delete(kind, blobs, service, old)
    return len(old)


def _old(
    workspace: Readers,
    kind: Kind,
    blobs: BlobReader,
    files: Sequence[ServedFile],
    service: str,
    problems: list[str],
) -> list[str]:
    services, now_us = workspace.snapshot().services, workspace.clock()
    log = services[service].log if service in services else None
    kept_us = None if log is None else log.retention // MICROSECOND
    old = []
    for file in files:
        try:
            # The footer is read only where nothing else says how long the file stays.
            of_file = read(kind, blobs, file, service)[1].retention_us if kept_us is None else kept_us
        except OfflineStoreError as error:
            problems.append(str(error))
            continue
        if file.last_us < now_us - of_file:
            old.append(file.name)
    return old


def _merge(workspace: Workspace, kind: Kind, service: str, problems: list[str]) -> None:
    blobs, before_us = blobs_of(workspace, kind, service), workspace.clock() - MERGED_AFTER_US
    if not many(files_of(blobs), before_us):
        return
    with alone(workspace, service) as lease:
        for of_day in many(lease.settled(kind, blobs, service, problems), before_us):
            merge(kind, blobs, of_day, service, lease, problems)


def check_files(workspace: Readers) -> list[FilesChecked]:
    """Read every file of every log."""
    checked = []
    for kind in KINDS:
        for service in services_kept(workspace, kind):
            blobs, problems = workspace.offline.blobs(workspace.project, kind.prefix + service), list[str]()
            files = files_of(blobs)
            for file in files:
                try:
                    read(kind, blobs, file, service)
                except OfflineStoreError as error:
                    if file in files_of(blobs):  # else it was merged meanwhile
                        problems.append(str(error))
            checked.append(FilesChecked(kind.what(service), len(files), tuple(problems)))
    return checked


def drop_all(workspace: Workspace) -> None:
    """Remove the logs of all services."""
    for kind in KINDS:
        for service in services_kept(workspace, kind):
            blobs = blobs_of(workspace, kind, service)
            for blob in blobs.list():
                blobs.delete(blob.name, kind.what(service))
