"""Blobs as files of one folder: ``_{kind}`` below that of a project, next to its views, whose names begin otherwise."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from featurestore.errors import DamagedFileError, OfflineStoreError
from featurestore.offline.interface import Blob, Blobs
from featurestore.offline.local.files import disk_errors, make_folder, sync_file, sync_folder

_PARTIAL = "partial"
"""How the name of a file ends that is being written; earlier releases put it behind a dot of its own."""


class FolderBlobs(Blobs):
    """The files of one folder; holds no state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, content: bytes, what: str) -> None:
        """See `Blobs.put`."""
        path = self._path(name)
        partial = path.with_name(f"{name}-{_PARTIAL}")
        with disk_errors(f"keep {what}"):
            make_folder(self._folder)
            try:
                partial.write_bytes(content)
                sync_file(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            sync_folder(self._folder)

    def get(self, name: str, what: str, *, sha256: str | None = None) -> bytes:
        """See `Blobs.get`."""
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

    def list(self) -> list[Blob]:
        """See `Blobs.list`."""
        found = []
        with disk_errors(f"read the folder {self._folder}"):
            for path in sorted(self._folder.glob("*")):
                with suppress(FileNotFoundError):  # deleted meanwhile, or it has its name by now
                    found.append(Blob(path.name, path.stat().st_mtime, not path.name.endswith(_PARTIAL)))
        return found

    def delete(self, name: str, what: str) -> None:
        """See `Blobs.delete`."""
        with disk_errors(f"remove {what}"):
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if "/" in name or name in ("", ".", ".."):
            raise OfflineStoreError(f"{name!r} cannot be the name of a file that is kept.", name=name)
        return self._folder / name
