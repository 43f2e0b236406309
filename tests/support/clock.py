"""A clock that tests move by hand."""

from __future__ import annotations

from datetime import datetime, timedelta

from featurestore.types.times import MICROSECOND, system_clock, to_instant


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

    def pass_refreshes(self) -> None:
        """Move to when every server has taken up what was applied: a registry dates that by the machine's clock."""
        self.now_us = max(self.now_us, system_clock() + 60_000_000)
