"""The owner of a project's folder of tables."""

from __future__ import annotations

import json
from pathlib import Path

from featurestore.errors import OfflineStoreError
from featurestore.offline.local.files import disk_errors, write_whole

OWNER_FILE = "_owner.json"
"""Next to the folders of a project's views, whose names begin with a letter."""


def read_owner(folder: Path) -> str | None:
    """Return the identity of the project that owns a folder of tables, None if nobody owns it yet."""
    path = folder / OWNER_FILE
    try:
        return str(json.loads(path.read_bytes())["identity"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OfflineStoreError(
            f"{path} cannot be read ({error}): it says which project the tables in its folder belong to.",
            hint="Restore it from a backup, or remove it and run `fs repair`.",
            path=str(path),
        ) from None


def bind(folder: Path, identity: str, *, replace: bool) -> str:
    """Write a folder's owner, unless it has one; with ``replace`` in any case. Returns the owner."""
    with disk_errors(f"bind {folder} to its project"):
        write_whole(folder / OWNER_FILE, json.dumps({"format": 1, "identity": identity}).encode(), replace=replace)
    owner = read_owner(folder)
    assert owner is not None
    return owner
