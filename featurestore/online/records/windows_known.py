"""What a reader of windowed records knows beside them: the view's mark, and layouts that are not its own.

Definitions and records change at different times. A record of another layout is read by that layout's document, as far
as it holds what is asked; and where there is no record, only the mark says that there were no events.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from hashlib import blake2b
from math import inf
from time import monotonic
from typing import NamedTuple

from featurestore.errors import DamagedRecordError
from featurestore.online.records.codec import REPUBLISH
from featurestore.online.records.keys import BUCKETS
from featurestore.online.records.reading import FetchValue
from featurestore.windows.layout import Asked, Layout, found_in, layout_from

MARK_SECONDS = 1.0
"""Seconds between two looks at a view's mark, at least, while it is there."""
YOUNG_SECONDS = 1.0
"""So long after a mark came or named another layout, records may have been read before that: longer than any read."""

Learn = Callable[[bytes | None], None]


class _Mark(NamedTuple):
    """What readers need of a mark (`following.mark`)."""

    layout_id: bytes
    covered_us: int
    buckets: int


class Places(NamedTuple):
    """Where asked features are in records of another layout."""

    layout: Layout
    found: tuple[Asked | None, ...]
    """None for a feature that the layout does not hold."""


class Known:
    """What is known of one view's online part, for some features. Not locked: learning twice is harmless."""

    def __init__(
        self,
        mark_key: Callable[[bytes], bytes],
        schema_key: Callable[[bytes], bytes],
        layout: Layout,
        asked: Sequence[Asked],
    ) -> None:
        self._mark_key, self._schema_key = mark_key, schema_key
        self._layout, self._asked = layout, tuple(asked)
        self._marks: dict[bytes, _Mark | None] = {}
        """By bucket; the first one's is that of all records, unless it says that others have their own."""
        self._due_s: dict[bytes, float] = {}
        self._changed_s = -inf
        self.others: dict[bytes, Places] = {}
        """Other layouts by their ids."""

    @property
    def covered_us(self) -> int | None:
        """Until when the view is covered; None while nothing was published, or nobody looked."""
        first = self._first
        return None if first is None else first.covered_us

    @property
    def is_young(self) -> bool:
        """Tell whether a mark came or changed just now: a record that was missing before may be there with it."""
        return monotonic() < self._changed_s + YOUNG_SECONDS

    @property
    def _first(self) -> _Mark | None:
        return self._marks.get(BUCKETS[0])

    def unknown(self, layout_ids: Iterable[bytes], *, needs_mark: bool, buckets: Iterable[bytes]) -> dict[bytes, Learn]:
        """Return the keys to look up, each with the function that takes its value.

        ``buckets`` are those of entities without a record. Their marks are asked for together with the first one,
        unless that is known to be the only one.
        """
        wanted: dict[bytes, Learn] = {}
        first, now_s = self._first, monotonic()
        if needs_mark and (first is None or self.is_young or now_s >= self._due_s[BUCKETS[0]]):
            wanted[self._mark_key(BUCKETS[0])] = partial(self._learn_mark, BUCKETS[0])
        if needs_mark and (first is None or first.buckets > 1):
            for bucket in buckets:
                if bucket != BUCKETS[0] and now_s >= self._due_s.get(bucket, 0.0):
                    wanted[self._mark_key(bucket)] = partial(self._learn_mark, bucket)
        others = {*layout_ids, *(mark.layout_id for mark in self._marks.values() if mark is not None)}
        for other in others - {self._layout.id} - self.others.keys():
            wanted[self._schema_key(other)] = partial(self._learn, other)
        return wanted

    def look_up(
        self, fetch: FetchValue, layout_ids: Iterable[bytes], *, needs_mark: bool, buckets: Collection[bytes]
    ) -> None:
        """Learn what is unknown, now; a mark may name a layout that is unknown too."""
        asked: set[bytes] = set()
        for those in ((), buckets):  # each look-up is a round trip, and the first mark may be the only one
            while wanted := {
                key: learn
                for key, learn in self.unknown(layout_ids, needs_mark=needs_mark, buckets=those).items()
                if key not in asked
            }:
                for key, learn in wanted.items():
                    learn(fetch(key))
                asked |= wanted.keys()

    def is_held(self, bucket: bytes) -> Sequence[bool]:
        """Tell of each feature whether an entity of a bucket that has no record is known to have no events for it."""
        first = self._first
        mark = first if first is not None and first.buckets == 1 else self._marks.get(bucket)
        if mark is None:
            return [False] * len(self._asked)
        if mark.layout_id == self._layout.id:
            return [True] * len(self._asked)
        other = self.others.get(mark.layout_id)
        return [False] * len(self._asked) if other is None else [found is not None for found in other.found]

    def _learn_mark(self, bucket: bytes, value: bytes | None) -> None:
        try:
            document = {} if value is None else json.loads(value)
            mark = _Mark(bytes.fromhex(document["layout"]), int(document["covered_us"]), int(document["buckets"]))
        except (ValueError, KeyError, TypeError):
            mark = None
        if bucket == BUCKETS[0] and mark is not None and self._first is None:
            self._due_s.clear()  # the view was published just now: the others have marks, too
        before = self._marks.get(bucket)
        if mark is not None and (before is None or before.layout_id != mark.layout_id):
            self._changed_s = monotonic()
        self._marks[bucket], self._due_s[bucket] = mark, monotonic() + MARK_SECONDS

    def _learn(self, layout_id: bytes, document: bytes | None) -> None:
        """Take the document of another layout. Raises DamagedRecordError where it is not that."""
        if document is None:
            return
        try:
            if blake2b(document, digest_size=32).digest()[:8] != layout_id:
                raise ValueError("it does not match its own checksum")
            layout = layout_from(document)
        except ValueError as error:
            raise DamagedRecordError(
                f"the online schema {layout_id.hex()} of windows cannot be read: {error}.", hint=REPUBLISH
            ) from None
        self.others[layout_id] = Places(layout, tuple(found_in(layout, self._layout, each) for each in self._asked))
