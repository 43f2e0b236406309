"""The embedded store under kills, truncation, flipped bits, a full map, a full disk, forks and many readers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from support.disks import small_disk, small_files

from featurestore.errors import (
    DamagedRecordError,
    OnlineStoreError,
    OnlineStoreFullError,
    OnlineStoreUnavailableError,
)
from featurestore.online.interface import Repair, ViewLayout, Write, WriteResult
from featurestore.online.lmdb.store import LmdbStore
from featurestore.online.records.codec import is_intact, record_times, version_of
from featurestore.online.records.encoder import RecordEncoder
from featurestore.testing.online_store import LAYOUT, record_of
from featurestore.types import Int64, String
from featurestore.types.times import system_clock

NOW = system_clock()
REBUILD = "fs materialize --republish --authoritative"
TEXTS = ViewLayout("conformance", "texts", 1, (("id", Int64),), (("x", Int64), ("text", String)), None)

# What a killed writer does: versions of 300 entities, without end.
WRITER = """
import sys
from featurestore.online.lmdb.store import LmdbStore
from featurestore.testing.online_store import record_of
store, now = LmdbStore(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
version = 0
while True:
    version += 1
    store.write([record_of(now + version, x=version, entity=f"e{n}") for n in range(300)], now_us=now)
"""


def records(count: int, *, version: int = 0) -> list[Write]:
    return [record_of(NOW + version, x=version, entity=f"e{number}") for number in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "online"


def test_a_folder_not_yet_there_is_an_empty_store(folder: Path) -> None:
    store = LmdbStore(folder / "deep" / "down")
    assert store.mget([records(1)[0].key]) == [None]
    asyncio.run(store.reader().check())
    assert list(store.scan(b"fs:p:")) == []
    assert LmdbStore(folder / "deep" / "down").mget([records(1)[0].key]) == [None]


WRITING: dict[str, Callable[[LmdbStore], object]] = {
    "write": lambda store: store.write(records(3), now_us=NOW),
    "repair": lambda store: store.repair([Repair(records(1)[0].key, version_of(NOW, NOW), None)], now_us=NOW),
    "put": lambda store: store.put(b"fs:p:v:marker", b"1"),
    "delete": lambda store: store.delete(b"fs:p:v:"),
    "sweep": lambda store: (store.put(b"fs:p:v:marker", b"1"), store.sweep(now_us=NOW)),
}


@pytest.mark.parametrize("call", WRITING)
@pytest.mark.parametrize("is_new", [True, False])
def test_what_was_written_is_synced_before_the_call_returns(folder: Path, call: str, is_new: bool) -> None:
    """No test survives a power cut, so this one looks at what the library is told: its calls are real, and recorded."""
    store = LmdbStore(folder)
    if not is_new:
        store.put(b"fs:p:v:earlier", b"1")
    calls: list[str] = []

    def record(frame: Any, event: str, called: Any) -> None:
        if event == "c_call" and isinstance(getattr(called, "__self__", None), lmdb.Environment | lmdb.Transaction):
            calls.append(f"{type(called.__self__).__name__}.{called.__name__}")

    sys.setprofile(record)
    try:
        WRITING[call](store)
    finally:
        sys.setprofile(None)
    ends = [place for place, name in enumerate(calls) if name == "Transaction.__exit__"]
    assert ends
    assert "Environment.sync" in calls[ends[-1] :], calls
    # Within a transaction the library syncs the pages before the meta page that points to them.
    flags = store._open().flags()
    assert (flags["sync"], flags["writemap"], flags["map_async"]) == (True, False, False)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_its_owner_alone_may_read_a_new_store_and_an_older_one_keeps_its_modes(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        LmdbStore(folder).put(b"fs:p:v:x", b"1")
        files = [folder / "data.mdb", folder / "lock.mdb"]
        assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
        for file in files:
            file.chmod(0o664)
        LmdbStore(folder).put(b"fs:p:v:x", b"2")
        assert [file.stat().st_mode & 0o777 for file in files] == [0o664, 0o664]
    finally:
        os.umask(before)


def test_a_folder_that_cannot_be_made_is_unavailable(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(OnlineStoreUnavailableError, match="online"):
        LmdbStore(folder).mget([b"fs:p:v:{a}"])


def test_two_stores_of_one_process_share_the_file(folder: Path) -> None:
    first, second = LmdbStore(folder), LmdbStore(folder)
    first.write(records(3), now_us=NOW)
    first.close()
    assert second.mget([records(1)[0].key]) == [records(1)[0].record]
    assert first.mget([records(1)[0].key]) == [records(1)[0].record]


def test_a_replaced_folder_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.online.lmdb.store._RECHECK_SECONDS", 0.0)
    store = LmdbStore(folder)
    store.write(records(3), now_us=NOW)
    shutil.rmtree(folder)
    assert store.mget([records(1)[0].key]) == [None]
    assert store.write(records(3), now_us=NOW) == [WriteResult.WRITTEN] * 3
    assert store.mget([records(1)[0].key]) == [records(1)[0].record]


def test_a_file_that_is_moved_over_is_noticed(folder: Path, tmp_path: Path) -> None:
    other, key = tmp_path / "other", records(1)[0].key
    LmdbStore(other).write(records(3, version=9), now_us=NOW)
    store, second = LmdbStore(folder), LmdbStore(folder)
    for each in (store, second):
        each.write(records(3), now_us=NOW)
    (other / "data.mdb").rename(folder / "data.mdb")
    ends = time.monotonic() + 10
    while True:  # a moment of errors is allowed, while the other store has the old file
        with contextlib.suppress(OnlineStoreUnavailableError):
            if store.mget([key]) == [records(1, version=9)[0].record]:
                break
        with contextlib.suppress(OnlineStoreUnavailableError):
            second.mget([key])
        assert time.monotonic() < ends
    for each in (store, second):
        assert each.write(records(3, version=10), now_us=NOW) == [WriteResult.WRITTEN] * 3
    script = "import sys; from featurestore.online.lmdb.store import LmdbStore; " + (
        "print(LmdbStore(sys.argv[1]).mget([sys.argv[2].encode()]))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", script, str(folder), key.decode()], capture_output=True, text=True, check=True
    )
    assert seen.stdout.strip() == str([records(1, version=10)[0].record])


def test_killed_writers_tear_nothing(folder: Path) -> None:
    keys = [write.key for write in records(300)]
    store = LmdbStore(folder)
    store.write(records(300), now_us=NOW)
    chance = random.Random(3)
    seen, reads = 0, 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(NOW)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            before, end = seen, None
            while end is None or time.monotonic() < end:
                if end is None and seen > before:  # it writes
                    end = time.monotonic() + chance.random() * 0.2
                versions = {record_times(record or b"")[0] - NOW for record in store.mget(keys)}
                # One snapshot of one transaction: a single version, and never an earlier one.
                assert len(versions) == 1
                assert min(versions) >= seen
                seen, reads = min(versions), reads + 1
            writer.send_signal(signal.SIGKILL)
    reopened = subprocess.run(
        [sys.executable, "-c", WRITER.replace("while True", "for _ in range(1)"), str(folder), str(NOW)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert reopened.stderr == ""
    found = store.mget(keys)
    assert len(set(map(record_times, filter(None, found)))) == 1
    assert seen > 0
    assert reads > 20


def read_for_a_while(path: str, results: Any, begin: Any) -> None:
    store = LmdbStore(path)
    keys = [write.key for write in records(50)]
    with store._transaction():  # a slot of the reader table, and a view of the file as it was
        results.put(store._open().info()["num_readers"])
        begin.wait(60)
    for _ in range(30):
        found = store.mget(keys)
        assert len({record_times(record)[0] for record in found if record}) == 1
        assert len(found) == 50


@pytest.mark.slow(3)
@pytest.mark.uncounted
def test_a_hundred_and_forty_readers_and_two_writers(folder: Path) -> None:
    count = 140
    store = LmdbStore(folder)
    store.write(records(50), now_us=NOW)
    context = multiprocessing.get_context("fork")  # the parent's store is open: each child opens its own
    results, begin = context.Queue(), context.Event()
    readers = [context.Process(target=read_for_a_while, args=(str(folder), results, begin)) for _ in range(count)]
    for reader in readers:
        reader.start()
    assert max(results.get(timeout=60) for _ in readers) >= count  # all hold a slot of the reader table at once
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(NOW)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        begin.set()
        for version in range(20):
            store.write(records(300, version=version), now_us=NOW)
        for reader in readers:
            reader.join(60)
            assert reader.exitcode == 0
        writer.kill()


def test_readers_that_died_leave_no_slot(folder: Path) -> None:
    store = LmdbStore(folder)
    store.write(records(1), now_us=NOW)
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            LmdbStore(folder).mget([records(1)[0].key])
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    store.write(records(1), now_us=NOW)
    assert int(store.facts()["readers"]) <= 2
    assert store.facts()["max_readers"] == "1024"


@pytest.mark.parametrize("way", ["read", "write"])
def test_slots_of_the_dead_are_taken_when_none_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr("featurestore.online.lmdb.environment.MAX_READERS", 2)
    store = LmdbStore(folder)
    store.write(records(1), now_us=NOW)
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            _ = LmdbStore(folder)._open().begin()  # held until the end
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    if way == "read":
        assert store.mget([records(1)[0].key]) == [records(1)[0].record]
    else:
        assert [len(batch) for batch in store.scan(b"fs:conformance:")] == [1]


def test_opened_before_a_fork(folder: Path) -> None:
    store = LmdbStore(folder)
    store.write(records(10), now_us=NOW)
    pid = os.fork()
    if pid == 0:
        answers = store.mget([records(1)[0].key]) == [records(1)[0].record]
        answers = answers and set(store.write(records(10, version=1), now_us=NOW)) == {WriteResult.WRITTEN}
        store.close()
        os._exit(0 if answers else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert store.mget([records(1)[0].key]) == [records(1, version=1)[0].record]
    assert set(store.write(records(10, version=2), now_us=NOW)) == {WriteResult.WRITTEN}


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1, 0.0001])
def test_a_truncated_file_is_refused_with_the_way_to_rebuild_it(folder: Path, kept: float) -> None:
    store = LmdbStore(folder)
    store.write(records(5_000), now_us=NOW)
    store.close()
    file = folder / "data.mdb"
    os.truncate(file, int(file.stat().st_size * kept))
    for action in (lambda: LmdbStore(folder).mget([b"fs:p:v:{a}"]), LmdbStore(folder).facts):
        with pytest.raises(DamagedRecordError) as raised:
            action()
        assert REBUILD in str(raised.value)
        assert str(folder) in str(raised.value)
    shutil.rmtree(folder)
    assert LmdbStore(folder).write(records(5), now_us=NOW) == [WriteResult.WRITTEN] * 5


@pytest.mark.parametrize("content", [b"x" * 10_000, bytes(10_000), b"short"])
def test_a_foreign_file_is_refused(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / "data.mdb").write_bytes(content)
    with pytest.raises(DamagedRecordError, match=REBUILD):
        LmdbStore(folder).mget([b"fs:p:v:{a}"])


def test_a_file_of_another_format_is_refused(folder: Path) -> None:
    import lmdb

    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"\x00format", b"2")
    with pytest.raises(DamagedRecordError, match="format"):
        LmdbStore(folder).mget([b"fs:p:v:{a}"])


def flipped(whole: bytes, content: bytes, place: int, mask: int) -> bytes:
    """Return a file with a bit flipped ``place`` bytes behind every copy of the content: old pages hold some."""
    changed, start = bytearray(whole), whole.find(content)
    while start >= 0:
        changed[start + place] ^= mask
        start = whole.find(content, start + 1)
    return bytes(changed)


def failure_of(store: LmdbStore, key: bytes) -> DamagedRecordError | None:
    try:
        store.mget([key])
    except DamagedRecordError as error:
        return error
    return None


def test_flipped_bits_are_caught_by_the_checksum(folder: Path) -> None:
    encoder = RecordEncoder(TEXTS)
    writes = [encoder.write([n], NOW, None, [n, "t" * 40]) for n in range(50)]
    writes = [write._replace(expire_at_ms=NOW // 1000 + 10**7) for write in writes]
    schema = encoder.schema_key
    store = LmdbStore(folder)
    store.write(writes, now_us=NOW)
    store.put(schema, encoder.schema_json)
    store.close()
    whole = (folder / "data.mdb").read_bytes()
    chance = random.Random(5)
    caught = 0
    for write in writes[:12]:
        for first, length in ((0, len(write.record)), (-16, 8)):
            place = first + chance.randrange(length)
            (folder / "data.mdb").write_bytes(flipped(whole, write.record, place, 1 << chance.randrange(8)))
            damaged = LmdbStore(folder)
            error = failure_of(damaged, write.key)
            if error is not None:
                assert REBUILD in str(error)
                assert repr(write.key) in str(error)
                caught += 1
            else:
                (read,) = damaged.mget([write.key])
                # A later expiry than was meant hides nothing: the reader's own clock judges the age.
                assert read == write.record
                assert place < 0
            # A damaged record holds back no older one, as the way to rebuild it would otherwise be closed.
            if place >= 0:
                older = encoder.write([0], NOW - 1, None, [1, ""])._replace(key=write.key)
                older = older._replace(record=encoder.encode(write.key, NOW - 1, None, [1, ""]))
                assert damaged.write([older], now_us=NOW) == [WriteResult.WRITTEN]
                assert damaged.mget([write.key]) == [older.record]
            damaged.close()
    assert caught >= 12
    (folder / "data.mdb").write_bytes(flipped(whole, encoder.schema_json, 3, 1))
    with pytest.raises(DamagedRecordError, match="schema"):
        LmdbStore(folder).mget([schema])
    scanned = dict(pair for batch in LmdbStore(folder).scan(encoder.keys.prefix) for pair in batch)
    assert all(is_intact(key, record) for key, record in scanned.items())


def test_a_full_map_names_itself_and_keeps_what_was_there(folder: Path) -> None:
    store = LmdbStore(folder, map_bytes=1 << 20)
    store.write(records(100), now_us=NOW)
    large = [RecordEncoder(TEXTS).write([number], NOW, None, [number, "x" * 100_000]) for number in range(100)]
    with pytest.raises(OnlineStoreFullError, match="fs gc"):
        store.write(large, now_us=NOW)
    assert store.mget([write.key for write in records(100)]) == [write.record for write in records(100)]
    store.close()
    # More room, as a later release or a larger disk would give, and the next run completes.
    roomy = LmdbStore(folder)
    assert set(roomy.write(large, now_us=NOW)) == {WriteResult.WRITTEN}


@pytest.mark.parametrize("limit", ["disk", "quota"])
def test_a_full_disk_is_told_and_the_next_run_completes(folder: Path, limit: str) -> None:
    with contextlib.ExitStack() as stack:
        if limit == "disk":  # a quota too where no disk may be mounted
            stack.enter_context(small_disk(folder, size="500k"))
        store = LmdbStore(folder)
        store.write(records(100), now_us=NOW)
        with small_files((folder / "data.mdb").stat().st_size + 50_000 if limit == "quota" else 450_000):
            with pytest.raises(OnlineStoreFullError, match="MiB left"):
                store.write(records(5_000, version=1), now_us=NOW)
            for reader in (store, LmdbStore(folder)):
                found = reader.mget([write.key for write in records(100)])
                assert found == [write.record for write in records(100)]
        if limit == "disk" and os.path.ismount(folder):
            subprocess.run(["mount", "-o", "remount,size=50m", str(folder)], check=True)
        assert set(store.write(records(5_000, version=1), now_us=NOW)) == {WriteResult.WRITTEN}
        store.close()
        assert LmdbStore(folder).mget([records(1)[0].key]) == [records(1, version=1)[0].record]


def test_what_only_reads_makes_no_folder(folder: Path) -> None:
    store, there = LmdbStore(folder / "mistyped"), folder.exists()
    assert store.is_untouched()
    key = records(1)[0].key
    assert store.mget([key, b"fs:p:v:{a}"]) == store.get([key, b"fs:p:v:{a}"]) == [None, None]
    assert asyncio.run(store.reader().mget([key])) == [None]
    asyncio.run(store.reader().check())
    assert list(store.scan(b"fs:p:")) == []
    assert store.facts()["path"] == str(folder / "mistyped")
    assert not (folder / "mistyped").exists()
    assert folder.exists() == there
    store.write(records(1), now_us=NOW)
    assert not store.is_untouched()
    assert store.mget([key]) == [records(1)[0].record]
    assert LmdbStore(folder / "mistyped").mget([key]) == [records(1)[0].record]
    shutil.rmtree(folder / "mistyped")  # under a store that has it open
    store.close()
    assert store.mget([key]) == [None]
    assert not (folder / "mistyped").exists()


@pytest.mark.parametrize("opened", ["never", "before"])
def test_a_disk_that_is_full_kills_no_reader(folder: Path, opened: str) -> None:
    """Slots of readers beyond the first page of the lock file need blocks of their own."""
    holding = (
        "import sys; from featurestore.online.lmdb.store import LmdbStore; store = LmdbStore(sys.argv[1]);"
        "held = [store._opened().begin() for _ in range(140)]; print(store.mget([b'fs:p:v:{a}']))"
    )
    with small_disk(folder, size="300k") as mounted:
        if opened == "before":
            LmdbStore(folder)._opened()
            gc.collect()
        if mounted:
            with contextlib.suppress(OSError), (folder / "fill").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4_096))
        ended = subprocess.run(
            [sys.executable, "-c", holding, str(folder)], capture_output=True, text=True, check=False
        )
        if opened == "before" or not mounted:
            assert (ended.returncode, ended.stdout) == (0, "[None]\n")
        else:
            assert ended.returncode == 1  # an error, not a signal
            assert "OnlineStoreFullError" in ended.stderr
            assert "MiB left" in ended.stderr


def test_keys_too_long_for_the_file_are_refused(folder: Path) -> None:
    write = record_of(NOW)._replace(key=b"fs:p:v:{" + b"x" * 600 + b"}")
    with pytest.raises(OnlineStoreError):
        LmdbStore(folder).write([write], now_us=NOW)


def test_the_longest_names_there_are_fit(folder: Path) -> None:
    layout = ViewLayout("p" * 63, "v" * 63, 10**9, (("id", String),), LAYOUT.fields, None)
    write = RecordEncoder(layout).write(["x" * 200], NOW, None, [1, 1.0])
    store = LmdbStore(folder)
    assert store.write([write], now_us=NOW) == [WriteResult.WRITTEN]
    assert store.mget([write.key]) == [write.record]


def test_the_file_is_never_shorter_than_its_last_page(folder: Path) -> None:
    """Pages that a transaction takes and gives back are never written: the store has to make up for them."""
    encoder = RecordEncoder(TEXTS)
    store = LmdbStore(folder)
    small, large = (encoder.write([0], NOW + x, None, [x, "x" * x * 100_000]) for x in (0, 1))
    for version in range(20):  # each leaves pages free, so that the next transaction needs no new ones
        store.write([*records(200, version=version), small], now_us=NOW)
    before = (folder / "data.mdb").stat().st_size
    repairs = [Repair(small.key, version_of(NOW, NOW), large), Repair(small.key, version_of(NOW + 1, NOW + 1), None)]
    assert store.repair(repairs, now_us=NOW) == [True, True]
    store.close()
    gc.collect()  # the next line opens the file anew
    assert store.mget([small.key]) == [None]
    assert (folder / "data.mdb").stat().st_size >= before + 100_000
