"""The suites of `featurestore.testing` over every offline store that is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.offline.interface import OfflineStore
from featurestore.offline.local import archive
from featurestore.offline.local import store as delta
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.kept_blobs import BlobsConformance
from featurestore.testing.offline_store import OfflineStoreConformance
from featurestore.testing.table_growth import TableGrowthConformance
from featurestore.testing.table_origins import TableOriginsConformance


class TestDelta(OfflineStoreConformance, TableOriginsConformance, BlobsConformance):
    @pytest.fixture
    def offline(self, tmp_path: Path) -> OfflineStore:
        return DeltaStore(tmp_path / "new folder" / "offline")


class TestDeltaGrowth(TableGrowthConformance):
    @pytest.fixture
    def offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OfflineStore:
        monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 3)
        monkeypatch.setattr(archive, "SETTLED_SECONDS", 0.0)
        return DeltaStore(tmp_path / "offline")
