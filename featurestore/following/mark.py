"""How far a view's online part follows its log: `fs_seq` of the last event that is applied, and the commit it is of.

A store has one mark for all records of a view, or one for each bucket of them: a node of a cluster that lost writes
lost its buckets' marks with them, and is applied to again from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from featurestore.errors import DamagedRecordError
from featurestore.offline.interface import TableVersion
from featurestore.online.interface import DAMAGED, OnlineReader
from featurestore.online.records.keys import mark_key
from featurestore.registered.snapshot import RegisteredView
from featurestore.workspace import Readers


class Mark(NamedTuple):
    """Every event with this number or a smaller one is online."""

    sequence: int
    version: int
    commit: str
    layout: str = ""
    """The id of the records' layout, in hex: without a record nothing is known of windows that it does not hold."""
    covered_us: int = 0
    """Until when it is known what happened: the end of what was read from the source, or the last push."""
    buckets: int = 1
    """How many marks the store has: readers of a missing record go by that of its bucket, where it has one."""

    def to_bytes(self) -> bytes:
        """Return the mark as it is stored."""
        return json.dumps({"format": 1, **self._asdict()}, sort_keys=True).encode()

    def is_behind(self, target: Mark) -> bool:
        """Tell whether a mark has to move to say what the target does."""
        if self.sequence != target.sequence:
            return self.sequence < target.sequence
        is_older = self.version < target.version or self.covered_us < target.covered_us
        return is_older or self.layout != target.layout


def mark_from(value: bytes | None) -> Mark | None:
    """Return a stored mark; None for none, and for one that cannot be read."""
    if value is None:
        return None
    try:
        document = json.loads(value)
        number = int(document["sequence"]), int(document["version"])
        layout, covered_us, buckets = document["layout"], document["covered_us"], document["buckets"]
        return Mark(*number, str(document["commit"]), str(layout), int(covered_us), int(buckets))
    except (ValueError, KeyError, TypeError):
        return None


def read_marks(workspace: Readers, registered: RegisteredView) -> dict[bytes, bytes | None]:
    """Return each bucket's mark as it is stored."""
    online = workspace.online
    keys = [mark_key(registered.online_prefix, bucket) for bucket in online.mark_buckets]
    return dict(zip(online.mark_buckets, plain_values(online, keys), strict=True))


def plain_values(online: OnlineReader, keys: Sequence[bytes]) -> list[bytes | None]:
    """Return plain values, `DAMAGED` for one that is: nobody goes on from it, and the next publish replaces it."""
    try:
        return online.get(keys)
    except DamagedRecordError:
        return [DAMAGED] if len(keys) == 1 else [value for key in keys for value in plain_values(online, [key])]


def known_marks(
    workspace: Readers, registered: RegisteredView, version: TableVersion, stored: Mapping[bytes, bytes | None]
) -> dict[bytes, Mark] | None:
    """Return each bucket's mark; None where nobody knows what the records of a bucket hold.

    Its mark is missing, the log does not know the mark's commit, or events have left the log since.
    """
    found = {bucket: mark_from(value) for bucket, value in stored.items()}
    marks = {bucket: mark for bucket, mark in found.items() if mark is not None}
    if len(marks) < len(found) or any(version.rows_kept_since > mark.version for mark in marks.values()):
        return None
    for number, identity in {(mark.version, mark.commit) for mark in marks.values()}:
        commit = workspace.offline.find_commit(registered.table, number)
        if commit is None or commit.identity != identity:
            return None
    return marks
