"""Two values of a difference as text: it shows what differs, and different values never read the same."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from typing import Any

from featurestore.types.times import MICROSECOND, duration_text

LONGEST = 100
"""Texts longer than this many characters go on lines of their own."""
CONTEXT = 2
"""Equal lines shown around those that differ."""
_LOOKS_OTHER = re.compile(r"['\"\[{(+\-\d]|(none|true|false|nan|inf|b['\"])", re.IGNORECASE)
"""How the text of a value that is not a string begins."""


def difference_lines(before: Any, after: Any) -> list[str]:
    """Return ``old -> new`` as one line; for lists, mappings and long texts an empty line, then a diff."""
    old, new = _parts(before), _parts(after)
    if old is not None or new is not None:
        diff = list(difflib.unified_diff(old or [_text(before)], new or [_text(after)], lineterm="", n=CONTEXT))
        if diff:
            shown = [_place(line) if line.startswith("@@") else f"{line[0]} {line[1:]}" for line in diff[2:]]
            return ["", *(line for line in shown if line)]
    texts = _text(before), _text(after)
    return [" -> ".join(texts if texts[0] != texts[1] else (repr(before), repr(after)))]


def _place(head: str) -> str:
    """Return the line that says where a hunk begins; an empty text for the first line of the text."""
    number = int(head.split()[1].lstrip("-").split(",")[0])
    return f"… line {number}" if number > 1 else ""


def _parts(value: Any) -> list[str] | None:
    """Return the lines by which a value is compared, None for a short one."""
    if isinstance(value, str):
        lines = value.split("\n")  # not splitlines: a line feed at the end is a difference too
        return [_line(line) for line in lines] if len(lines) > 1 or len(value) > LONGEST else None
    if isinstance(value, Mapping):
        return sorted(f"{key!r}: {item!r}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_text(item) for item in value]
    return sorted(map(_text, value)) if isinstance(value, Set) else None


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, timedelta):
        return duration_text(value // MICROSECOND)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, str):
        return repr(value)
    if not value:
        return "(empty)"
    is_odd = _LOOKS_OTHER.match(value) or value != value.strip() or " -> " in value
    return _quoted(value) if is_odd else _line(value)


def _line(text: str) -> str:
    """Return a line as it is where everything in it can be seen, else quoted."""
    is_plain = text.isprintable() and text == text.rstrip() and not text.startswith(("'", '"'))
    return text if is_plain and unicodedata.is_normalized("NFC", text) else _quoted(text)


def _quoted(text: str) -> str:
    return repr(text) if unicodedata.is_normalized("NFC", text) else ascii(text)
