"""Secrets of served logs: what their hashes and checksums tell, and to whom."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from featurestore.errors import SettingsError
from featurestore.project.settings import read_settings
from featurestore.served.hashing import NO_KEY, LogKeys
from featurestore.types import Int64

OLD, NEW = "the secret of last year", "the secret of this year"


def derived(secret: str) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=b"featurestore served log", n=2**14, r=8, p=1, dklen=32)


def test_hashes_differ_by_column_and_need_the_secret() -> None:
    key = LogKeys(NEW).own
    of_driver, of_customer = (key.hashes(column, [7], Int64) for column in ("driver_id", "customer_id"))
    column_key = hashlib.blake2b(b"driver_id", key=derived(NEW), digest_size=32).digest()
    assert of_driver == [hashlib.blake2b(b"7", key=column_key, digest_size=16).hexdigest()]
    assert of_driver != of_customer
    assert LogKeys(OLD).own.hashes("driver_id", [7], Int64) != of_driver


def test_an_id_finds_its_secret_in_both_forms() -> None:
    keys = LogKeys(NEW, [OLD])
    assert keys.own.id.startswith("2-")
    assert keys.of(keys.own.id) == keys.own
    assert keys.of(LogKeys(OLD).own.id) == LogKeys(OLD).own
    first = hashlib.blake2b(OLD.encode(), digest_size=32).digest()
    first_id = hashlib.blake2b(first, digest_size=4, person=b"fs key id").hexdigest()
    found = keys.of(first_id)
    assert found is not None
    assert found.hashes("driver_id", [7], Int64) == [hashlib.blake2b(b"7", key=first, digest_size=16).hexdigest()]
    assert found.hashes("driver_id", [7], Int64) == found.hashes("customer_id", [7], Int64)
    assert found.checksum(99) == 99
    assert LogKeys(NEW).of(first_id) is None
    assert keys.of("2-00000000") is None
    assert keys.of("") == NO_KEY


def test_a_checksum_is_found_only_with_the_secret() -> None:
    key = LogKeys(NEW).own
    given = [key.checksum(crc) for crc in range(1_000)]
    assert len(set(given)) == 1_000
    assert all(0 <= each < 2**32 for each in given)
    assert given != [LogKeys(OLD).own.checksum(crc) for crc in range(1_000)]
    assert sum(each == crc for crc, each in enumerate(given)) < 2
    assert NO_KEY.checksum(5) == 5


def test_without_a_secret_there_is_none() -> None:
    keys = LogKeys("", [OLD])
    assert not keys.is_known
    assert keys.own == NO_KEY
    assert keys.of(LogKeys(OLD).own.id) == LogKeys(OLD).own


@pytest.mark.parametrize("secret", ["x", "                    ", "fifteen letters", "  fifteen letters   "])
def test_a_secret_that_can_be_guessed_is_refused(tmp_path: Path, secret: str) -> None:
    (tmp_path / "feature_store.yaml").write_text(json.dumps({"project": "p", "served": {"secret": secret}}))
    with pytest.raises(SettingsError, match=r"served\.secret.*shorter than 16 characters") as told:
        read_settings(tmp_path)
    assert secret not in str(told.value) or not secret.strip() or secret == "x"


def test_earlier_secrets_may_be_short_and_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"project": "p", "served": {"secret": NEW, "earlier_secrets": ["x", OLD]}}
    (tmp_path / "feature_store.yaml").write_text(json.dumps(settings))
    assert [each.get_secret_value() for each in read_settings(tmp_path).served.earlier_secrets] == ["x", OLD]
    monkeypatch.setenv("FS_SERVED__EARLIER_SECRETS", '["y"]')
    found = read_settings(tmp_path).served
    assert [each.get_secret_value() for each in found.earlier_secrets] == ["y"]
    assert OLD not in repr(found)
