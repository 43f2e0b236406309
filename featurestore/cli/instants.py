"""Instants on the command line: ISO 8601, ``now``, and how long ago, as ``-7d``; and durations."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta

import click

from featurestore.errors import ValueTypeError
from featurestore.project.settings import read_duration
from featurestore.types.times import MICROSECOND, MIN_INSTANT, Clock, to_instant

Moment = Callable[[Clock], int]
"""An instant in UTC microseconds, once a clock says what is now."""
_NEGATIVE = re.compile(r"-\d")


class InstantsCommand(click.Command):
    """A command that takes ``-7d`` as an argument; click by itself would look for an option ``-7``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. A blank before ``-7d`` hides it from click's search for options; `instant` strips it."""
        return super().parse_args(ctx, [f" {arg}" if _NEGATIVE.match(arg) else arg for arg in args])


def instant(ctx: click.Context, parameter: click.Parameter, given: str | None) -> Moment | None:
    """Return a moment, as the callback of an argument; both fail with a message that names the value."""
    if given is None:
        return None
    text = given.strip()
    try:
        if text != "now" and not text.startswith("-"):
            at_us = to_instant(text)
            return lambda clock: at_us
        ago = 0 if text == "now" else read_duration(text[1:]) // MICROSECOND
    except (ValueError, ValueTypeError):
        written = "2013-11-03T05:30:00Z, 2013-11-03, now, or how long ago in ms, s, m, h or d, such as -7d"
        raise click.BadParameter(f"{text!r} is no instant. Write it as {written}.") from None

    def before_now(clock: Clock) -> int:
        found = clock() - ago
        if found < MIN_INSTANT:
            raise click.BadParameter(f"{text!r} lies before the year 1.", ctx, parameter)
        return found

    return before_now


def duration(ctx: click.Context, _: click.Parameter, given: str | None) -> timedelta | None:
    """Return a length of time, such as ``6h``, as the callback of an option."""
    try:
        return None if given is None else read_duration(given)
    except ValueError as error:
        raise click.BadParameter(f"{given!r}: {error}.") from None


def durations(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[timedelta, ...]:
    """Return lengths of time, as the callback of an option that may be repeated."""
    return tuple(found for text in given if (found := duration(ctx, parameter, text)) is not None)
