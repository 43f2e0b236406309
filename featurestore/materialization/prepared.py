"""What a commit of a run will do: the rows that it adds, and what it takes away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from featurestore_registry.documents import Interval

from featurestore.engine.interface import StagedRows, Withdrawal
from featurestore.errors import MaterializationError
from featurestore.ledger.runs import RunResult
from featurestore.offline.interface import DataFile, TableVersion
from featurestore.statistics import Added

Confirm = Callable[[str, int], bool]
"""Asked before a rebuild withdraws rows, with the view and the number of rows."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """The span in which rows that the source no longer holds, and damaged files, are withdrawn; whom to ask first."""

    interval: Interval
    confirm: Confirm | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a commit will do, and the version from which that was determined."""

    staged: StagedRows
    withdrawal: Withdrawal
    damaged: list[DataFile]
    base: TableVersion | None
    first_sequence: int
    """The first ``fs_seq`` of the new rows."""

    @property
    def written(self) -> list[Path]:
        """The files to add."""
        return [*self.staged.paths, *self.withdrawal.written]

    @property
    def changes_table(self) -> bool:
        """Tell whether there is anything to commit."""
        return bool(self.written or self.withdrawal.removed or self.damaged)

    def fits(self, version: TableVersion | None) -> bool:
        """Tell whether it can be committed after a version with rows that were pushed, or files merged, since.

        They stay as they are; a row that was pushed and read from the source appears twice, which changes no answer.
        An event would count twice: see `ViewRun._repeats`.
        """
        if version is None or self.base is None:
            return self.base is None and (version is None or version.next_sequence <= self.first_sequence)
        has_same_files = {file.path for file in self.base.files} <= {file.path for file in version.files}
        takes_none = not self.withdrawal.removed and not self.damaged
        has_same_rows = has_same_files or (takes_none and version.rows_kept_since <= self.base.number)
        return has_same_rows and version.next_sequence <= self.first_sequence

    def discard(self) -> None:
        """Remove the files."""
        for path in self.written:
            path.unlink(missing_ok=True)


def added_by(before: TableVersion | None, version: TableVersion, ready: Prepared) -> Added | None:
    """Return what a commit added of the source; files that a rebuild wrote again hold rows with earlier numbers."""
    known = set() if before is None else {file.path for file in before.files}
    files = [f for f in version.files if f.path not in known and f.max_sequence >= ready.first_sequence]
    return Added(version, tuple(files)) if files else None


def ask(view: str, rebuild: Rebuild | None, ready: Prepared, agreed: set[int]) -> None:
    """Ask before rows are withdrawn, unless the number of rows was ``agreed`` to already."""
    damaged_rows = rows_in(ready.damaged)
    rows = ready.withdrawal.rows + damaged_rows
    if rebuild is None or not rows or rows in agreed:
        return
    if rebuild.confirm is None or not rebuild.confirm(view, rows):
        damage = f" and {damaged_rows:,} rows of damaged files" if damaged_rows else ""
        withdrawn = f"{ready.withdrawal.rows:,} rows that its source no longer holds as they were{damage}"
        raise MaterializationError(
            f"Rebuilding {view!r} would withdraw {withdrawn}; nothing was changed.",
            hint="If that is what you want, confirm it (`--yes`).",
            view=view,
            rows=rows,
        )
    agreed.add(rows)


def without(version: TableVersion | None, damaged: list[DataFile]) -> TableVersion | None:
    """Return a version without damaged files."""
    if version is None or not damaged:
        return version
    return replace(version, files=tuple(file for file in version.files if file not in damaged))


def rows_in(files: list[DataFile]) -> int:
    """Return how many rows files hold."""
    return sum(file.rows for file in files)


def left(version: TableVersion | None, withdrawal: Withdrawal) -> tuple[str, ...]:
    """Return the files of a version without what is withdrawn: an event that goes must not stand for its correction."""
    return (*(path for path in paths_of(version) if path not in withdrawal.removed), *map(str, withdrawal.written))


def paths_of(version: TableVersion | None) -> tuple[str, ...]:
    """Return the files of a version."""
    return () if version is None else tuple(file.path for file in version.files)


def counted_in(result: RunResult, ready: Prepared, version: TableVersion | None) -> RunResult:
    """Return a run's result with what a commit does."""
    staged = ready.staged
    return replace(
        result,
        read=staged.read,
        appended=staged.appended,
        duplicates=staged.duplicates,
        unchanged=staged.unchanged,
        null_keys=staged.null_keys,
        null_times=staged.null_times,
        unusable=staged.unusable,
        conflicts=staged.conflicts,
        conflicts_in_source=staged.conflicts_in_source,
        waiting=staged.waiting,
        withdrawn=ready.withdrawal.rows,
        damaged=rows_in(ready.damaged),
        table_version=None if version is None else version.number,
    )
