"""The marker of a view's online part: who owns it, and up to which commit of the offline table it is published.

It is stored next to the records, ``fs:nyc_flights:carrier_profile:marker:{0}``, as JSON. A store of many nodes holds a
copy on each: a node that lost acknowledged writes also lost its copy, or holds an older one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from featurestore.errors import DamagedRecordError
from featurestore.online.interface import OnlineReader, OnlineStore

RECONCILE = "reconcile"
"""In place of a commit: the part was taken over, and records that the offline table does not hold must go."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What an online part says about itself."""

    project: str
    """The project's identity."""
    revision: str
    """The hash of the revision that last wrote it."""
    generation: int
    version: int | None = None
    """The table version whose changes are all online; None before the first complete publish."""
    commit: str | None = None
    """The identity of the commit that made that version, or `RECONCILE`."""

    def to_bytes(self) -> bytes:
        """Return the marker as it is stored."""
        return json.dumps({"format": 1, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, value: bytes) -> Marker:
        """Return a stored marker; ignores a newer version's additions. An unreadable marker belongs to nobody."""
        try:
            document = json.loads(value)
            return cls(**{name: document[name] for name in ("project", "revision", "generation", "version", "commit")})
        except (ValueError, KeyError, TypeError):
            return cls("(unreadable)", "", 0)


class MarkerReader:
    """Reads the markers of one generation of a view in one store. ``namespace`` as in `KeyEncoder`."""

    def __init__(self, store: OnlineReader, namespace: bytes) -> None:
        self._reader = store
        self._keys = [namespace + b"marker:{" + tag + b"}" for tag in store.marker_tags]
        self._pushed_key = namespace + b"pushed"

    def read(self, *, at_once: bool = False) -> tuple[Sequence[Marker | None], tuple[int, str] | None]:
        """Return the distinct copies, None if one is missing, and the last pushed commit: its version and identity.

        A damaged copy belongs to nobody. ``at_once`` is for callers that prefer an error to waiting for a store that
        is down. Raises OnlineStoreUnavailableError.
        """
        read = self._reader.mget if at_once else self._reader.get
        keys = [*self._keys, self._pushed_key]
        try:
            *markers, pushed = read(keys)
        except DamagedRecordError:
            *markers, pushed = (self._whole(key) for key in keys)
        copies = [None if value is None else Marker.from_bytes(value) for value in dict.fromkeys(markers)]
        return copies, _commit_from(pushed)

    def _whole(self, key: bytes) -> bytes | None:
        try:
            return self._reader.get([key])[0]
        except DamagedRecordError:
            return b"damaged"


class PartMarkers(MarkerReader):
    """Reads and writes them."""

    def __init__(self, store: OnlineStore, namespace: bytes) -> None:
        super().__init__(store, namespace)
        self._store = store

    def write(self, marker: Marker) -> None:
        """Put every copy."""
        for key in self._keys:
            self._store.put(key, marker.to_bytes())

    def begin(self, marker: Marker) -> None:
        """Put the missing copies: a part that holds records must say who owns it."""
        for key in self._keys:
            self._store.put(key, marker.to_bytes(), if_absent=True)

    def note_pushed(self, version: int | None, commit: str | None) -> None:
        """Note the last commit of a push; None removes the note."""
        self._store.put(self._pushed_key, json.dumps({"version": version, "commit": commit}).encode())


def _commit_from(value: bytes | None) -> tuple[int, str] | None:
    if value is None:
        return None
    try:
        document = json.loads(value)
        return int(document["version"]), str(document["commit"])
    except (ValueError, KeyError, TypeError):
        return None
