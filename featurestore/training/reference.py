"""The point-in-time rule in plain loops over rows: slow, obvious, and sharing nothing with the engine.

Certificates recompute a sample of rows with it, and the tests hold the engine against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Reason = Literal["null_key", "no_entity", "nothing_before", "not_yet_available", "expired"]


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One row of a view's log. Instants are UTC microseconds."""

    keys: tuple[Any, ...]
    event_us: int
    created_us: int | None
    sequence: int
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def created_or_event_us(self) -> int:
        """The created time, or the event time where there is none."""
        return self.event_us if self.created_us is None else self.created_us


@dataclass(frozen=True, slots=True)
class ReferenceView:
    """One view to join."""

    name: str
    key_columns: tuple[str, ...]
    """Frame columns, in the order of `ReferenceRow.keys`."""
    features: tuple[str, ...]
    rows: Sequence[ReferenceRow]
    ttl_us: int | None
    as_of: Literal["event", "available"]


def reference_answer(
    keys: tuple[Any, ...], at_us: int, view: ReferenceView, rows: Sequence[ReferenceRow] | None = None
) -> ReferenceRow | Reason:
    """Return the row that answers (keys, at_us), or the reason why none does.

    ``rows`` may be those of ``view.rows`` with these keys, if the caller has them at hand.
    """
    if any(key is None for key in keys):
        return "null_key"
    own = [row for row in (view.rows if rows is None else rows) if row.keys == keys]
    if not own:
        return "no_entity"
    before = [row for row in own if row.event_us <= at_us]
    if not before:
        return "nothing_before"
    fresh = [row for row in before if view.ttl_us is None or at_us - row.event_us <= view.ttl_us]
    if not fresh:
        return "expired"
    best: ReferenceRow | None = None
    for row in fresh:
        if view.as_of == "available" and row.created_or_event_us > at_us:
            continue
        if best is None or _order(row) > _order(best):
            best = row
    return "not_yet_available" if best is None else best


def reference_join(
    frame_rows: Sequence[Mapping[str, Any]], time_column: str, views: Sequence[ReferenceView]
) -> list[dict[str, Any]]:
    """Return one dict for each frame row, in order: ``{view}__{feature}`` to value, None where there is no answer.

    ``frame_rows`` map key columns to values and ``time_column`` to UTC microseconds.
    """
    joined: list[dict[str, Any]] = [{} for _ in frame_rows]
    for view in views:
        by_keys: dict[tuple[Any, ...], list[ReferenceRow]] = {}
        for row in view.rows:
            by_keys.setdefault(row.keys, []).append(row)
        for frame_row, result in zip(frame_rows, joined, strict=True):
            keys = tuple(frame_row[column] for column in view.key_columns)
            answer = reference_answer(keys, frame_row[time_column], view, by_keys.get(keys, []))
            for feature in view.features:
                value = answer.values.get(feature) if isinstance(answer, ReferenceRow) else None
                result[f"{view.name}__{feature}"] = value
    return joined


def _order(row: ReferenceRow) -> tuple[int, int, int]:
    return (row.event_us, row.created_or_event_us, row.sequence)
