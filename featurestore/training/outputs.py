"""Where a training set may be written: over nothing that a project lives on, and into nothing that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from glob import has_magic
from pathlib import Path

from featurestore.backends import local_path
from featurestore.definitions import ParquetSource
from featurestore.errors import InputError
from featurestore.workspace import Workspace

_BEGINNINGS = (b"PAR1", b"")
"""Of a file that may be overwritten: an earlier training set, or one that holds nothing."""


def check_output(workspace: Workspace, path: str | Path, frame: str | Path | None = None) -> None:
    """Raise InputError where writing a training set would destroy what is none, or feed it to a source.

    ``frame`` is the file of the entity frame, where there is one. A plain new file and an earlier training set pass.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(
            f"{path} cannot be written: there is no folder {target.parent}.", hint="Make it, or write elsewhere."
        )
    places = _places(target)
    what = _of_a_store(workspace, places) or _of_the_caller(target, frame) or _of_a_source(workspace, target, places)
    if what is not None:
        raise InputError(
            f"{path} is {what}: a training set is not written there.", hint="Choose another path.", path=str(path)
        )


def _places(target: Path) -> set[Path]:
    """Return where the file lies: as it is named, and as links lead to it."""
    named = Path(os.path.abspath(target))  # noqa: PTH100 - Path.absolute leaves `..` in
    return {named, named.parent.resolve() / named.name, target.resolve()}


def _of_a_store(workspace: Workspace, places: set[Path]) -> str | None:
    settings, root = workspace.settings, workspace.root
    folders = {"offline_store": local_path(settings.offline_store.url, root)}
    if settings.online_store.url.lower().startswith("lmdb:"):
        folders["online_store"] = local_path(settings.online_store.url, root)
    for place in places:
        if place == local_path(settings.registry.url, root):
            return "the registry"
        for setting, folder in folders.items():
            if place.is_relative_to(folder):
                return f"in the folder of {setting}, {folder}"
    return None


def _of_the_caller(target: Path, frame: str | Path | None) -> str | None:
    if not target.exists():
        return None
    if frame is not None and _is_same(target, frame):
        return "the entity frame"
    return None if _is_parquet(target) else "no Parquet file"


def _of_a_source(workspace: Workspace, target: Path, places: set[Path]) -> str | None:
    # Not the newest revision at any price: a registry that is away is no reason to lose the rows.
    for source in workspace.recent_snapshot().list(ParquetSource.kind):
        assert isinstance(source, ParquetSource)
        if "://" in source.path:
            continue
        path = workspace.root / source.path
        if _is_same(target, path):
            return f"a file of source {source.name!r}"
        for pattern in _patterns(path, workspace.root):
            if any(_matches(place.parts, pattern) for place in places):
                return f"a file of source {source.name!r}" if target.exists() else f"read by source {source.name!r}"
    return None


def _patterns(path: Path, root: Path) -> Iterator[Sequence[str]]:
    """Yield the parts of a source's path as `engine.sources.find_files` reads it; its own links followed, too."""
    fixed, rest = path, ["**", "*.parquet"] if path.is_dir() else []
    own = len(root.parts) if path.is_relative_to(root) else 0
    first = next((n for n, part in enumerate(path.parts) if n >= own and has_magic(part)), None)
    if first is not None and not path.exists():
        fixed, rest = Path(*path.parts[:first]), list(path.parts[first:])
    yield (*Path(os.path.abspath(fixed)).parts, *rest)  # noqa: PTH100 - as in _places
    yield (*fixed.resolve().parts, *rest)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a path is one that a pattern finds: hidden names, and those with an underscore, are left out."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (
            bool(parts) and parts[0][0] not in "._" and _matches(parts[1:], pattern)
        )
    if not parts:
        return False
    fits = parts[0] == pattern[0] or (parts[0][0] not in "._" and fnmatch(parts[0], pattern[0]))
    return fits and _matches(parts[1:], pattern[1:])


def _is_same(target: Path, other: str | Path) -> bool:
    with suppress(OSError, ValueError):  # a query, or a file that is not there
        return target.samefile(other)
    return False


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        return False  # a folder, a device
    with path.open("rb") as file:
        return file.read(4) in _BEGINNINGS
