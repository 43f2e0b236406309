"""What is wrong with the log of a table that does not open: which entries are missing or damaged, and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from featurestore.errors import OfflineStoreError
from featurestore.offline.interface import TableId
from featurestore.offline.local.archive import belongs, checkpoint_names, is_checkpoint, numbered
from featurestore.tables import parquet_fault

LAST_CHECKPOINT = "_last_checkpoint"
_SHOWN = 5
_LEAST_BYTES = 10
"""The least size of a valid entry, in bytes."""


def has_empty_entry(log: Path) -> bool:
    """Tell whether an entry is empty: the kernel takes that for a version without changes, and rows are lost."""
    with suppress(FileNotFoundError), os.scandir(log) as found:
        for file in found:
            with suppress(FileNotFoundError):  # gone into the archive meanwhile
                if belongs(file.name) and file.stat().st_size < _LEAST_BYTES:
                    return True
    return False


def log_error(table: TableId, log: Path, until: int | None = None) -> OfflineStoreError | None:
    """Return the error about a fault in the log of a version (default: newest); None if there is no visible fault."""
    files = [(number, path) for number, path in numbered(log) if until is None or number <= until]
    entries = {number: path for number, path in files if not is_checkpoint(path)}
    checkpoints = {number: path for number, path in files if is_checkpoint(path)}
    bad = tuple(number for number, path in checkpoints.items() if parquet_fault(path) is not None)
    good = checkpoints.keys() - set(bad)
    start = max(good, default=-1) + 1
    last = max([until or 0, *entries])
    damaged = {number: why for number in range(start, last + 1) if (why := _damage(entries.get(number)))}
    named = _named(log / LAST_CHECKPOINT)
    lost = bad[:1] or ((named,) if named is not None and named not in checkpoints and until is None else ())
    if damaged:
        return _error(table, damaged, *_of_entries(log, damaged, lost, last, is_begun=start > 0))
    for number in lost:
        what = "cannot be read" if bad else f"is not there, but {LAST_CHECKPOINT} names it"
        names = " and ".join([LAST_CHECKPOINT, *(checkpoints[number].name for _ in bad[:1])])
        hint = f"The log is whole without it: delete {names} in {log}, and run the same command again."
        return _error(table, lost, f"the checkpoint of version {number} {what}", hint)
    return None


def _error(table: TableId, versions: Iterable[int], fault: str, hint: str) -> OfflineStoreError:
    message = f"Table {table} cannot be read: {fault}."
    return OfflineStoreError(message, hint=hint, table=str(table), versions=list(versions))


def _of_entries(
    log: Path, damaged: dict[int, str], lost: Sequence[int], last: int, *, is_begun: bool
) -> tuple[str, str]:
    """Return what is wrong with entries, and what to do."""
    first, names = min(damaged), [f"{number:020}.json" for number in damaged]
    told = [f"version {number} ({why})" for number, why in damaged.items()]
    backup = [*names[:_SHOWN], *[f"{len(names) - _SHOWN} more"][: len(names) > _SHOWN]]
    instead = "".join(f", or {number:020}.checkpoint.parquet," for number in lost)
    if first or is_begun:
        and_more = f" and what follows it, up to {last:020}.json," if last > first else ""
        without = f"move {names[0]}{and_more} elsewhere: the table ends with version {first - 1} then"
        if _lacks_files(log, first - 1):
            rebuild = f"fs materialize START END --view {log.parent.parent.name} --rebuild"
            without += (
                f", but files of that version are gone, too. Run `fs repair`, then the `{rebuild}` that it names for "
                "them, which leaves them out"
            )
    else:
        without = f"move the folder {log.parent} elsewhere"
    return (
        f"its log lacks the entry of {', '.join(told[:_SHOWN])}{' and of others' if len(told) > _SHOWN else ''}",
        f"Bring back {', '.join(backup)}{instead} into {log} from a backup. Without one, {without}, and `fs repair` "
        "reads from the source again what is missing; rows that were only pushed are lost.",
    )


def _lacks_files(log: Path, number: int) -> bool:
    """Tell whether data files of a version are gone, as far as the log up to it can be read."""
    names: set[str] = set()
    try:
        for found, path in numbered(log):  # a checkpoint comes behind its entry
            if found <= number and is_checkpoint(path):
                names = checkpoint_names(path)
            elif found <= number:
                for action in map(json.loads, path.read_bytes().splitlines()):
                    names |= {action["add"]["path"]} if "add" in action else set()
                    names -= {action["remove"]["path"]} if "remove" in action else set()
    except (OSError, ValueError, KeyError):
        return False
    return any(not (log.parent / name).exists() for name in names)


def _damage(entry: Path | None) -> str:
    """Return what is wrong with an entry of the log; empty if it is sound."""
    if entry is None:
        return "missing"
    try:
        actions = [json.loads(line) for line in entry.read_bytes().strip().splitlines()]
    except FileNotFoundError:  # gone into the archive meanwhile
        return "missing"
    except ValueError:
        return "damaged"
    if not actions:
        return "empty"
    return "" if all(isinstance(action, dict) for action in actions) else "damaged"


def _named(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the kernel does not need it
