"""What every online store that keeps windowed records must do with them.

Subclass `OnlineEventsConformance` and give it a ``store`` fixture, as for `featurestore.testing.online_store`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta

import pytest

from featurestore.definitions import Aggregation, Entity, FeatureView, Field, ParquetSource
from featurestore.online.interface import (
    FOREIGN,
    Advanced,
    Append,
    Fold,
    Move,
    OnlineStore,
    Placed,
    Slice,
    ViewLayout,
    Write,
    WriteResult,
)
from featurestore.online.records.encoder import RecordEncoder
from featurestore.online.records.windowed import decode_event, empty, encode_event, entries_of, head_of, is_intact
from featurestore.types import Float64, Int64
from featurestore.types.times import system_clock
from featurestore.windows.layout import Layout, layout_of
from featurestore.windows.tiles import TileEvent

PREFIX = b"fs:conformance:events:"
MARKER = PREFIX + b"applied:{00}"
SECOND_MS = 1_000


def layout_with(*functions: str) -> Layout:
    """Return the layout of a view with some functions over its one column."""
    made = FeatureView(
        "events",
        entities=[Entity("e", join_keys={"k": Int64})],
        source=ParquetSource("s", "s", "at", "known"),
        schema=[Field("v", Float64)],
        aggregations=[Aggregation("v", function, windows=[timedelta(hours=1)]) for function in functions],
    )
    return layout_of(made)[0]


LAYOUT, OTHER = layout_with("sum"), layout_with("sum", "max")


def key_of(entity: int, bucket: bytes = b"00") -> bytes:
    """Return an entity's key."""
    return PREFIX + b"{%b}%d" % (bucket, entity)


def append(
    entity: int, sequence: int, *, bucket: bytes = b"00", layout: Layout = LAYOUT, expire_at_ms: int | None = None
) -> Append:
    """Return one event, whose value is its number."""
    key = key_of(entity, bucket)
    event = TileEvent(sequence, 1_000 + sequence, 1_000 + sequence, (float(sequence),), 0)
    return Append(key, sequence, encode_event(key, layout, event), empty(key, layout), expire_at_ms)


def with_base(record: bytes, key: bytes, sequence: int) -> bytes:
    """Return a record without newest events that says it has taken the events up to a number."""
    from featurestore.online.records.codec import CRC_BYTES
    from featurestore.online.records.windowed import BASE_AT, checked

    end = head_of(record).tiles_end
    body = record[:BASE_AT] + sequence.to_bytes(8, "little", signed=True) + record[BASE_AT + 8 : end - CRC_BYTES]
    return checked(key, body)


def placed(
    entity: int, sequence: int, *, bucket: bytes = b"00", layout: Layout = LAYOUT, expire_at_ms: int | None = None
) -> Placed:
    """Return a record that has taken the events up to a number."""
    key = key_of(entity, bucket)
    return Placed(key, with_base(empty(key, layout), key, sequence), sequence, expire_at_ms)


def advance(
    store: OnlineStore, before: bytes | None, after: bytes, appends: Sequence[Append]
) -> tuple[Advanced, list[int]]:
    """Append events of the first bucket and move its marker."""
    (done,) = store.advance([Slice([Move(MARKER, before, after)], appends)])
    return done


def place(store: OnlineStore, records: Sequence[Placed]) -> list[WriteResult]:
    """Place records of the first bucket, whoever else does."""
    ((done, results),) = store.place([Slice([], records)])
    assert done is Advanced.DONE
    return results


def sequences(store: OnlineStore, entity: int, bucket: bytes = b"00") -> list[int] | None:
    """Return the numbers of a record's newest events, which must be whole; None without a record."""
    key = key_of(entity, bucket)
    (record,) = store.mget([key])
    if record is None:
        return None
    assert is_intact(key, record)
    return [decode_event(LAYOUT, entry).sequence for entry in entries_of(record)]


class OnlineEventsConformance:
    """The suite."""

    @pytest.fixture
    def store(self) -> OnlineStore:
        """Return the store under test, empty."""
        raise NotImplementedError

    @pytest.fixture
    def now(self) -> int:
        """Return now in whole milliseconds, as microseconds."""
        return system_clock() // 1000 * 1000

    def test_events_and_the_marker_move_together(self, store: OnlineStore) -> None:
        assert store.keeps_events
        first = [append(1, 0), append(2, 1), append(1, 2)]
        done, sizes = advance(store, None, b"2", first)
        size = len(first[0].events)
        assert (done, sizes) == (Advanced.DONE, [size, size, 2 * size])
        assert store.get([MARKER]) == [b"2"]
        for before in (None, b"1", b"", b"22"):
            assert advance(store, before, b"9", [append(3, 9)]) == (Advanced.MOVED, [])
        assert (sequences(store, 1), sequences(store, 2), sequences(store, 3)) == ([0, 2], [1], None)
        assert advance(store, b"2", b"3", []) == (Advanced.DONE, [])

    def test_each_slice_of_a_call_is_done_or_not(self, store: OnlineStore) -> None:
        buckets = [b"00", b"17", b"42", b"77"]
        marks = {bucket: PREFIX + b"applied:{" + bucket + b"}" for bucket in buckets}

        def slice_of(bucket: bytes, before: bytes | None, *appends: Append) -> Slice[Append]:
            return Slice([Move(marks[bucket], before, b"9")], appends)

        other = append(1, 0, bucket=b"42", layout=OTHER)
        place(store, [placed(1, -1, bucket=b"42")])
        done = store.advance(
            [
                slice_of(b"77", None),
                slice_of(b"00", b"1", append(1, 1)),
                slice_of(b"42", None, append(2, 0, bucket=b"42"), other),
                slice_of(b"17", None, append(3, 2, bucket=b"17"), append(4, 3, bucket=b"17")),
            ],
        )
        size = len(append(3, 2, bucket=b"17").events)
        assert done[:3] == [(Advanced.DONE, []), (Advanced.MOVED, []), (Advanced.OTHER_LAYOUT, [])]
        assert done[3] == (Advanced.DONE, [size, size])
        assert store.get(list(marks.values())) == [None, b"9", None, b"9"]
        assert sequences(store, 1) is sequences(store, 2, b"42") is None
        assert (sequences(store, 3, b"17"), sequences(store, 4, b"17")) == ([2], [3])
        assert store.advance([]) == []

    def test_records_are_placed_with_a_token_or_not_at_all(self, store: OnlineStore) -> None:
        tokens = {bucket: PREFIX + b"publishing:{" + bucket + b"}" for bucket in (b"01", b"50")}

        def slices(before: bytes | None, after: bytes, sequence: int) -> list[Slice[Placed]]:
            return [
                Slice([Move(token, before, after)], [placed(1, sequence, bucket=bucket)])
                for bucket, token in tokens.items()
            ]

        written = (Advanced.DONE, [WriteResult.WRITTEN])
        assert store.place(slices(None, b"a", 5)) == [written, written]
        store.put(tokens[b"50"], b"another")
        assert store.place(slices(b"a", b"b", 6)) == [written, (Advanced.MOVED, [])]
        heads = [head_of(record) for record in store.mget([key_of(1, bucket) for bucket in tokens]) if record]
        assert [head.base_sequence for head in heads] == [6, 5]
        # After a lost connection nobody knows whether it was placed: it is placed again, without harm.
        assert store.place(slices(b"a", b"b", 6)[:1]) == [written]
        # A mark and a token move together.
        mark = PREFIX + b"applied:{50}"
        for before, done in ((b"a", Advanced.MOVED), (b"another", Advanced.DONE)):
            moves = [Move(tokens[b"50"], before, b"over"), Move(mark, None, b"7")]
            assert store.advance([Slice(moves, [])]) == [(done, [])]
        assert store.get([mark, tokens[b"50"]]) == [b"7", b"over"]

    def test_an_event_that_is_in_the_tiles_is_not_appended(self, store: OnlineStore) -> None:
        limit = 1 << 32  # where the lower half of a number starts again
        assert place(store, [placed(1, limit + 5)]) == [WriteResult.WRITTEN]
        numbers = [4, limit + 4, limit + 5, limit + 6, 2 * limit]
        done, sizes = advance(store, None, b"x", [append(1, number) for number in numbers])
        assert done is Advanced.DONE
        assert [size > 0 for size in sizes] == [False, False, False, True, True]
        assert sequences(store, 1) == [limit + 6, 2 * limit]

    def test_another_layout_changes_nothing(self, store: OnlineStore, now: int) -> None:
        advance(store, None, b"0", [append(1, 0)])
        new = [append(2, 1, layout=OTHER), append(1, 2, layout=OTHER)]
        assert advance(store, b"0", b"2", new) == (Advanced.OTHER_LAYOUT, [])
        assert (sequences(store, 1), sequences(store, 2), store.get([MARKER])) == ([0], None, [b"0"])
        plain = RecordEncoder(ViewLayout("conformance", "events", 1, (("k", Int64),), (("v", Float64),), None))
        others = [Write(key, plain.encode(key, now, now, [1.0]), None) for key in (key_of(3), key_of(1))]
        store.write(others[:1], now_us=now)
        assert store.write(others[1:], now_us=now) == [WriteResult.WRONG_TYPE]
        store.put(key_of(4), b"something else")
        new = [append(entity, number) for number, entity in enumerate((3, 1, 4, 3, 2), 1)]
        assert place(store, [placed(3, 2), placed(4, 2)]) == [WriteResult.WRONG_TYPE] * 2
        # What holds something else is left alone, and holds up no other.
        done, sizes = advance(store, b"0", b"5", new)
        size = len(new[0].events)
        assert (done, sizes) == (Advanced.DONE, [FOREIGN, 2 * size, FOREIGN, FOREIGN, size])
        assert (sequences(store, 1), sequences(store, 2)) == ([0, 2], [5])
        assert store.mget([key_of(3), key_of(4)]) == [others[0].record, b"something else"]

    def test_a_fold_keeps_what_came_since(self, store: OnlineStore) -> None:
        advance(store, None, b"1", [append(1, 0), append(1, 1)])
        (old,) = store.mget([key_of(1)])
        assert old is not None
        advance(store, b"1", b"2", [append(1, 2)])
        new = placed(1, 1).record
        absent = Fold(key_of(2), old, new, None)
        assert store.fold([Fold(key_of(1), old, new, None), absent]) == [True, False]
        assert sequences(store, 1) == [2]
        assert store.fold([Fold(key_of(1), old, new, None)]) == [False]
        assert store.fold([]) == []

    def test_a_record_of_the_log_takes_the_place_of_an_older_one(self, store: OnlineStore) -> None:
        appends = [append(1, 0), append(1, 5), append(2, 6), append(1, 7)]
        advance(store, None, b"7", appends)
        assert place(store, [placed(1, 5), placed(2, 5), placed(3, 5)]) == [WriteResult.WRITTEN] * 3
        assert (sequences(store, 1), sequences(store, 2), sequences(store, 3)) == ([7], [6], [])
        (record,) = store.mget([key_of(1)])
        assert record is not None
        assert head_of(record).base_sequence == 5
        assert place(store, [placed(1, 4), placed(1, 5)]) == [WriteResult.STALE, WriteResult.WRITTEN]
        # Newest events of another layout cannot be kept: the record must come from a log that has them.
        assert place(store, [placed(1, 6, layout=OTHER)]) == [WriteResult.STALE]
        assert place(store, [placed(1, 7, layout=OTHER)]) == [WriteResult.WRITTEN]
        assert sequences(store, 1) == []

    def test_an_expiry_only_moves_to_later(self, store: OnlineStore, now: int) -> None:
        soon, later = now // 1000 + 200, now // 1000 + 600 * SECOND_MS
        advance(
            store,
            None,
            b"4",
            [
                append(1, 0, expire_at_ms=soon),
                append(1, 1, expire_at_ms=later),
                append(2, 2, expire_at_ms=soon),
                append(3, 3, expire_at_ms=later),
                append(3, 4, expire_at_ms=soon),
                append(4, 4, expire_at_ms=now // 1000 - 1),
                append(5, 4, expire_at_ms=soon),
                append(6, 4, expire_at_ms=soon),
            ],
        )
        assert sequences(store, 4) is None
        (old,) = store.mget([key_of(5)])
        assert old is not None
        store.fold([Fold(key_of(5), old, placed(5, 4).record, later)])
        place(store, [placed(6, 2, expire_at_ms=later), placed(7, 2, expire_at_ms=now // 1000 - 1)])
        self.wait_until(store, soon)
        assert [sequences(store, entity) for entity in (1, 2, 3, 5, 6, 7)] == [[0, 1], None, [3, 4], [], [4], None]
        # After an expiry an entity begins anew, perhaps with what it had.
        advance(store, b"4", b"9", [append(2, 9)])
        assert (sequences(store, 2) or [])[-1:] == [9]

    def test_a_damaged_record_gives_way(self, store: OnlineStore) -> None:
        advance(store, None, b"1", [append(1, 0), append(1, 1)])
        (found,) = store.mget([key_of(1)])
        assert found is not None
        end = head_of(found).tiles_end
        far = (1 << 60).to_bytes(8, "little")
        broken = [found[:8] + far + found[16:], found[:end] + b"\xff" + found[end + 1 :], found[:-9], found[:20]]
        records = dict(enumerate(broken, 1))
        place(store, [Placed(key_of(entity), damaged, 1 << 62, None) for entity, damaged in records.items()])
        # Events that are appended meanwhile stay; the first record says that it has them, and is believed.
        _, sizes = advance(store, b"1", b"2", [append(entity, 2) for entity in records])
        assert (sizes[0], sizes[1] > 0) == (0, True)
        assert place(store, [placed(1, 1)]) == [WriteResult.STALE]
        anew = [placed(entity, 1)._replace(damaged=damaged) for entity, damaged in records.items()]
        assert place(store, anew) == [WriteResult.WRITTEN] * 4
        stayed = [[2] if size > 0 else [] for size in sizes]
        assert [sequences(store, entity) for entity in records] == stayed
        # What is whole by now is not taken for what was damaged.
        assert place(store, [placed(2, 0)._replace(damaged=records[2])]) == [WriteResult.STALE]

    def test_a_clock_that_is_ahead_removes_nothing(self, store: OnlineStore, now: int) -> None:
        later, ahead = now // 1000 + 3_600 * SECOND_MS, now + 30 * 3_600 * SECOND_MS * 1000
        advance(store, None, b"1", [append(1, 0, expire_at_ms=later), append(2, 1, expire_at_ms=later)])
        place(store, [placed(3, 1, expire_at_ms=later)])
        plain = RecordEncoder(ViewLayout("conformance", "plain", 1, (("k", Int64),), (("v", Float64),), None))
        for _ in range(2):
            store.write([Write(PREFIX + b"{00}plain", plain.encode(b"", now, now, [1.0]), None)], now_us=ahead)
            store.sweep(now_us=ahead)
        assert [sequences(store, entity) for entity in (1, 2, 3)] == [[0], [1], []]

    def wait_until(self, store: OnlineStore, instant_ms: int) -> None:
        """Wait until the store's clock is past an instant."""
        import time

        while system_clock() // 1000 <= instant_ms:
            time.sleep(0.02)

    def test_of_two_that_apply_one_commit_one_does(self, store: OnlineStore) -> None:
        advance(store, None, b"-1", [])
        outcomes: list[Advanced] = []

        def apply() -> None:
            for number in range(20):
                appends = [append(entity, number) for entity in range(5)]
                done, _ = advance(store, b"%d" % (number - 1), b"%d" % number, appends)
                outcomes.append(done)
                while store.get([MARKER]) == [b"%d" % (number - 1)]:
                    pass

        threads = [threading.Thread(target=apply) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count(Advanced.DONE) == 20
        assert [sequences(store, entity) for entity in range(5)] == [list(range(20))] * 5

    def test_events_of_one_entity_come_together(self, store: OnlineStore) -> None:
        place(store, [placed(1, 2), placed(2, 9), placed(3, 0)])
        appends = []
        for entity in range(1, 5):
            own = [append(entity, number) for number in range(1, 5)]
            appends.append(own[0]._replace(events=b"".join(each.events for each in own)))
        done, sizes = advance(store, None, b"4", appends)
        size = len(append(1, 1).events)
        assert (done, sizes) == (Advanced.DONE, [2 * size, 0, 4 * size, 4 * size])
        assert [sequences(store, entity) for entity in range(1, 5)] == [[3, 4], [], [1, 2, 3, 4], [1, 2, 3, 4]]

    def test_many_events_in_one_call(self, store: OnlineStore) -> None:
        appends = [append(number % 700, number) for number in range(2_100)]
        done, sizes = advance(store, None, b"x", appends)
        assert (done, len(sizes)) == (Advanced.DONE, 2_100)
        assert all(sequences(store, entity) == [entity, entity + 700, entity + 1_400] for entity in range(700))
        written = place(store, [placed(entity, 1_399) for entity in range(1_500)])
        assert written == [WriteResult.WRITTEN] * 1_500
        assert sequences(store, 3) == [1_403]
        assert store.delete(PREFIX) == 1_501
