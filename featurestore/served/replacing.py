"""Putting files of a log in the place of others, under its lease: what is forgotten stays so if one dies or sleeps."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featurestore.errors import OfflineStoreError
from featurestore.ledger.leases import Lease, holding
from featurestore.offline.interface import Blobs
from featurestore.served.files import FORMAT, About, Kind, ServedFile, files_of, read, replaced, write
from featurestore.served.joined import joined
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

MERGED_ROWS = 500_000
"""A file that replaces small ones has at most so many rows."""
LEAST_FILES = 8
"""So many files of one day are made one."""
PARTIAL_US = 600_000_000
"""How long ago a file that is not whole was begun when it goes: a younger one may still be written."""
_DAY_US = 86_400_000_000


class Alone:
    """The lease of a service's files, while nobody else replaces or removes any."""

    def __init__(self, lease: Lease, workspace: Workspace) -> None:
        self._lease, self._clock = lease, workspace.clock

    def check(self) -> None:
        """Return while the lease is held; raises LeaseHeldError. Call it right before what cannot be undone."""
        self._lease.check()

    @property
    def fence(self) -> int:
        """As `Lease.fence`."""
        return self._lease.fence

    def settled(self, kind: Kind, blobs: Blobs, service: str, problems: list[str]) -> list[ServedFile]:
        """Return the files that count; those that do not are deleted, with what was cut off in writing.

        Notes damaged files in ``problems``: nobody knows what they replace.
        """
        listed = files_of(blobs)
        gone = replaced(kind, blobs, listed, service, problems)
        begun_us = self._clock() - PARTIAL_US
        cut_off = [blob.name for blob in blobs.list() if not blob.is_whole and blob.modified_us < begun_us]
        self.check()
        for name in [*(file.name for file in listed if file.name in gone), *cut_off]:
            blobs.delete(name, kind.what(service))
        return [file for file in listed if file.name not in gone]

    def delete(self, kind: Kind, blobs: Blobs, service: str, names: Sequence[str]) -> None:
        """Remove files."""
        self.check()
        for name in names:
            blobs.delete(name, kind.what(service))

    def replace(self, kind: Kind, blobs: Blobs, files: Sequence[ServedFile], rows: pa.Table, about: About) -> None:
        """Put rows in the place of some files. If it dies in between, the new file says which ones it replaces.

        A file without rows is written, too: it says so to a process that was stopped while it made another of them.
        """
        names = [file.name for file in files]
        fields = {name: getattr(about, name) for name in About.__slots__}
        document: dict[str, Any] = {"format": FORMAT, **fields, "replaces": names, "fence": self.fence}
        ordered = rows.replace_schema_metadata(None).sort_by(kind.order)
        span = min(file.first_us for file in files), max(file.last_us for file in files)
        self.check()
        lost = {*names} - {file.name for file in files_of(blobs)}
        if lost:
            raise OfflineStoreError(
                f"{min(lost)}, {kind.what(about.service)}, was removed while it was read.", hint="Run it again."
            )
        self.check()  # again: it may have been stopped right now
        write(kind, blobs, ordered, document, instance=f"m{secrets.token_hex(8)}", number=0, span=span)
        self.delete(kind, blobs, about.service, names)


@contextmanager
def alone(workspace: Workspace, service: str) -> Iterator[Alone]:
    """Keep others from merging and forgetting rows of a service meanwhile."""
    name = f"served.{service}"
    holder = secrets.token_hex(8)
    with holding(workspace.ledger, workspace.project, name, holder=holder, clock=workspace.clock) as lease:
        yield Alone(lease, workspace)


def many(files: Sequence[ServedFile], before_us: int) -> list[list[ServedFile]]:
    """Return the files of days that have many which end before an instant, by day."""
    days: dict[int, list[ServedFile]] = {}
    for file in files:
        if file.last_us < before_us:
            days.setdefault(file.first_us // _DAY_US, []).append(file)
    return [of_day for of_day in days.values() if len(of_day) >= LEAST_FILES]


_Group = list[tuple[ServedFile, "pa.Table", About]]


def merge(
    kind: Kind, blobs: Blobs, files: Sequence[ServedFile], service: str, lease: Alone, problems: list[str]
) -> None:
    """Write files into few, those of one revision into one.

    No file of more than `MERGED_ROWS` comes of it, so that no more is held at once; half as large ones stay, and so do
    damaged ones, which are noted in ``problems``.
    """
    groups: dict[tuple[Any, ...], _Group] = {}
    for file in files:
        try:
            rows, about = read(kind, blobs, file, service)
        except OfflineStoreError as error:
            problems.append(str(error))
            continue
        if rows.num_rows > MERGED_ROWS // 2:
            continue
        alike = about.revision, about.key_id, about.keys, str(rows.schema.remove_metadata())
        group = groups.setdefault(alike, [])
        if sum(held.num_rows for _, held, _ in group) + rows.num_rows > MERGED_ROWS:
            _merge(kind, blobs, group, lease)
            group.clear()
        group.append((file, rows, about))
    for group in groups.values():
        _merge(kind, blobs, group, lease)


def _merge(kind: Kind, blobs: Blobs, group: _Group, lease: Alone) -> None:
    if len(group) > 1:
        files, tables = [file for file, _, _ in group], [rows for _, rows, _ in group]
        lease.replace(kind, blobs, files, joined(kind, tables, tables[0].schema), group[-1][2])
