"""Blobs as files of one folder: ``_{kind}`` below that of a project, next to its views, whose names begin otherwise."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from typing_extensions import override

from featurestore.errors import DamagedFileError, OfflineStoreError
from featurestore.offline.interface import Blob, Blobs
from featurestore.offline.local.files import PARTIAL, disk_errors, write_whole

_CUT_OFF = (PARTIAL, ".partial")
"""The endings of files that were not written completely, by this release and by earlier ones."""


class FolderBlobs(Blobs):
    """The files of one folder; holds no state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @override
    def put(self, name: str, content: bytes, what: str) -> None:
        with disk_errors(f"keep {what}"):
            write_whole(self._path(name), content)

    @override
    def get(self, name: str, what: str, *, sha256: str | None = None) -> bytes:
        path = self._path(name)
        try:
            content = path.read_bytes()
        except OSError:
            content = None
        if content is None or sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise DamagedFileError(
                f"{path}, {what}, is missing or damaged.", hint="Restore it from a backup.", path=str(path)
            )
        return content

    @override
    def list(self) -> list[Blob]:
        found = []
        with disk_errors(f"read the folder {self._folder}"):
            for path in sorted(self._folder.glob("*")):
                with suppress(FileNotFoundError):  # deleted in the meantime, or renamed to its final name
                    found.append(Blob(path.name, path.stat().st_mtime_ns // 1000, not path.name.endswith(_CUT_OFF)))
        return found

    @override
    def delete(self, name: str, what: str) -> None:
        with disk_errors(f"remove {what}"):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if "/" in name or name in ("", ".", ".."):
            raise OfflineStoreError(f"{name!r} cannot be the name of a file that is kept.", name=name)
        return self._folder / name
