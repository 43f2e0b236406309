"""Makes the installation in a folder, by the code of the release that is on the path; see README.md."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import redis
from featurestore_registry.auth import Role, create_token, revoke_token

from featurestore.store import FeatureStore

T0 = datetime(2026, 1, 5, tzinfo=UTC)
HERE = Path(__file__).resolve().parent
DEFINITIONS = (HERE / "repo" / "features.py").read_text()
FIRST = DEFINITIONS.replace("import Int64", "import Int64, String").replace('"stars", Int64', '"stars", String')


class Clock:
    """Moves a second with each look; the registry and the store read the same."""

    def __init__(self) -> None:
        self.now_us = int((T0 + timedelta(days=20)).timestamp()) * 1_000_000

    def __call__(self) -> int:
        self.now_us += 1_000_000
        return self.now_us


def write_source(root: Path, rows: list[tuple[int, int, int]], stars: object) -> None:
    drivers, days, counts = zip(*rows, strict=True)
    at = [T0 + timedelta(days=day) for day in days]
    table = pa.table({"driver": drivers, "at": at, "count": counts, "stars": [stars] * len(rows)})
    pq.write_table(table, root / "trips.parquet")


def make(root: Path, online_url: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "feature_store.yaml").write_text(f"project: shop\nonline_store: {online_url}\n")
    clock = Clock()
    time.time_ns = lambda: clock() * 1000  # the registry's
    (root / "features.py").write_text(FIRST)
    write_source(root, [(1, 1, 10), (2, 1, 20)], "five")
    with FeatureStore(root, clock=clock) as store:
        store.apply(message="stars in words")
        store.materialize_incremental()
    (root / "features.py").write_text(DEFINITIONS)
    write_source(root, [(1, 1, 10), (2, 1, 20)], 5)
    with FeatureStore(root, clock=clock) as store:
        store.apply(message="stars in numbers", allow_breaking=True)
        store.materialize_incremental()
        write_source(root, [(1, 1, 10), (2, 1, 20), (1, 3, 11), (3, 3, 30)], 5)
        store.materialize_incremental()
        frame = pa.table({"driver": [1, 2, 3, 9], "event_timestamp": [T0 + timedelta(days=5)] * 4})
        store.get_historical_features(frame, "model").save("first")
        ledger = store.workspace.ledger
        create_token(ledger, "shop", Role.READER, expires_at_us=None, now_us=clock(), name="scorer")
        _, gone = create_token(ledger, "shop", Role.READER, expires_at_us=None, now_us=clock(), name="gone")
        revoke_token(ledger, "shop", gone.id, now_us=clock())
        store.push("trips", {"driver": [4], "at": [T0 + timedelta(days=4)], "count": [40], "stars": [1]})


def dump(url: str) -> dict[str, str]:
    client = redis.Redis.from_url(url)
    found = {key.decode(): base64.b64encode(client.get(key)).decode() for key in client.scan_iter(match="fs:shop:*")}
    client.close()
    return dict(sorted(found.items()))


if __name__ == "__main__":
    target, redis_url = Path(sys.argv[1]), sys.argv[2]
    make(target / "beside", redis_url)
    (target / "redis.json").write_text(json.dumps(dump(redis_url), indent=1) + "\n")
    shutil.rmtree(target / "beside")
    make(target / "repo", "lmdb:///data/online")
    with FeatureStore(target / "repo") as store:
        answer = store.get_training_set("first").to_arrow()
    (target / "repo/data/online/lock.mdb").unlink()  # of this machine
    (target / "training_set.json").write_text(json.dumps(answer.to_pydict(), default=str, indent=1) + "\n")
