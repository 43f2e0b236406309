"""Numbers on the command line: those that are given are plain ones only.

Python would also take underscores, spaces and the digits of other scripts. A typing mistake would then become another
value: here the key of another entity.
"""

from __future__ import annotations

import re
from typing import Any

import click

PLAIN_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_NOT_FINITE = frozenset({"nan", "inf", "-inf"})


def whole_number(text: str) -> int:
    """Return a whole number as JSON writes it; raises ValueError for any other text."""
    if _WHOLE.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no plain whole number, such as 20")
    return int(text)


def number(text: str) -> float:
    """Return a decimal or scientific number, ``nan``, ``inf`` or ``-inf``; raises ValueError for any other text."""
    if PLAIN_NUMBER.fullmatch(text) is None and text.lower() not in _NOT_FINITE:
        raise ValueError(f"{text!r} is no plain number, such as 1.5")
    return float(text)


def age(age_us: int | None) -> str:
    """Return how long ago something was, in one unit; empty for None."""
    if age_us is None:
        return ""
    seconds = age_us // 1_000_000
    length, unit = next((found for found in _UNITS if seconds >= found[0]), _UNITS[-1])
    return f"{seconds // length} {unit}"


class WholeNumber(click.IntRange):
    """An option's whole number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; fails with a message that names the value."""
        if isinstance(value, str):
            try:
                value = whole_number(value)
            except ValueError as error:
                self.fail(f"{error}.", param, ctx)
        return super().convert(value, param, ctx)
