"""The secrets of served logs: hashes of join keys, and checksums that say nothing to those who do not have the secret.

Of each secret there are two keys. The first form, of earlier releases, is quick to make and the same for all columns;
its logs stay readable. The second takes long to make, so that a secret is not found by trying, and differs by column,
so that a customer and a driver of one number have nothing in common.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any

from featurestore.statistics.sets import hashed
from featurestore.types import ValueType
from featurestore.workspace import Readers

KEYS_HINT = (
    "Set `served: {secret: ${NAME}}` in feature_store.yaml, or FS_SERVED__SECRET: a random text of at least 16 "
    "characters."
)
"""What to do without a secret."""
EARLIER_HINT = "Add the secret that the servers had then to `served: {earlier_secrets: [...]}` in feature_store.yaml."
"""What to do without an earlier one."""
_SECOND = "2-"
"""What the ids of keys of the second form begin with."""
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}
"""About 50 ms and 16 MiB for each try."""


def is_second(key_id: str) -> bool:
    """Tell whether an id is of a key of the second form."""
    return key_id.startswith(_SECOND)


@dataclass(frozen=True, slots=True)
class LogKey:
    """A secret in one of its forms."""

    id: str
    """What tells it from others and nothing else about it: the column ``key_id`` of the log; empty for none."""
    key: bytes

    def hashes(self, column: str, values: Iterable[Any], kind: ValueType) -> list[str]:
        """Return canonical values of a column of join keys as hashes of 32 hexadecimal digits."""
        key = self.key
        if is_second(self.id):
            key = blake2b(column.encode(), key=key, digest_size=32).digest()
        return hashed(values, kind, key)

    def checksum(self, crc: int) -> int:
        """Return a record's checksum as the log has it: in the second form what only the secret makes of it.

        Whoever guesses a record's values could make its CRC and compare.
        """
        if not is_second(self.id):
            return crc
        return int.from_bytes(blake2b(crc.to_bytes(4), key=self.key, digest_size=4, person=b"fs checksum").digest())


NO_KEY = LogKey("", b"")
"""Of logs that keep join keys as they are: the checksums are those of the records."""


class LogKeys:
    """The keys of a project's secrets: the one that servers use now, and earlier ones."""

    def __init__(self, secret: str, earlier: Sequence[str] = ()) -> None:
        self._secrets = [each for each in (secret, *earlier) if each]
        self.is_known = bool(secret)
        """Whether there is a secret now."""
        self._known: dict[str, LogKey | None] = {}

    @cached_property
    def own(self) -> LogKey:
        """What new rows are hashed with; `NO_KEY` without a secret."""
        return _second(self._secrets[0]) if self.is_known else NO_KEY

    def of(self, key_id: str) -> LogKey | None:
        """Return the key of an id, None where no secret of the settings has it."""
        if not key_id:
            return NO_KEY
        if key_id not in self._known:
            make = _second if is_second(key_id) else _first
            self._known[key_id] = next((key for key in map(make, self._secrets) if key.id == key_id), None)
        return self._known[key_id]


def keys_of(workspace: Readers) -> LogKeys:
    """Return the keys of the settings' secrets."""
    settings = workspace.settings.served
    return LogKeys(settings.secret.get_secret_value(), [each.get_secret_value() for each in settings.earlier_secrets])


def _first(secret: str) -> LogKey:
    key = blake2b(secret.encode(), digest_size=32).digest()
    return LogKey(_id(key), key)


@lru_cache(maxsize=16)
def _second(secret: str) -> LogKey:
    key = hashlib.scrypt(secret.encode(), salt=b"featurestore served log", dklen=32, **_SCRYPT)
    return LogKey(_SECOND + _id(key), key)


def _id(key: bytes) -> str:
    return blake2b(key, digest_size=4, person=b"fs key id").hexdigest()
