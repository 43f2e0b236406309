"""Four processes that write the same few entities at once; `python -c` runs `write` of this module in each."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from featurestore.online.interface import OnlineStore, ViewLayout, Write
from featurestore.online.records.encoder import RecordEncoder
from featurestore.types import Int64, String

WRITERS = 4
BATCHES = 60
ENTITIES = [f"e{number}" for number in range(40)]
ENCODER = RecordEncoder(ViewLayout("contested", "v", 1, (("id", String),), (("x", Int64),), None))
KEYS = [ENCODER.keys.encode([entity]) for entity in ENTITIES]

_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from support.contested import write
write(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
"""


def offered_by(writer: int, now_us: int) -> list[list[Write]]:
    """Return a writer's batches: out of order, some rows twice, and many of the same instants as the others' rows."""
    dice = random.Random(writer)
    batches = []
    for batch in range(BATCHES):
        rows = []
        for _ in range(dice.choice((1, 10, 200))):
            event_us = now_us - dice.randrange(50) * 1_000_000
            created_us = event_us + dice.randrange(3)
            rows.append(ENCODER.write([dice.choice(ENTITIES)], event_us, created_us, [writer * 1_000 + batch]))
        batches.append(rows + rows[: dice.randrange(5)])
    return batches


def open_store(url: str) -> OnlineStore:
    """Return a Redis or LMDB store with a deadline for busy machines; nothing else is imported."""
    if url.startswith("redis"):
        from featurestore.online.redis.store import RedisStore

        return RedisStore(url, read_timeout_ms=10_000, write_timeout_ms=30_000)
    from featurestore.online.lmdb.store import LmdbStore

    return LmdbStore(url)


def write(url: str, now_us: int, writer: int) -> None:
    """Say that this process is ready, wait to be told to begin, and write what it has."""
    store = open_store(url)
    batches = offered_by(writer, now_us)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for batch in batches:
        store.write(batch, now_us=now_us)
    store.close()


def begin_writers(url: str, now_us: int) -> list[subprocess.Popen[str]]:
    """Return the writers, let go at the same moment."""
    folder = str(Path(__file__).parents[1])
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _CHILD, folder, url, str(now_us), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(WRITERS)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n", writer.communicate()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    return writers
