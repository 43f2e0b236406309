"""Whole views and frames joined by the plain loops of `featurestore.training.reference`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from featurestore.training.reference import Reason, ReferenceRow, reference_answer


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

    def answer(
        self, keys: tuple[Any, ...], at_us: int, rows: Sequence[ReferenceRow] | None = None
    ) -> ReferenceRow | Reason:
        """Return `reference_answer` of this view's rows, or of those that have these keys."""
        return reference_answer(keys, at_us, self.rows if rows is None else rows, ttl_us=self.ttl_us, as_of=self.as_of)


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
            answer = view.answer(keys, frame_row[time_column], by_keys.get(keys, []))
            for feature in view.features:
                value = answer.values.get(feature) if isinstance(answer, ReferenceRow) else None
                result[f"{view.name}__{feature}"] = value
    return joined
