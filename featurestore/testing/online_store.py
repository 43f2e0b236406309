"""What every online store must do. Subclass `OnlineStoreConformance` and give it a ``store`` fixture.

    class TestMyStore(OnlineStoreConformance):
        @pytest.fixture
        def store(self, tmp_path):
            ...yield an empty store whose read deadline leaves room for a busy machine

Instants lie around the machine's own clock, because a server expires records by its own.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence

import pytest

from featurestore.errors import OnlineStoreError
from featurestore.online.interface import OnlineStore, Repair, ViewLayout, Write, WriteResult
from featurestore.online.records.codec import expire_at_ms, is_intact, record_times, version_of
from featurestore.online.records.encoder import RecordEncoder
from featurestore.online.records.keys import project_prefix
from featurestore.types import Float32, Int64, String
from featurestore.types.times import system_clock

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US

LAYOUT = ViewLayout("conformance", "drivers", 1, (("driver", String),), (("x", Int64), ("y", Float32)), None)

ODD_ENTITIES = (
    "plain",
    "",
    " ",
    "%",
    "%25",
    "|",
    "a|b",
    "{}",
    "{a}",
    "}",
    ":",
    "*",
    "?",
    "[a-z]",
    "\\",
    "'",
    '"',
    "`; DROP TABLE x --",
    "line\nbreak",
    "\r\n",
    "\x00",
    "a\x00b",
    "é",
    "e\u0301",
    "ñ日本語",
    "\U0001f6eb",
    "x" * 200,
    "x" * 201,
    "x" * 300,
    "\U0001f6eb" * 300,
    "../../etc/passwd",
    "#0123",
)


def record_of(event_us: int, created_us: int | None = None, x: int = 0, *, entity: str = "a") -> Write:
    """Return a write of the suite's own view that never expires."""
    return RecordEncoder(LAYOUT).write([entity], event_us, created_us, [x, 0.5])


def layout_of(view: str, *, project: str = "conformance", generation: int = 1) -> ViewLayout:
    """Return the suite's view under another name."""
    return ViewLayout(project, view, generation, LAYOUT.join_keys, LAYOUT.fields, None)


class OnlineStoreConformance:
    """The suite. A store that passes it can be published to and served from."""

    @pytest.fixture
    def store(self) -> OnlineStore:
        """Return the store under test, empty."""
        raise NotImplementedError

    @pytest.fixture
    def now(self) -> int:
        """Return now in whole milliseconds, as microseconds."""
        return system_clock() // 1000 * 1000

    def test_what_was_written_is_read_in_the_order_of_the_keys(self, store: OnlineStore, now: int) -> None:
        writes = [record_of(now, x=number, entity=f"e{number}") for number in range(2_500)]
        assert store.write(writes, now_us=now) == [WriteResult.WRITTEN] * 2_500
        keys = [write.key for write in reversed(writes)]
        assert store.mget([*keys, b"fs:conformance:drivers:{nobody}"]) == [
            *[write.record for write in reversed(writes)],
            None,
        ]
        assert store.mget([keys[0], keys[0]]) == [writes[-1].record] * 2
        assert store.mget([]) == []
        assert store.get([]) == []
        assert store.write([], now_us=now) == []

    @pytest.mark.parametrize("in_one_call", [True, False])
    def test_the_newest_stays_whatever_the_order_of_arrival(
        self, store: OnlineStore, now: int, in_one_call: bool
    ) -> None:
        # Neighbours differ in each of the four words, in signs, and where texts would sort unlike numbers.
        times = [(now, now), (now, now + 1), (now + 1, now - DAY_US), (now + (1 << 32), -5), (-1, 10**15)]
        versions = [record_of(event, created, x) for x, (event, created) in enumerate(times)]
        newest = max(versions, key=lambda write: record_times(write.record))
        for order in itertools.permutations(versions):
            entity = "".join(str(versions.index(write)) for write in order)
            chosen = [versions.index(write) for write in order]
            moved = [record_of(times[x][0], times[x][1], x, entity=entity) for x in chosen]
            calls = [moved] if in_one_call else [[write] for write in moved]
            results = [result for call in calls for result in store.write(call, now_us=now)]
            expected, best = [], (-(1 << 63), 0)
            for write in moved:
                stays = record_times(write.record) < best
                expected.append(WriteResult.STALE if stays else WriteResult.WRITTEN)
                best = max(best, record_times(write.record))
            assert results == expected
            (stored,) = store.mget([moved[0].key])
            assert stored is not None
            assert record_times(stored) == record_times(newest.record)

    @pytest.mark.parametrize("bit", range(0, 60, 7))
    def test_every_bit_of_a_time_counts(self, store: OnlineStore, now: int, bit: int) -> None:
        base = 0 if bit > 40 else now
        for field in (0, 1):
            low, high = [base, base], [base, base]
            high[field] += 1 << bit
            older = record_of(low[0], low[1], 1, entity=f"f{field}")
            newer = record_of(high[0], high[1], 2, entity=f"f{field}")
            assert store.write([newer], now_us=now) == [WriteResult.WRITTEN]
            assert store.write([older], now_us=now) == [WriteResult.STALE]
            assert store.mget([older.key]) == [newer.record]

    def test_equal_times_replace(self, store: OnlineStore, now: int) -> None:
        for x in (1, 2):
            assert store.write([record_of(now, now, x)], now_us=now) == [WriteResult.WRITTEN]
        assert store.mget([record_of(now).key]) == [record_of(now, now, 2).record]

    def test_every_outcome_in_one_call_stands_in_its_place(self, store: OnlineStore, now: int) -> None:
        outcomes = itertools.cycle(("new", "expired", "newer", "stale", "equal", "twice", "wrong"))
        kinds = {f"e{number:03d}": kind for number, kind in zip(range(70), outcomes, strict=False)}
        old = [record_of(now, x=1, entity=entity) for entity, kind in kinds.items() if kind != "new"]
        store.write(old, now_us=now)
        event_us = {"stale": now - 1, "equal": now, "wrong": now + 1}
        writes: list[Write] = []
        wanted: list[WriteResult] = []
        stored: dict[bytes, bytes | None] = {}
        for entity, kind in kinds.items():
            write = record_of(event_us.get(kind, now + 1), x=2, entity=entity)
            result, stored[write.key] = WriteResult.WRITTEN, write.record
            if kind == "expired":
                write, result, stored[write.key] = write._replace(expire_at_ms=1), WriteResult.EXPIRED, None
            if kind == "stale":
                result, stored[write.key] = WriteResult.STALE, record_of(now, x=1, entity=entity).record
            if kind == "wrong":
                store.delete(write.key)
                store.put(write.key, b"no record")
                result, stored[write.key] = WriteResult.WRONG_TYPE, b"no record"
            writes.append(write)
            wanted.append(result)
            if kind == "twice":
                writes.append(record_of(now, x=3, entity=entity))
                wanted.append(WriteResult.STALE)
        assert store.write(writes, now_us=now) == wanted
        assert store.mget(list(stored)) == list(stored.values())

    def test_a_correction_of_the_same_instant_wins(self, store: OnlineStore, now: int) -> None:
        first, corrected = record_of(now, now, 1), record_of(now, now + 1, 2)
        assert store.write([corrected, first], now_us=now) == [WriteResult.WRITTEN, WriteResult.STALE]
        assert store.mget([first.key]) == [corrected.record]

    def test_a_null_created_time_counts_as_the_event_time(self, store: OnlineStore, now: int) -> None:
        assert record_times(record_of(now).record) == (now, now)
        assert store.write([record_of(now, now + 1), record_of(now, None)], now_us=now)[1] is WriteResult.STALE

    def test_odd_entities_keep_apart_and_come_back(self, store: OnlineStore, now: int) -> None:
        writes = [record_of(now, now, x, entity=entity) for x, entity in enumerate(ODD_ENTITIES)]
        assert len({write.key for write in writes}) == len(ODD_ENTITIES)
        assert set(store.write(writes, now_us=now)) == {WriteResult.WRITTEN}
        assert store.mget([write.key for write in writes]) == [write.record for write in writes]
        scanned = dict(pair for batch in store.scan(RecordEncoder(LAYOUT).keys.prefix) for pair in batch)
        assert scanned == {write.key: write.record for write in writes}
        assert store.delete(RecordEncoder(LAYOUT).keys.prefix) == len(writes)

    def test_large_values(self, store: OnlineStore, now: int) -> None:
        layout = ViewLayout("conformance", "texts", 1, (("id", Int64),), (("text", String),), None)
        encoder = RecordEncoder(layout)
        writes = [encoder.write([number], now, None, ["é" * (500_000 + number)]) for number in range(12)]
        assert set(store.write(writes, now_us=now)) == {WriteResult.WRITTEN}
        for write in writes:
            assert store.mget([write.key]) == [write.record]
        found = dict(pair for batch in store.scan(encoder.keys.prefix) for pair in batch)
        assert found == {write.key: write.record for write in writes}

    def test_records_that_grow_and_shrink(self, store: OnlineStore, now: int) -> None:
        layout = ViewLayout("conformance", "texts", 1, (("id", Int64),), (("text", String),), None)
        encoder = RecordEncoder(layout)
        sizes = (0, 100, 1_900, 2_100, 70_000, 5_000, 100, 70_000, 0)
        for step, _ in enumerate(sizes):
            texts = [str(number % 10) * sizes[(number + step) % len(sizes)] for number in range(40)]
            writes = [encoder.write([number], now + step, None, [text]) for number, text in enumerate(texts)]
            assert set(store.write(writes, now_us=now)) == {WriteResult.WRITTEN}
            late = [encoder.write([number], now - 1, None, ["late"]) for number in range(40)]
            assert set(store.write(late, now_us=now)) == {WriteResult.STALE}
            assert store.mget([write.key for write in writes]) == [write.record for write in writes]

    def test_physical_expiry(self, store: OnlineStore, now: int) -> None:
        lasting, brief = record_of(now, entity="lasting"), record_of(now, entity="brief")
        writes = [
            lasting._replace(expire_at_ms=now // 1000 + 60_000),
            brief._replace(expire_at_ms=system_clock() // 1000 + 300),
        ]
        assert store.write(writes, now_us=now) == [WriteResult.WRITTEN] * 2
        assert store.mget([lasting.key])[0] == lasting.record
        deadline = time.monotonic() + 10
        while store.mget([brief.key]) != [None]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert system_clock() // 1000 >= (writes[1].expire_at_ms or 0)
        assert [key for batch in store.scan(project_prefix("conformance")) for key, _ in batch] == [lasting.key]
        # What has expired holds nothing back.
        older = record_of(now - DAY_US, entity="brief")
        assert store.write([older], now_us=system_clock()) == [WriteResult.WRITTEN]
        assert store.mget([older.key]) == [older.record]

    @pytest.mark.parametrize("expired_at_ms", [-1, 0, 1, None])
    def test_an_expiry_already_past_is_not_written_and_removes_an_older_record(
        self, store: OnlineStore, now: int, expired_at_ms: int | None
    ) -> None:
        expiry = now // 1000 if expired_at_ms is None else expired_at_ms
        older, newer = record_of(now - 2, entity="older"), record_of(now + 2, entity="newer")
        store.write([older, newer], now_us=now)
        past = [record_of(now, entity=entity)._replace(expire_at_ms=expiry) for entity in ("none", "older", "newer")]
        assert store.write(past, now_us=now) == [WriteResult.EXPIRED, WriteResult.EXPIRED, WriteResult.STALE]
        assert store.mget([write.key for write in past]) == [None, None, newer.record]
        again = [past[1], older, past[1], older]
        assert store.write(again, now_us=now) == [WriteResult.EXPIRED, WriteResult.WRITTEN] * 2
        assert store.mget([older.key]) == [older.record]

    def test_expiry_follows_the_ttl(self, store: OnlineStore, now: int) -> None:
        layout = ViewLayout("conformance", "brief", 1, LAYOUT.join_keys, LAYOUT.fields, 2 * DAY_US)
        encoder = RecordEncoder(layout)
        inside = encoder.write(["inside"], now - 4 * DAY_US + 5 * SECOND_US, None, [1, 1.0])
        outside = encoder.write(["outside"], now - 4 * DAY_US, None, [1, 1.0])
        assert outside.expire_at_ms == now // 1000 == expire_at_ms(now - 4 * DAY_US, 2 * DAY_US)
        assert store.write([inside, outside], now_us=now) == [WriteResult.WRITTEN, WriteResult.EXPIRED]
        assert store.mget([inside.key, outside.key]) == [inside.record, None]

    def test_a_key_that_holds_no_record_is_left_alone(self, store: OnlineStore, now: int) -> None:
        keys = RecordEncoder(LAYOUT).keys
        for foreign in (b"x", b"\x02" + bytes(60), bytes(60)):
            store.put(keys.encode(["e3"]), foreign)
            writes = [record_of(now, x=number, entity=f"e{number}") for number in range(6)]
            results = [WriteResult.WRITTEN] * 6
            results[3] = WriteResult.WRONG_TYPE
            assert store.write(writes, now_us=now) == results
            read = store.mget([write.key for write in writes])
            assert read == [foreign if place == 3 else write.record for place, write in enumerate(writes)]

    def test_repairs(self, store: OnlineStore, now: int) -> None:
        for number in range(5):
            store.write([record_of(now, now + number, number, entity=f"e{number}")], now_us=now)
        key = RecordEncoder(LAYOUT).keys.encode
        next_best = [record_of(now - DAY_US, now, 100 + number, entity=f"e{number}") for number in range(5)]
        expired = next_best[4]._replace(expire_at_ms=now // 1000)
        repairs = [
            Repair(key(["e0"]), version_of(now, now), next_best[0]),
            Repair(key(["e1"]), version_of(now, now + 1), None),
            Repair(key(["e2"]), version_of(now, now + 1), next_best[2]),
            Repair(key(["e3"]), version_of(now + 1, now + 3), None),
            Repair(key(["e4"]), version_of(now, now + 4), expired),
            Repair(key(["nobody"]), version_of(now, now), next_best[0]._replace(key=key(["nobody"]))),
        ]
        assert store.repair(repairs, now_us=now) == [True, True, False, False, True, False]
        read = store.mget([key([f"e{number}"]) for number in range(5)] + [key(["nobody"])])
        assert read[0] == next_best[0].record
        assert read[1] is None
        assert [record_times(record) for record in read[2:4] if record] == [(now, now + 2), (now, now + 3)]
        assert read[4:] == [None, None]
        # A second repair of the same record finds it gone.
        assert store.repair(repairs[:2], now_us=now) == [False, False]
        assert store.repair([], now_us=now) == []

    def test_a_repair_keeps_the_expiry_of_its_replacement(self, store: OnlineStore, now: int) -> None:
        store.write([record_of(now)], now_us=now)
        brief = record_of(now - 1)._replace(expire_at_ms=system_clock() // 1000 + 200)
        assert store.repair([Repair(brief.key, version_of(now, now), brief)], now_us=now) == [True]
        deadline = time.monotonic() + 10
        while store.mget([brief.key]) != [None]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def test_plain_values(self, store: OnlineStore) -> None:
        encoder = RecordEncoder(LAYOUT)
        assert store.mget([encoder.schema_key]) == [None]
        for value in (b"", encoder.schema_json):
            store.put(encoder.schema_key, value)
            assert store.mget([encoder.schema_key]) == [value]

    def test_neighbours_survive_a_deletion(self, store: OnlineStore, now: int) -> None:
        layouts = [
            layout_of("a"),
            layout_of("a", generation=2),
            layout_of("a", generation=22),
            layout_of("ab"),
            layout_of("a_"),
            layout_of("b"),
            layout_of("a", project="conformance_2"),
            layout_of("a", project="conformanc"),
        ]
        tempting = [
            b"fs:conformance:[ab]:{x}",
            b"fs:conformance:a*:{x}",
            b"fs:conformance:?:{x}",
            b"fs:conformance:a.2",
        ]
        for layout in layouts:
            encoder = RecordEncoder(layout)
            store.write([encoder.write([entity], now, None, [1, 1.0]) for entity in "xyz"], now_us=now)
            store.put(encoder.schema_key, encoder.schema_json)
        for key in tempting:
            store.put(key, b"neighbour")

        def everything() -> set[bytes]:
            prefixes = {project_prefix(layout.project) for layout in layouts}
            return {key for prefix in prefixes for batch in store.scan(prefix) for key, _ in batch}

        left = everything()
        assert len(left) == 4 * len(layouts) + len(tempting)
        for layout in layouts:
            namespace = RecordEncoder(layout).keys.namespace
            gone = {key for key in left if key.startswith(namespace)}
            assert len(gone) == 4
            assert store.delete(namespace) == 4
            left -= gone
            assert everything() == left
            assert store.delete(namespace) == 0
        for prefix in (b"fs:conformance:[ab]:", b"fs:conformance:a*", b"fs:conformance:?", b"fs:conformance:\\a"):
            assert store.delete(prefix) == sum(key.startswith(prefix) for key in left)
            left = {key for key in left if not key.startswith(prefix)}
            assert everything() == left

    @pytest.mark.parametrize("prefix", [b"", b"*", b"fs:", b"fs:*", b"fs:conformance", b"other:"])
    def test_a_prefix_beyond_one_project_is_refused(self, store: OnlineStore, now: int, prefix: bytes) -> None:
        store.write([record_of(now)], now_us=now)
        with pytest.raises(OnlineStoreError, match="prefix"):
            store.delete(prefix)
        with pytest.raises(OnlineStoreError, match="prefix"):
            list(store.scan(prefix))
        assert store.mget([record_of(now).key]) == [record_of(now).record]

    def test_scanning_and_deleting_many(self, store: OnlineStore, now: int) -> None:
        writes = [record_of(now, x=number, entity=str(number)) for number in range(5_000)]
        store.write(writes, now_us=now)
        batches = list(store.scan(RecordEncoder(LAYOUT).keys.prefix))
        assert len(batches) > 1
        assert dict(pair for batch in batches for pair in batch) == {write.key: write.record for write in writes}
        assert store.delete(RecordEncoder(LAYOUT).keys.prefix) == 5_000
        assert list(store.scan(project_prefix("conformance"))) == []

    def test_four_concurrent_writers(self, store: OnlineStore, now: int) -> None:
        entities = [f"e{number}" for number in range(40)]
        versions = [
            [record_of(now + (step * 7 + writer * 3) % 11, now + writer, step * 10 + writer, entity=entity)]
            for writer in range(4)
            for step in range(8)
            for entity in entities
        ]
        failures: list[BaseException] = []

        def write(part: Sequence[list[Write]]) -> None:
            try:
                for start in range(0, len(part), 20):
                    store.write([write for call in part[start : start + 20] for write in call], now_us=now)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(versions[writer::4],)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        best: dict[bytes, tuple[int, int]] = {}
        offered: set[bytes] = set()
        for (write_,) in versions:
            best[write_.key] = max(best.get(write_.key, (0, 0)), record_times(write_.record))
            offered.add(write_.record)
        for key, record in zip(best, store.mget(list(best)), strict=True):
            assert record is not None
            assert record_times(record) == best[key]
            assert record in offered
            assert is_intact(key, record)

    def test_the_asynchronous_reader(self, store: OnlineStore, now: int) -> None:
        writes = [record_of(now, x=number, entity=f"e{number}") for number in range(300)]
        store.write(writes, now_us=now)

        async def read() -> None:
            reader = store.reader()
            await reader.check()
            assert await reader.mget([]) == []
            calls = [writes[start : start + 3] for start in range(0, 300, 3)]
            answers = await asyncio.gather(*[reader.mget([write.key for write in call]) for call in calls])
            assert answers == [[write.record for write in call] for call in calls]
            assert await reader.mget([writes[0].key, b"fs:conformance:drivers:{nobody}"]) == [writes[0].record, None]
            await reader.close()
            await reader.close()

        asyncio.run(read())

    def test_facts_name_the_server(self, store: OnlineStore) -> None:
        facts = store.facts()
        assert facts["server"]
        assert all(isinstance(value, str) for value in facts.values())

    def test_asking_whether_it_takes_writes_changes_nothing(self, store: OnlineStore, now: int) -> None:
        write = record_of(now)
        store.write([write], now_us=now)
        store.check_writable(project_prefix("conformance"))
        assert not store.is_untouched()
        assert [pair for batch in store.scan(project_prefix("conformance")) for pair in batch] == [write[:2]]

    def test_closing_twice_is_allowed(self, store: OnlineStore, now: int) -> None:
        store.write([record_of(now)], now_us=now)
        store.close()
        store.close()
