"""The suites of `featurestore.testing` over every offline store that is built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featurestore.errors import ConcurrentCommitError
from featurestore.offline.interface import DataFile, OfflineStore
from featurestore.offline.local import archive
from featurestore.offline.local import store as delta
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.kept_blobs import BlobsConformance
from featurestore.testing.offline_store import SCHEMA, TABLE, OfflineStoreConformance, Tamper, append, row, write_rows
from featurestore.testing.table_growth import TableGrowthConformance
from featurestore.testing.table_origins import TableOriginsConformance


def tamper_locally(file: DataFile, content: bytes | None, *, is_seen: bool = True) -> None:
    """See `Tamper`."""
    path, times = Path(file.path), Path(file.path).stat()
    if is_seen or content is None:
        path.unlink()
    if content is not None:
        path.write_bytes(content)
    if not is_seen:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


class TestDelta(OfflineStoreConformance, TableOriginsConformance, BlobsConformance):
    @pytest.fixture
    def offline(self, tmp_path: Path) -> OfflineStore:
        return DeltaStore(tmp_path / "new folder" / "offline")

    @pytest.fixture
    def tamper(self) -> Tamper:
        return tamper_locally

    def test_a_refused_commit_leaves_no_file_in_the_table(self, offline: OfflineStore) -> None:
        first = append(offline, [row(1)])
        second = append(offline, [row(2)], first)
        path = write_rows(offline, [row(3)], first_sequence=second.next_sequence)
        with pytest.raises(ConcurrentCommitError):
            offline.commit(TABLE, SCHEMA, base=first.number, add=[path])
        files = [Path(file.path) for file in second.files]
        assert sorted(files[0].parent.glob("*.parquet*")) == files


class TestDeltaGrowth(TableGrowthConformance):
    @pytest.fixture
    def offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OfflineStore:
        monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 3)
        monkeypatch.setattr(archive, "SETTLED_SECONDS", 0.0)
        return DeltaStore(tmp_path / "offline")
