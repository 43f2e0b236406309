"""What happens outside of the store: flights and weather of 2013, moved to now, in files that arrive each night."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import make_sources

WEEK, DAY = timedelta(weeks=1), timedelta(days=1)
NIGHT = timedelta(hours=8)
"""Files arrive at 8 o'clock UTC, while New York sleeps."""
BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
LEARN_FROM = datetime(2013, 8, 22, tzinfo=UTC)
SERVED_FROM = datetime(2013, 10, 10, tzinfo=UTC) + NIGHT
SECONDS = 60
BOARD_HOURS = 3
BOARDS = [timedelta(hours=hours) for hours in range(1, 22, BOARD_HOURS)]
"""From a night to the boards of its day: 9, 12, … 3 o'clock UTC."""
LINE = ["flight_id", "tailnum", "carrier", "origin", "dest", "sched_dep", "distance"]
"""What a board says of a flight."""


class World:
    """Flights, weather, and files. With ``every`` each so many planes are there alone. Five windows are played."""

    def __init__(self, folder: Path, every: int = 1, window: timedelta = WEEK) -> None:
        self._folder = folder
        last = SERVED_FROM + 5 * window + 3 * DAY
        self._weeks = make_sources.weeks_until(datetime.now(UTC), last)
        self.learn_from, self.served_from = self.at(LEARN_FROM), self.at(SERVED_FROM)
        self.changed_from = self.served_from + 2 * window
        """From this night on the files of take-offs are in seconds, and nobody has said so."""
        self.bad_night = self.changed_from - 4 * DAY
        """No station tells how far one sees."""
        self.alarm_at, self.end = self.changed_from + 2 * window, self.changed_from + 3 * window
        self.last = self.at(last)
        """By this night it is known how the flights of the last boards went."""
        tables = make_sources.build_tables()
        flights = tables["flights"].query("@BEGIN <= sched_dep < @last")
        if every > 1:
            planes = sorted(flights["tailnum"].dropna().unique())[every // 3 :: every]
            flights = flights[flights["tailnum"].isin(planes)]
        flights = make_sources.shifted(flights, self._weeks)
        weather = make_sources.shifted(tables["weather"].query("observed_at < @last"), self._weeks)
        late = (flights["arr_delay"] > make_sources.LATE_MINUTES).astype("boolean").mask(flights["arr_delay"].isna())
        took_off = flights[["tailnum", "origin", "flight_id", "departed_at", "dep_delay"]]
        landed = flights[["carrier", "origin", "dest", "flight_id", "arrived_at", "arr_delay"]].assign(late=late)
        observed = weather[["origin", "observed_at", "wind_speed", "visib", "pressure"]]
        self._nights = {
            "take_offs": _by_night(took_off, "departed_at"),
            "landings": _by_night(landed, "arrived_at"),
            "observations": _by_night(observed, "observed_at"),
        }
        asked_at = flights["sched_dep"].dt.floor(f"{BOARD_HOURS}h")
        self._board = flights[LINE].assign(event_timestamp=asked_at, tailnum=flights["tailnum"].fillna("unknown"))

    def at(self, instant: datetime) -> datetime:
        """Return an instant of 2013 as it is played."""
        return instant + self._weeks * WEEK

    def begin(self) -> None:
        """Write what has arrived up to the first night that is served, a file a month, and all boards."""
        _write(self._board, self._folder / "board.parquet")
        for source, nights in self._nights.items():
            known = pd.concat([rows for night, rows in nights.items() if night <= self.served_from])
            for month, rows in known.groupby(known["recorded_at"].dt.strftime("%Y-%m")):
                _write(rows, self._folder / source / f"{month}.parquet")

    def deliver(self, night: datetime, *, is_bad: bool = False) -> None:
        """Write the files of a night, as the world has them by then; a bad one lacks how far one sees."""
        for source, nights in self._nights.items():
            rows = nights[pd.Timestamp(night)]
            if source == "observations" and is_bad:
                rows = rows.assign(visib=np.nan)
            if source == "take_offs" and night >= self.changed_from:
                rows = rows.assign(dep_delay=rows["dep_delay"] * SECONDS)
            _write(rows, self._folder / source / f"{night:%Y-%m-%d}.parquet")

    def boards(self, night: datetime) -> Iterator[tuple[datetime, list[dict[str, Any]]]]:
        """Yield the boards of the day after a night: when each is made up, and its flights."""
        for asked_at in (night + after for after in BOARDS):
            rows = self._board[self._board["event_timestamp"] == asked_at][LINE]
            if len(rows):
                yield asked_at, rows.assign(sched_dep=rows["sched_dep"].map(datetime.isoformat)).to_dict("records")


def _by_night(rows: pd.DataFrame, at: str) -> dict[pd.Timestamp, pd.DataFrame]:
    """Return rows by the night in which their file arrives: the first after they happened."""
    rows = rows[rows[at].notna()]
    night = (rows[at] - NIGHT).dt.floor("D") + DAY + NIGHT
    return dict(iter(rows.assign(recorded_at=night).groupby(night)))


def _write(rows: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(make_sources.to_arrow(rows), path)
