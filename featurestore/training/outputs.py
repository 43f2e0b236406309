"""Where a training set may be written: never over a project's data, and never where a source would read it."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.definitions import ParquetSource
from featurestore.errors import NO_SPACE, DiskFullError, InputError
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

_BEGINNINGS = (b"PAR1", b"")
"""How a file begins that may be overwritten: an earlier training set, or an empty file."""


def check_output(
    workspace: Readers, path: str | Path, frame: str | Path | None = None, *, what: str = "a training set is"
) -> None:
    """Raise InputError if writing a training set, or ``what`` else, would destroy another kind of file, or
    feed it to a source.

    ``frame`` is the file of the entity frame, if there is one. A new file and an earlier training set pass.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(
            f"{path} cannot be written: there is no folder {target.parent}.", hint="Make it, or write elsewhere."
        )
    places = _places(target)
    there = _of_a_store(workspace, places) or _of_the_caller(target, frame) or _of_a_source(workspace, target, places)
    if there is not None:
        raise InputError(f"{path} is {there}: {what} not written there.", hint="Choose another path.", path=str(path))


def _places(target: Path) -> set[Path]:
    """Return the file's places: as it is named, and where links lead."""
    named = Path(os.path.abspath(target))  # noqa: PTH100 - Path.absolute leaves `..` in
    return {named, named.parent.resolve() / named.name, target.resolve()}


def _of_a_store(workspace: Readers, places: set[Path]) -> str | None:
    for place in places:
        for setting, own in workspace.places.items():
            if setting == "registry" and place == own:
                return "the registry"
            if setting != "registry" and place.is_relative_to(own):
                return f"in the folder of {setting}, {own}"
    return None


def _of_the_caller(target: Path, frame: str | Path | None) -> str | None:
    if not target.exists():
        return None
    if frame is not None and _is_same(target, frame):
        return "the entity frame"
    if target.is_file():  # not a folder, nor a device
        with target.open("rb") as file:
            if file.read(4) in _BEGINNINGS:
                return None
    return "not a Parquet file"


def _of_a_source(workspace: Readers, target: Path, places: set[Path]) -> str | None:
    # Does not insist on the newest revision: a registry that is down is no reason to lose the rows.
    for source in workspace.recent_snapshot().list(ParquetSource.kind):
        assert isinstance(source, ParquetSource)
        if _is_same(target, workspace.root / source.path):
            return f"a file of source {source.name!r}"
        if any(workspace.engine.sources.reads(source, place) for place in places):
            return f"a file of source {source.name!r}" if target.exists() else f"read by source {source.name!r}"
    return None


def _is_same(target: Path, other: str | Path) -> bool:
    with suppress(OSError, ValueError):  # a query, or a missing file
        return target.samefile(other)
    return False


@contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """Translate what the disk says while a set is written to a file."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFullError(
                f"No space was left for {target}.", hint="Free some space and write it again."
            ) from None
        # Arrow's message names our partial file, which means nothing to the user.
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = f"Check that you may write in {target.parent}, or write elsewhere."
        raise InputError(f"{target} cannot be written: {reason}.", hint=hint, path=str(target)) from None


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield the path of a new file, which takes the place of another one when the block ends: whole or not at all.

    Links are followed: the file that they lead to is replaced. A new file has the mode that the umask leaves, one that
    was there keeps its own. Raises InputError, also for what is no file, such as a device, and DiskFullError.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not _is_file(target):
        hint = "Name a file, or a new one: it is replaced in one step."
        raise InputError(f"{path} is no file that can be replaced.", hint=hint, path=str(path))
    partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.partial")
    try:
        with output_errors(path):
            yield partial
            with suppress(FileNotFoundError):
                partial.chmod(stat.S_IMODE(target.stat().st_mode))
            partial.replace(target)
    finally:
        with suppress(OSError):  # a file that could not be made cannot be removed
            partial.unlink()


def _is_file(target: Path) -> bool:
    """Tell whether it is a regular file, and not the one that standard output or error goes to."""
    with suppress(OSError):
        state = target.stat()
        return stat.S_ISREG(state.st_mode) and not any(os.path.samestat(state, each) for each in _streams())
    return False


def _streams() -> Iterator[os.stat_result]:
    for descriptor in (1, 2):
        with suppress(OSError):  # closed
            yield os.fstat(descriptor)


def write_text(text: str, path: Path) -> None:
    """Write a text file. Raises as `replaced`."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_rows(rows: pa.Table, path: Path) -> None:
    """Write rows to a Parquet file. Raises as `replaced`."""
    import pyarrow.parquet as pq

    with replaced(path) as partial:
        pq.write_table(rows, partial, compression="zstd")
