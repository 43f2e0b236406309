"""How far a view's online part follows its log: `fs_seq` of the last event that is applied, and the commit it is of."""

from __future__ import annotations

import json
from typing import NamedTuple

APPLIED, PUBLISHING = b"applied:{0}", b"publishing:{0}"
"""Keys below a generation's prefix: the mark, and the token of a publish that is under way."""


class Mark(NamedTuple):
    """Every event with this number or a smaller one is online."""

    sequence: int
    version: int
    commit: str
    layout: str = ""
    """The id of the records' layout, in hex: without a record nothing is known of windows that it does not hold."""
    covered_us: int = 0
    """Until when it is known what happened: the end of what was read from the source, or the last push."""

    def to_bytes(self) -> bytes:
        """Return the mark as it is stored."""
        return json.dumps({"format": 1, **self._asdict()}, sort_keys=True).encode()


def mark_from(value: bytes | None) -> Mark | None:
    """Return a stored mark; None for none, and for one that cannot be read."""
    if value is None:
        return None
    try:
        document = json.loads(value)
        number = int(document["sequence"]), int(document["version"])
        return Mark(*number, str(document["commit"]), str(document["layout"]), int(document["covered_us"]))
    except (ValueError, KeyError, TypeError):
        return None
