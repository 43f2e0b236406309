"""Old entries of a table's log, out of the way of its readers.

Loading a table lists its log, and every entry costs 7 µs: 70 ms for 10,000, several times per commit. So entries from
before the newest checkpoints move into folders of their own, one per checkpoint. Each has the layout of a table's
folder: its log begins with a checkpoint and ends before the next one, so a version in it opens like any other. The
bytes of an entry never change.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from featurestore.offline.local.files import make_folder, sync_folder
from featurestore.steps import crash_point, reached

ARCHIVED = crash_point("offline.archived", "old entries of the log are in its archive, and still in the log")
LOG_SHORTENED = crash_point("offline.log_shortened", "old entries of the log are only in its archive")

LOG = "_delta_log"
FOLDER = "_archive"
KEPT_CHECKPOINTS = 3
"""So many of the newest checkpoints stay in the log, with the entries after them: somebody may be reading one."""
SETTLED_SECONDS = 60.0
"""Only entries that are so much older than the newest one move: programs of an earlier release, which do not know the
archive, look in the log for the version that they started with."""


class LogArchive:
    """The log of one table folder with its archive; holds no state."""

    def __init__(self, table: Path) -> None:
        self._log = table / LOG
        self._folder = table / FOLDER

    def live(self, number: int) -> Path:
        """Return the path of a version's entry in the log, before it is archived."""
        return self._log / f"{number:020}.json"

    def archived(self, number: int) -> Path | None:
        """Return the path of a version's archived entry, None if there is none."""
        starts = self._starts()
        place = bisect_right(starts, number)
        if not place:
            return None
        path = self._segment(starts[place - 1]) / f"{number:020}.json"
        return path if path.is_file() else None

    def entry(self, number: int) -> Path | None:
        """Return the path of a version's entry, None if it is gone or never existed."""
        live = self.live(number)
        return live if live.is_file() else self.archived(number)

    def move_old(self) -> None:
        """Archive the entries before the newest checkpoints. If it dies in between, every version is readable."""
        files = numbered(self._log)
        limit = self._limit(files)
        if limit is None:
            return
        starts = sorted({0, *self._starts(), *(number for number, path in files if is_checkpoint(path))})
        segments: dict[int, list[Path]] = {}
        for number, path in files:
            if number < limit:
                segments.setdefault(starts[bisect_right(starts, number) - 1], []).append(path)
        for start, paths in segments.items():
            if not self._copy(start, paths):
                return
            reached(ARCHIVED)
            for path in paths:
                path.unlink(missing_ok=True)
            sync_folder(self._log)
            reached(LOG_SHORTENED)

    def unneeded(self, versions: Collection[int]) -> list[Path]:
        """Return the archive's folders that hold none of these versions."""
        needed = {path.parent for number in versions if (path := self.archived(number)) is not None}
        return [path.parent for start in self._starts() if (path := self._segment(start)) not in needed]

    def file_names(self) -> set[str]:
        """Return the names of all data files that the log knows, archived entries included. Reads the whole log."""
        names: set[str] = set()
        live = numbered(self._log)  # read first: an entry that moves in the meantime is found in the archive
        folders = [live, *(numbered(self._segment(start)) for start in self._starts())]
        numbers = {number for files in folders for number, path in files if not is_checkpoint(path)}
        for files in folders:
            first = min((number for number, path in files if not is_checkpoint(path)), default=0)
            is_cut = bool(first) and first - 1 not in numbers  # earlier entries are gone; the checkpoint has them
            for _, path in files:
                with suppress(FileNotFoundError):
                    if not is_checkpoint(path):
                        names.update(_entry_names(path))
                    elif is_cut:
                        names |= checkpoint_names(path)
        return names

    def _limit(self, files: list[tuple[int, Path]]) -> int | None:
        """Return the checkpoint before which everything is old; None if nothing is."""
        checkpoints = sorted({number for number, path in files if is_checkpoint(path)})
        entries = {number: path for number, path in files if not is_checkpoint(path)}
        if len(checkpoints) < KEPT_CHECKPOINTS or not entries:
            return None
        settled_s = entries[max(entries)].stat().st_mtime - SETTLED_SECONDS
        old = checkpoints[: len(checkpoints) - KEPT_CHECKPOINTS + 1]
        begins = [number for number in old if number in entries]
        return max((number for number in begins if entries[number].stat().st_mtime <= settled_s), default=None)

    def _copy(self, start: int, paths: list[Path]) -> bool:
        """Link entries into the archive too; returns False if a cleaner removes the folder in the meantime."""
        segment = self._segment(start)
        make_folder(segment)
        for path in paths:
            try:
                os.link(path, segment / path.name)
            except FileExistsError:  # another writer was quicker, or died here
                continue
            except FileNotFoundError:
                if path.exists():
                    return False
        sync_folder(segment)
        return True

    def _segment(self, start: int) -> Path:
        return self._folder / f"{start:020}" / LOG

    def _starts(self) -> list[int]:
        """Return the first versions of the archive's folders."""
        try:
            return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())
        except (FileNotFoundError, NotADirectoryError):
            return []


def belongs(name: str) -> bool:
    """Tell entries and checkpoints from other files, such as ``….json#1``, linked to its name when it is whole."""
    return name[:20].isdecimal() and name.endswith((".json", ".parquet"))


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """Return the entries and checkpoints of a log, in the order of their versions."""
    try:
        names = sorted(path.name for path in folder.iterdir() if belongs(path.name))
    except FileNotFoundError:
        return []
    return [(int(name[:20]), folder / name) for name in names]


def is_checkpoint(path: Path) -> bool:
    """Tell a checkpoint from an entry."""
    return ".checkpoint" in path.name


def _entry_names(path: Path) -> Iterator[str]:
    """Yield the names of the data files that came and went with a version."""
    for line in path.read_text().splitlines():
        action = json.loads(line)
        for kind in ("add", "remove"):
            if kind in action:
                yield action[kind]["path"]


def checkpoint_names(path: Path) -> set[str]:
    """Return the names of the data files of a checkpoint's version."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows = file.read(columns=["add.path"])["add"].to_pylist()
    return {row["path"] for row in rows if row is not None and row["path"] is not None}
