"""The last good snapshot on disk: what comes back, who may read it, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from featurestore_registry.auth import Role, Token
from featurestore_registry.records import Record, RecordField, Revision, fingerprint

from featurestore.errors import DiskFullError, RegistryFormatError, RegistryUnavailableError
from featurestore.project.private_file import checksum
from featurestore.registered.snapshot_file import SavedSnapshot, confirm_snapshot, read_snapshot, save_snapshot

SEEN_US = 1_385_000_000_123_456


def some_snapshot(number: int = 7) -> SavedSnapshot:
    document = {"join_keys": [["carrier", "String"]], "text": "Zürich 🛬", "nested": {"a": [1, None, 2.5]}}
    record = Record(
        "entity",
        "nyc",
        "carrier",
        document,
        fingerprint(document),
        fields=(RecordField("carrier", "String", "code", {"pii": "no"}, ("flights.carrier",)),),
        depends_on=("source:flights",),
        owner="ops",
        tags={"team": "a"},
        description="Airline",
    )
    token = Token("ab12", "0" * 64, Role.READER, "nyc", 1_400_000_000_000_000, "model")
    return SavedSnapshot(Revision("nyc", number, (record,)), (token, Token("cd", "1" * 64, Role.ADMIN)), SEEN_US)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".featurestore" / "snapshot.json"


def test_what_is_saved_comes_back(path: Path) -> None:
    save_snapshot(path, some_snapshot())
    assert read_snapshot(path, "nyc") == some_snapshot()


def test_nothing_saved_is_none(path: Path) -> None:
    assert read_snapshot(path, "nyc") is None


def test_only_its_owner_may_read_it_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        save_snapshot(path, some_snapshot())
        save_snapshot(path, some_snapshot(8))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [found.name for found in path.parent.iterdir()] == ["snapshot.json"]


def test_confirming_moves_the_instant_alone(path: Path) -> None:
    save_snapshot(path, some_snapshot())
    before = path.read_bytes()
    confirm_snapshot(path, SEEN_US + 10_000_001)
    found = read_snapshot(path, "nyc")
    assert found is not None
    assert found.seen_us == SEEN_US + 10_000_001
    assert path.read_bytes() == before


def test_a_newer_format_is_refused_with_what_to_do(path: Path) -> None:
    save_snapshot(path, some_snapshot())
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, "format": 2}))
    with pytest.raises(RegistryFormatError, match=r"format 2; this version reads 1.*Upgrade"):
        read_snapshot(path, "nyc")


def test_another_projects_snapshot_is_refused(path: Path) -> None:
    save_snapshot(path, some_snapshot())
    with pytest.raises(RegistryFormatError, match="of project 'nyc', not 'other'"):
        read_snapshot(path, "other")


@pytest.mark.parametrize("place", range(0, 900, 23))
def test_a_flipped_bit_never_goes_unnoticed(path: Path, place: int) -> None:
    save_snapshot(path, some_snapshot())
    damaged = bytearray(path.read_bytes())
    damaged[place % len(damaged)] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(RegistryFormatError, match=r"damaged|format"):
        read_snapshot(path, "nyc")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "snapshot": NaN, "checksum": "x"}',
        b'{"format": 1, "snapshot": "\\ud800", "checksum": "x"}',
        b"[" * 100_000,
    ],
)
def test_foreign_files_are_refused(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(RegistryFormatError, match=r"damaged.*Delete the file"):
        read_snapshot(path, "nyc")


@pytest.mark.parametrize("missing", ["project", "revision", "records", "tokens"])
def test_a_matching_checksum_over_missing_fields_is_refused(path: Path, missing: str) -> None:
    save_snapshot(path, some_snapshot())
    document: dict[str, Any] = json.loads(path.read_bytes())
    del document["snapshot"][missing]
    document["checksum"] = checksum(document["snapshot"])
    path.write_text(json.dumps(document))
    with pytest.raises(RegistryFormatError, match="lacks fields"):
        read_snapshot(path, "nyc")


def test_an_unusable_path_is_told(path: Path) -> None:
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(RegistryUnavailableError, match="cannot be used"):
        save_snapshot(path, some_snapshot())
    with pytest.raises(RegistryUnavailableError, match="cannot be used"):
        confirm_snapshot(path, SEEN_US)
    with pytest.raises(RegistryUnavailableError, match="cannot be used"):
        read_snapshot(path, "nyc")


def test_a_full_disk_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_snapshot(path, some_snapshot())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="No space is left"):
        save_snapshot(path, some_snapshot(8))
    monkeypatch.undo()
    assert read_snapshot(path, "nyc") == some_snapshot()
    assert [found.name for found in path.parent.iterdir()] == ["snapshot.json"]
