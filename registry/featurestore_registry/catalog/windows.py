"""The windows of a view as its page draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore_registry.catalog.drawing import Span, spans
from featurestore_registry.catalog.reading import facts
from featurestore_registry.catalog.words import DAY, HOUR, MINUTE, SECOND, duration
from featurestore_registry.records import Record, RecordField

WIDTH = 300
"""Of the drawing of one window."""
_STEPS = (30 * DAY, 7 * DAY, DAY, HOUR, 5 * MINUTE, MINUTE, 5 * SECOND)


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One windowed feature."""

    field: RecordField
    function: str
    column: str
    where: str
    span: Span
    step: str
    """How far its old end moves at once."""


def windows_of(record: Record) -> tuple[list[WindowRow], list[tuple[float, str]]]:
    """Return a view's windows and the axis that they are drawn on; none where it has none."""
    found = facts(record.document, lambda document: _pairs(document["aggregations"])) or []
    if len(found) != len(record.fields):  # one feature for each window, in this order
        return [], []
    drawn, ticks = spans([length for _, length in found], width=WIDTH)
    rows = [
        WindowRow(
            field,
            str(told["function"]),
            str(told["column"]),
            str(told.get("where") or ""),
            span,
            _step(length, told.get("resolution_us")),
        )
        for field, (told, length), span in zip(record.fields, found, drawn, strict=True)
    ]
    return rows, ticks


def _pairs(aggregations: Any) -> list[tuple[Mapping[str, Any], int | None]]:
    made = []
    for told in aggregations:
        _ = told["function"], told["column"]
        for length in told["windows_us"]:
            if length is not None and (not isinstance(length, int) or length <= 0):
                raise ValueError("a window has a length")
            made.append((told, length))
    return made


def _step(length: int | None, resolution: Any) -> str:
    """Return the step of a window: the one that it names, or the greatest that divides it twelve times or more."""
    if length is None:
        return ""
    if isinstance(resolution, int) and resolution > 0:
        return duration(resolution)
    return next((duration(step) for step in _STEPS if not length % step and step * 12 <= length), "")
