"""What need not be done again within a moment: this process did it, and others would have to undo it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from weakref import WeakKeyDictionary

from featurestore.online.interface import OnlineReader

MOMENT_SECONDS = 2.0
"""How long a schema counts as being online: `fs gc` in another process, or emptying the store, may remove it."""

_done_at_s: WeakKeyDictionary[OnlineReader, dict[bytes, float]] = WeakKeyDictionary()
"""When this process wrote each schema to a store, and last saw that each part of it is its own."""


@contextmanager
def once_a_moment(online: OnlineReader, what: bytes) -> Iterator[bool]:
    """Say whether something is to be done again, and note that it was done at the end of the block."""
    done_at_s, now_s = _done_at_s.setdefault(online, {}), time.monotonic()
    is_due = now_s >= done_at_s.get(what, -inf) + MOMENT_SECONDS
    yield is_due
    if is_due:
        done_at_s[what] = now_s
