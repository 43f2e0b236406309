"""Where new files of a table are written, and how to tell leftovers of dead writers from work under way.

Each store object has a folder of its own in a table's staging place and holds a lock on it while it lives; the
operating system drops the lock when the process ends in any way. A file that moves into the table carries the
folder's name, so that the lock also protects the file until its commit is in the log.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.offline.local.files import make_folder

FOLDER = "_staging"


class Staging:
    """One store object's folder in one table's staging place."""

    def __init__(self, table: Path) -> None:
        self._lock: int | None = None
        while self._lock is None:  # until the lock is held, a cleaner may take the folder for a dead writer's
            self.name = secrets.token_hex(16)
            self.folder = table / FOLDER / self.name
            make_folder(self.folder)
            self._lock = _locked(self.folder)

    def close(self) -> None:
        """Release the folder; `clean` removes what is left in it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def folders(table: Path) -> list[Path]:
    """Return the staging folders of a table."""
    place = table / FOLDER
    return sorted(place.iterdir()) if place.is_dir() else []


def is_held(table: Path, name: str) -> bool:
    """Tell whether the writer of a staging folder still lives."""
    folder = table / FOLDER / name
    with claimed(folder) as is_ours:
        return not is_ours and folder.is_dir()


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Tell whether a staging folder exists and has no writer; no writer takes it within the block."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """Return the lock of a new staging folder, None if a cleaner removed it first."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if folder.is_dir():
        return descriptor
    os.close(descriptor)
    return None
