"""Events of the log cut into slices: so many that each can be applied at once, each entity's together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from featurestore.following.mark import Mark
from featurestore.following.rows import EventEncoder
from featurestore.online.interface import Append

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

SLICES_AT_ONCE = 16
"""At most so many full slices are sent together, of different buckets."""


@dataclass(slots=True)
class Part:
    """Events of one bucket that are applied together."""

    appends: list[Append] = field(default_factory=list)
    count: int = 0
    last: int = -1
    """The greatest number among them."""


class Slicer:
    """Cuts events, which come in the order of their numbers."""

    def __init__(self, encoder: EventEncoder, marks: Mapping[bytes, Mark], *, most: int, most_of_one: int) -> None:
        """At most ``most`` events a bucket are applied together, ``most_of_one`` of an entity."""
        self._encoder, self._marks, self._most, self._most_of_one = encoder, marks, most, most_of_one
        self._buckets = {bucket: place for place, bucket in enumerate(marks)}

    def parts(self, batches: Iterable[pa.RecordBatch]) -> Iterator[dict[bytes, Part]]:
        """Yield what to apply together, by bucket: the events after each bucket's mark."""
        import numpy as np
        import pyarrow as pa

        buckets = list(self._marks)
        for batch in batches:
            keys, entity, number = self._encoder.numbered(batch)
            bucket_of = np.array([self._bucket(key) for key in keys], np.int64)
            reached = np.array([mark.sequence for mark in self._marks.values()], np.int64)
            is_after = number > reached[bucket_of[entity]]
            if not is_after.all():
                batch, entity, number = batch.filter(pa.array(is_after)), entity[is_after], number[is_after]
            entries, event_us = self._encoder.entries(batch, keys, entity)
            for begin, end in self._cuts(entity, bucket_of[entity]):
                part = defaultdict[bytes, Part](Part)
                order = begin + np.argsort(entity[begin:end], kind="stable")
                of = entity[order]
                begins = np.flatnonzero(np.append(True, of[1:] != of[:-1]))
                newest = np.maximum.reduceat(event_us[order], begins).tolist()
                first, rows = number[order[begins]].tolist(), order.tolist()
                spans = pairwise([*begins.tolist(), len(rows)])
                for place, one, newest_us, (start, stop) in zip(of[begins].tolist(), first, newest, spans, strict=True):
                    events = b"".join([entries[row] for row in rows[start:stop]])
                    mine = part[buckets[bucket_of[place]]]
                    mine.appends.append(self._encoder.append(keys[place], one, events, newest_us))
                    mine.count += stop - start
                    mine.last = max(mine.last, int(number[rows[stop - 1]]))
                yield part

    def _bucket(self, key: bytes) -> int:
        """Return the place of the bucket whose mark says whether a record has an event."""
        return self._buckets[self._encoder.bucket_of(key)] if len(self._buckets) > 1 else 0

    def _cuts(self, entity: npt.NDArray[Any], bucket: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
        import numpy as np

        limits = [(bucket, _ranks(bucket), self._most), (entity, _ranks(entity), self._most_of_one)]
        most = self._most * min(SLICES_AT_ONCE, len(self._buckets))
        taken = [np.zeros(int(codes.max(initial=0)) + 1, np.int64) for codes, _, _ in limits]
        begin = 0
        while begin < len(entity):
            rows = slice(begin, begin + most)
            is_over = np.zeros(len(entity[rows]), np.bool_)
            for (codes, ranks, limit), before in zip(limits, taken, strict=True):
                is_over |= ranks[rows] - before[codes[rows]] >= limit
            end = begin + (int(is_over.argmax()) if is_over.any() else len(is_over))
            yield begin, end
            for (codes, ranks, _), before in zip(limits, taken, strict=True):
                before[codes[begin:end]] = ranks[begin:end] + 1  # of several the last counts
            begin = end


def _ranks(codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return how many equal ones come before each."""
    import numpy as np

    order = np.argsort(codes, kind="stable")
    own = codes[order]
    begins = np.flatnonzero(np.append(True, own[1:] != own[:-1])) if len(own) else order
    ranks = np.empty(len(codes), np.int64)
    ranks[order] = np.arange(len(codes)) - np.repeat(begins, np.diff(np.append(begins, len(codes))))
    return ranks
