"""The point-in-time rule in plain loops over rows: slow, obvious, and sharing nothing with the engine.

Certificates recompute a sample of rows with it, and the tests hold the engine against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Reason = Literal["null_key", "no_entity", "nothing_before", "not_yet_available", "expired"]


class ReferenceRow(NamedTuple):
    """One row of a view's log. Instants are UTC microseconds."""

    keys: tuple[Any, ...]
    event_us: int
    created_us: int | None
    sequence: int
    values: Mapping[str, Any] = MappingProxyType({})

    @property
    def created_or_event_us(self) -> int:
        """The created time, or the event time if there is none."""
        return self.event_us if self.created_us is None else self.created_us


def reference_answer(
    keys: tuple[Any, ...],
    at_us: int,
    rows: Sequence[ReferenceRow],
    *,
    ttl_us: int | None,
    as_of: Literal["event", "available"],
) -> ReferenceRow | Reason:
    """Return the row of a view's ``rows`` that answers (keys, at_us), or the reason why none does."""
    if any(key is None for key in keys):
        return "null_key"
    own = [row for row in rows if row.keys == keys]
    if not own:
        return "no_entity"
    before = [row for row in own if row.event_us <= at_us]
    if not before:
        return "nothing_before"
    fresh = [row for row in before if ttl_us is None or at_us - row.event_us <= ttl_us]
    if not fresh:
        return "expired"
    known = [row for row in fresh if as_of == "event" or row.created_or_event_us <= at_us]
    if not known:
        return "not_yet_available"
    newest_us = max(row.event_us for row in known)
    return max((row for row in known if row.event_us == newest_us), key=_order)


def _order(row: ReferenceRow) -> tuple[int, int]:
    return (row.created_or_event_us, row.sequence)
