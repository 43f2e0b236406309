"""A clock that tests move by hand."""

from __future__ import annotations

from datetime import datetime, timedelta

from featurestore.types.times import MICROSECOND, to_instant


class ManualClock:
    """A `featurestore.types.times.Clock` that stands still until it is moved."""

    def __init__(self, now: datetime | str | int) -> None:
        self.now_us = to_instant(now)

    def __call__(self) -> int:
        return self.now_us

    def set(self, now: datetime | str | int) -> None:
        self.now_us = to_instant(now)

    def advance(self, step: timedelta) -> None:
        self.now_us += step // MICROSECOND
