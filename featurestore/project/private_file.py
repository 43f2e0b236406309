"""Files that only their owner may read: replaced durably in one step, and checked when they are read."""

from __future__ import annotations

import os
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

from featurestore_registry.records import canonical_json


def replace_file(path: Path, document: Any, *, modified_us: int | None = None) -> None:
    """Replace a file by a document as JSON; readers see the whole old file or the whole new one.

    Makes the folder if it is missing. ``modified_us`` becomes the file's modification time, in UTC microseconds. Raises
    OSError; the old file then stays.
    """
    make_folder(path.parent)
    # mkstemp makes a file that only its owner may read, under a name that no other process uses.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(canonical_json(document).encode())
            file.flush()
            os.fsync(file.fileno())
        if modified_us is not None:
            set_modified(Path(temporary), modified_us)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a missing folder, durably, readable by its owner only. Raises OSError."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_modified(path: Path, instant_us: int) -> None:
    """Set the file's modification time, in UTC microseconds. Raises OSError."""
    os.utime(path, ns=(instant_us * 1000, instant_us * 1000))


def checksum(content: Any) -> str:
    """Return the checksum that `matches` compares."""
    return blake2b(canonical_json(content).encode(), digest_size=32).hexdigest()


def matches(content: Any, expected: Any) -> bool:
    """Tell whether a value read from JSON is the checksum of a content; it may be of any type."""
    try:
        return bool(expected == checksum(content))
    except ValueError:  # another program's JSON may hold values that ours never does, such as NaN
        return False
