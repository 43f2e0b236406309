"""Which files a source has: one set of rules about its path, for files that exist and for files that may."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path

from featurestore.definitions import ParquetSource
from featurestore.engine.interface import SourceFile
from featurestore.errors import SourceError, SourceFileError


def find_files(root: Path, source: ParquetSource) -> tuple[SourceFile, ...]:
    """Return the files of a source sorted by path, relative to ``root`` if they are below it.

    Hidden files and folders, and those that start with ``_``, are left out of folders and globs.
    """
    if "://" in source.path:
        raise SourceError(
            f"Source {source.name!r}: {source.path} is not a local path.", hint="Object stores cannot be read yet."
        )
    try:
        found = _found(root, source)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        found = []
    if not found:
        raise SourceFileError(
            f"Source {source.name!r}: {source.path} matches no Parquet file below {root}.",
            hint="Check the path; relative paths start at the feature repo.",
            source=source.name,
            path=source.path,
        )
    return tuple(sorted((_source_file(root, path) for path in found), key=lambda file: file.path))


def _found(root: Path, source: ParquetSource) -> list[Path]:
    path = root / source.path
    if path.is_file():
        return [path]
    base, pattern = _place(root, source)
    names = glob.glob(pattern, root_dir=base, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return [base / name for name in names if not _is_hidden(name, pattern) and (base / name).is_file()]


def would_read(root: Path, source: ParquetSource, path: Path) -> bool:
    """Tell whether `find_files` would return a file at an absolute path, also through a source's links."""
    if "://" in source.path:
        return False
    start, pattern = _split(root, source)
    for folder in (Path(os.path.abspath(start)), start.resolve()):  # noqa: PTH100 - Path.absolute leaves `..` in
        if path.is_relative_to(folder):
            name = path.relative_to(folder)
            if _fits(name.parts, pattern) and not _is_hidden(str(name), _place(root, source)[1]):
                return True
    return False


def top(root: Path, source: ParquetSource) -> Path:
    """Return the folder below which ``name=value`` is a partition; its own name and those above it mean nothing."""
    start, _ = _split(root, source)
    return start.parent if start.is_file() else start


def _place(root: Path, source: ParquetSource) -> tuple[Path, str]:
    """Return a folder, whose characters are never wildcards, and the pattern of the source's files below it."""
    path = Path(source.path)
    if (root / path).is_dir():
        return root / path, "**/*.parquet"
    return root, str(path.relative_to(root)) if path.is_relative_to(root) else source.path


def _split(root: Path, source: ParquetSource) -> tuple[Path, tuple[str, ...]]:
    """Return the beginning of a source's path without wildcards, and the parts that follow."""
    path = root / source.path
    if path.is_file():
        return path, ()
    folder, pattern = _place(root, source)
    parts = Path(pattern).parts
    plain = tuple(takewhile(lambda part: not glob.has_magic(part), parts))
    return folder.joinpath(*plain), parts[len(plain) :]


def _fits(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a pattern matches a name, hidden or not; both as parts of a path."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return _fits(name, pattern[1:]) or (bool(name) and _fits(name[1:], pattern))
    if not name:
        return False
    return (name[0] == pattern[0] or fnmatch(name[0], pattern[0])) and _fits(name[1:], pattern[1:])


def _is_hidden(name: str, pattern: str) -> bool:
    """Tell whether a part of the name that the pattern does not spell out starts with a dot or an underscore."""
    spelled = set(Path(pattern).parts)
    return any(part[0] in "._" and part not in spelled and part not in ("..", ".") for part in Path(name).parts)


def _source_file(root: Path, path: Path) -> SourceFile:
    state = path.stat()
    name, fault = str(path), ""
    if re.search(r"[\udc80-\udcff]", name):
        fault = "is not UTF-8"
    elif "\\" in name and glob.has_magic(name):
        # A pattern cannot hold a backslash, and only a pattern can name the other characters.
        fault = "holds a backslash together with one of * ? ["
    if fault:
        hint = "Rename the file, or the folder."
        raise SourceFileError(f"{name!a} cannot be read: its name {fault}.", hint=hint, path=ascii(name))
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    return SourceFile(shown.as_posix(), f"{state.st_size}\0{state.st_mtime_ns}")  # watermarks hold it in this form


def check_unchanged(root: Path, files: Sequence[SourceFile]) -> None:
    """Raise SourceFileError when a file has changed since it was found."""
    for file in files:
        path = root / file.path
        if not path.is_file() or _source_file(root, path) != file:
            raise SourceFileError(f"{file.path} changed while it was read.", hint="Run it again.", path=file.path)
