"""Events cut into slices: everything after the marks, in order, and never too much at once."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.following.mark import Mark
from featurestore.following.slices import SLICES_AT_ONCE, Slicer
from featurestore.online.interface import Append


class Encoder:
    """Stands in for `EventEncoder`: an event is its number, and a key begins with its bucket."""

    def numbered(self, batch: pa.RecordBatch) -> Any:
        keys = [b"%d-%d" % (key % 3, key) for key in batch["key"].to_pylist()]
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        return list(places), np.array([places[key] for key in keys], np.int64), batch["number"].to_numpy()

    def entries(self, batch: pa.RecordBatch, keys: Any, entity: Any) -> Any:
        return [b" %d" % number for number in batch["number"].to_pylist()], batch["number"].to_numpy() * 10

    def append(self, key: bytes, sequence: int, events: bytes, newest_us: int) -> Append:
        return Append(key, sequence, events, b"", newest_us)

    def bucket_of(self, key: bytes) -> bytes:
        return key[:1]


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize("keys", [1, 4, 300])
def test_events_are_cut_as_often_as_they_must(buckets: int, keys: int) -> None:
    dice = Random(keys * buckets)
    numbers = list(range(50, 550))
    drawn = [dice.randrange(keys) for _ in numbers]
    marks = {b"%d" % place: Mark(60 + 7 * place, 0, "") for place in range(buckets)}
    batches = [
        pa.RecordBatch.from_pydict({"key": drawn[start : start + 170], "number": numbers[start : start + 170]})
        for start in range(0, len(numbers), 170)
    ]
    most, most_of_one, seen = 20, 6, []
    for parts in Slicer(Encoder(), marks, most=most, most_of_one=most_of_one).parts(batches):  # type: ignore[arg-type]
        numbers_of = []
        for bucket, part in parts.items():
            events = {append.key: list(map(int, append.events.split())) for append in part.appends}
            assert len(events) == len(part.appends)
            assert all(buckets == 1 or key[:1] == bucket for key in events)
            for append in part.appends:
                own = events[append.key]
                assert (own, own[0], 10 * own[-1]) == (sorted(own), append.sequence, append.expire_at_ms)
                assert len(own) <= most_of_one
            flat = sorted(number for own in events.values() for number in own)
            assert (len(flat), flat[-1]) == (part.count, part.last)
            assert len(flat) <= most
            numbers_of += flat
        assert len(numbers_of) <= most * min(buckets, SLICES_AT_ONCE)
        assert min(numbers_of) > max(seen, default=0)
        seen += sorted(numbers_of)
    of_bucket = (lambda key: b"0") if buckets == 1 else (lambda key: b"%d" % (key % 3))
    assert seen == [n for n, key in zip(numbers, drawn, strict=True) if n > marks[of_bucket(key)].sequence]
    assert Counter(seen).most_common(1)[0][1] == 1
