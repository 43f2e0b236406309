"""A publish under way, as the store remembers it: every part that is placed moves a token in the same step.

Who loses a part loses the newest token with it: a node of a cluster that died before its replica had the last writes,
or a server that was restored meanwhile. So a publish that finds all its tokens at its end has lost nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from featurestore.following.mark import plain_values
from featurestore.online.interface import Advanced, Move, OnlineStore, Placed, Slice, WriteResult
from featurestore.online.records.keys import token_key

MOST_TRIES = 20
OTHERS_SECONDS = 2.0
"""Another publish that places nothing for so long is taken for dead."""
_POLL_SECONDS = 0.02
_OVER = b" over"


class Tokens:
    """One publish's tokens, one in each bucket that the store keeps apart."""

    def __init__(self, store: OnlineStore, namespace: bytes) -> None:
        self._store = store
        self._keys = {bucket: token_key(namespace, bucket) for bucket in store.mark_buckets}
        self._id, self._parts = secrets.token_hex(8).encode(), 0
        self._values: dict[bytes, bytes | None] = {}

    def begin(self) -> bool:
        """Take over from any earlier publish; False where others do so all the time."""
        for _ in range(MOST_TRIES):
            self._values = self._read()
            if self.place(dict.fromkeys(self._keys, ())) is not None:
                return True
        return False

    def place(self, part: Mapping[bytes, Sequence[Placed]]) -> list[WriteResult] | None:
        """Place records by bucket; None where a token is not there any more."""
        moves = self.moves(part)
        outcomes = self._store.place([Slice([moves[bucket]], items) for bucket, items in part.items()])
        if any(outcome is not Advanced.DONE for outcome, _ in outcomes):
            return None
        for bucket, move in moves.items():
            self.moved(bucket, move)
        return [result for _, results in outcomes for result in results]

    def moves(self, buckets: Iterable[bytes], *, over: bool = False) -> dict[bytes, Move]:
        """Return how the tokens of some buckets move with the next part, or at the end."""
        self._parts += 1
        after = self._id + (_OVER if over else b" %d" % self._parts)
        return {bucket: Move(self._keys[bucket], self._values[bucket], after) for bucket in buckets}

    def moved(self, bucket: bytes, move: Move) -> None:
        """Note that a token has moved."""
        self._values[bucket] = move.after

    def are_there(self) -> bool:
        """Tell whether every token is the newest one."""
        return self._read() == self._values

    def wait_for_others(self, check: Callable[[], None]) -> bool:
        """Wait while another publish is under way, if it goes on; return whether it came to its end."""
        seen, since = self._read(), time.monotonic()
        while self._are_others(seen) and time.monotonic() - since < OTHERS_SECONDS:
            if all(token is not None and token.endswith(_OVER) for token in seen.values()):
                return True
            check()
            time.sleep(_POLL_SECONDS)
            if (now := self._read()) != seen:
                seen, since = now, time.monotonic()
        return False

    def _are_others(self, tokens: Mapping[bytes, bytes | None]) -> bool:
        return any(token is not None and not token.startswith(self._id) for token in tokens.values())

    def _read(self) -> dict[bytes, bytes | None]:
        return dict(zip(self._keys, plain_values(self._store, list(self._keys.values())), strict=True))
