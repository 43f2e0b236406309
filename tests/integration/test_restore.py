"""The guide's backup, brought back after the disk was lost and the online store went on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.example import REPOSITORY
from support.pieces import Project, day
from support.processes import plain_environment
from support.shell_blocks import blocks, commands

from featurestore.errors import MaterializationError
from featurestore.repair import find_repairs, repair
from featurestore.store import FeatureStore

pytestmark = pytest.mark.uncounted

GUIDE = (REPOSITORY / "docs" / "how-to" / "back-up.md").read_text(encoding="utf-8")
COMMANDS = [command for block in blocks(GUIDE) if block.language == "console" for command, _ in commands(block)]
FEATURES = """
from featurestore import Entity, FeatureService, FeatureView, Field, ParquetSource, PushSource
from featurestore.types import Int64

driver = Entity("driver", {"driver": Int64})
trips = PushSource("trips", ParquetSource("trips_file", "trips.parquet", "at"))
stats = FeatureView("stats", entities=[driver], source=trips, schema=[Field("count", Int64), Field("stars", Int64)])
model = FeatureService("model", [stats])
"""
ENVIRONMENT = {**plain_environment(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
T0 = datetime.now(UTC).replace(microsecond=0) - timedelta(days=400)


def online(store: FeatureStore) -> dict[str, object]:
    return store.get_online_features(["stats:count"], [{"driver": number} for number in (1, 2, 3)]).to_dict()


def run(root: Path, *wanted: str) -> None:
    """Run those commands of the guide that begin as ``wanted`` says."""
    for command in COMMANDS:
        if command.startswith(wanted):
            subprocess.run(["sh", "-c", command], cwd=root, env=ENVIRONMENT, check=True, timeout=60)


def test_registry_and_offline_store_come_back_and_the_online_store_is_made_anew(tmp_path: Path, redis_url: str) -> None:
    root = tmp_path / "repo"
    root.mkdir()
    (root / "feature_store.yaml").write_text(
        f"project: shop\nonline_store: {{url: '{redis_url}', read_timeout_ms: 1000}}\n"
    )
    (root / "features.py").write_text(FEATURES)
    row = {"driver": [1], "at": [T0], "count": [1], "stars": [5]}
    pq.write_table(pa.table(row), root / "trips.parquet")
    frame = pa.table({"driver": [1, 2], "event_timestamp": [T0 + timedelta(hours=1)] * 2})
    with FeatureStore(root) as store:
        store.apply()
        store.materialize_incremental()
        store.push("trips", {**row, "driver": [2]})
        saved = store.get_historical_features(frame, "model").save("first").to_arrow()
        before = online(store)
    run(root, "mkdir", "python", "cp -R data/offline")

    with FeatureStore(root) as store:
        store.push("trips", {**row, "at": [T0 + timedelta(hours=1)], "count": [8]})
        (root / "features.py").write_text(FEATURES.replace(', Field("stars", Int64)', ""))
    with FeatureStore(root) as store:
        store.apply(allow_breaking=True)
        store.materialize_incremental()
        store.push("trips", {"driver": [3], "at": [T0], "count": [9]})
        assert online(store)["count"] == [1, None, 9]
    shutil.rmtree(root / "data")
    (root / "data").mkdir()
    (root / "features.py").write_text(FEATURES)

    run(root, "cp ../backup", "cp -R ../backup", "fs repair --yes", "fs verify")
    with FeatureStore(root) as store:
        assert store.plan().steps == ()
        assert online(store) == before
        assert store.get_training_set("first").to_arrow().equals(saved)

    # The generation that came after the backup is known to the online store alone: nothing of it comes alive again.
    (root / "features.py").write_text(FEATURES.replace(', Field("stars", Int64)', ""))
    with FeatureStore(root) as store:
        store.apply(allow_breaking=True)
        assert store.workspace.snapshot().registered("stats").generation == 3
        assert online(store)["count"] == [None, None, None]
        store.materialize_incremental()
        assert online(store)["count"] == [1, None, None]


def test_a_lost_push_is_named_until_it_is_settled_whatever_is_pushed_since(tmp_path: Path) -> None:
    project = Project(tmp_path / "repo", None)
    project.source([(1, 1, 10)])
    project.apply("first")
    project.run()
    project.push(4, 2, 40)
    project.back_up(tmp_path / "backup", ["offline"])
    project.push(5, 3, 50)
    project.restore(tmp_path / "backup", "offline")
    with project.open() as store:  # offline only: such a push does not compare what is online
        store.push("trips", {"driver": [6], "at": [day(3)], "count": [60], "stars": [1]}, to="offline")
    assert project.kinds() == {("online", "ahead")}
    with pytest.raises(MaterializationError, match="in version 2, a commit that the offline store does not have"):
        project.run()
    assert project.online([4, 5, 6]) == {4: 40, 5: 50, 6: None}
    with project.open() as store:
        repair(store.workspace, find_repairs(store.workspace))
    assert project.kinds() == set()
    assert project.online([4, 5, 6]) == project.offline([4, 5, 6]) == {4: 40, 5: None, 6: 60}
    project.push(7, 3, 70)
    assert project.kinds() == set()
