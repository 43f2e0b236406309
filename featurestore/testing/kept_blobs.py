"""What every offline store must do with blobs. Use it with an ``offline`` fixture, as `OfflineStoreConformance`."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest

from featurestore.errors import DamagedFileError, OfflineStoreError
from featurestore.offline.interface import OfflineStore
from featurestore.testing.offline_store import SCHEMA, TABLE

WHAT = "the first frame"


class BlobsConformance:
    """See `Blobs`."""

    def test_a_blob_is_what_was_put_last(self, offline: OfflineStore) -> None:
        blobs = offline.blobs("conformance", "frames")
        assert blobs.list() == []
        for content in (b"", b"one", b"\0" * 100_000):
            blobs.put("a.arrow", content, WHAT)
            assert blobs.get("a.arrow", WHAT) == content
            assert blobs.get("a.arrow", WHAT, sha256=hashlib.sha256(content).hexdigest()) == content
        blobs.put("0", b"", WHAT)
        again = offline.blobs("conformance", "frames").list()
        assert [(blob.name, blob.is_whole) for blob in again] == [("0", True), ("a.arrow", True)]
        assert all(abs(blob.modified_us - time.time_ns() // 1000) < 60_000_000 for blob in again)

    def test_kinds_projects_and_tables_are_apart(self, offline: OfflineStore) -> None:
        for project, kind in (("conformance", "frames"), ("conformance", "served"), ("neighbour", "frames")):
            offline.blobs(project, kind).put("a", f"{project} {kind}".encode(), WHAT)
        assert offline.blob_kinds("conformance") == ["frames", "served"]
        assert offline.blob_kinds("neighbour") == ["frames"]
        assert offline.blob_kinds("nobody") == []
        offline.commit(TABLE, SCHEMA, base=None, add=[])
        assert offline.blobs("conformance", "served").get("a", WHAT) == b"conformance served"
        assert offline.tables("conformance") == [TABLE]
        offline.clean(TABLE, keep=None)
        assert offline.blobs("conformance", "frames").get("a", WHAT) == b"conformance frames"

    def test_what_is_missing_or_has_another_hash_is_told(self, offline: OfflineStore) -> None:
        blobs = offline.blobs("conformance", "frames")
        blobs.put("a", b"one", WHAT)
        for name, sha256 in (("a", "0" * 64), ("b", None)):
            with pytest.raises(DamagedFileError, match="the first frame, is missing or damaged"):
                blobs.get(name, WHAT, sha256=sha256)

    def test_a_deleted_blob_is_gone_and_deleting_it_again_does_nothing(self, offline: OfflineStore) -> None:
        blobs = offline.blobs("conformance", "frames")
        blobs.delete("a", WHAT)
        blobs.put("a", b"one", WHAT)
        blobs.delete("a", WHAT)
        blobs.delete("a", WHAT)
        assert blobs.list() == []

    def test_readers_see_a_whole_content_while_it_is_put_again(self, offline: OfflineStore) -> None:
        blobs = offline.blobs("conformance", "frames")
        contents = [bytes([number]) * 1_000_000 for number in range(5)]
        blobs.put("a", contents[0], WHAT)

        def put() -> None:
            for content in contents:
                blobs.put("a", content, WHAT)

        writer = threading.Thread(target=put)
        writer.start()
        while writer.is_alive():
            assert blobs.get("a", WHAT) in contents
            assert [blob.name for blob in blobs.list() if blob.is_whole] == ["a"]
        writer.join()

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a"])
    def test_names_that_leave_the_place_are_refused(self, offline: OfflineStore, name: str) -> None:
        blobs = offline.blobs("conformance", "frames")
        for call in (lambda: blobs.put(name, b"", WHAT), lambda: blobs.get(name, WHAT)):
            with pytest.raises(OfflineStoreError, match="cannot be the name"):
                call()
        with pytest.raises(OfflineStoreError, match="cannot be the name"):
            blobs.delete(name, WHAT)
