"""The marker of a view's online part: whose it is, and up to which commit of the offline table it was published.

It lies beside the records, ``fs:nyc_flights:carrier_profile:marker:{0}``, as JSON. A store of many nodes holds a copy
on each: a node that lost what it had acknowledged lost its copy with it, or holds an older one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from featurestore.errors import DamagedRecordError
from featurestore.online.interface import OnlineStore

RECONCILE = "reconcile"
"""In the place of a commit: the part was taken over, and records that the offline table does not hold have to go."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What an online part says of itself."""

    project: str
    """Identity of the project."""
    revision: str
    """Hash of the revision by which it was last written."""
    generation: int
    version: int | None = None
    """The table version whose changes are all there; None until a publish was complete."""
    commit: str | None = None
    """The identity of the commit that made that version, or `RECONCILE`."""

    def to_bytes(self) -> bytes:
        """Return the marker as it is stored."""
        return json.dumps({"format": 1, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, value: bytes) -> Marker:
        """Return a stored marker; what a newer version added is left. One that cannot be read is nobody's."""
        try:
            document = json.loads(value)
            return cls(**{name: document[name] for name in ("project", "revision", "generation", "version", "commit")})
        except (ValueError, KeyError, TypeError):
            return cls("(unreadable)", "", 0)


class PartMarkers:
    """The markers of one generation of a view in one store. ``namespace`` as in `KeyEncoder`."""

    def __init__(self, store: OnlineStore, namespace: bytes) -> None:
        self._store = store
        self._keys = [namespace + b"marker:{" + tag + b"}" for tag in store.marker_tags]
        self._pushed_key = namespace + b"pushed"

    def read(self, *, at_once: bool = False) -> tuple[Sequence[Marker | None], tuple[int, str] | None]:
        """Return the distinct copies, None where one is missing, and the last pushed commit: its version and identity.

        A copy that is damaged is nobody's. Read ``at_once`` for callers that rather do without than wait for a store
        that is down. Raises OnlineStoreUnavailableError.
        """
        read = self._store.mget if at_once else self._store.get
        keys = [*self._keys, self._pushed_key]
        try:
            *markers, pushed = read(keys)
        except DamagedRecordError:
            *markers, pushed = (self._whole(key) for key in keys)
        copies = [None if value is None else Marker.from_bytes(value) for value in dict.fromkeys(markers)]
        return copies, _commit_from(pushed)

    def _whole(self, key: bytes) -> bytes | None:
        try:
            return self._store.get([key])[0]
        except DamagedRecordError:
            return b"damaged"

    def write(self, marker: Marker) -> None:
        """Put every copy."""
        for key in self._keys:
            self._store.put(key, marker.to_bytes())

    def begin(self, marker: Marker) -> None:
        """Put the copies that are not there: a part that holds records says whose it is."""
        for key in self._keys:
            self._store.put(key, marker.to_bytes(), if_absent=True)

    def note_pushed(self, version: int | None, commit: str | None) -> None:
        """Note the last commit of a push; None where there is none any more."""
        self._store.put(self._pushed_key, json.dumps({"version": version, "commit": commit}).encode())


def _commit_from(value: bytes | None) -> tuple[int, str] | None:
    if value is None:
        return None
    try:
        document = json.loads(value)
        return int(document["version"]), str(document["commit"])
    except (ValueError, KeyError, TypeError):
        return None
