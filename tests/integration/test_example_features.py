"""The example's definitions against the example's data, each query run by DuckDB alone."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.example import EXAMPLE, copy_example

from featurestore.definitions import FeatureSelection, FeatureService, FeatureView, OnDemandFeatureView
from featurestore.project.loader import load_definitions
from featurestore.project.settings import read_settings
from featurestore.types.arrow import value_type_of

pytestmark = pytest.mark.uncounted

DEFINITIONS = load_definitions(EXAMPLE)
VIEWS = {each.name: each for each in DEFINITIONS if isinstance(each, FeatureView)}


def view_rows(view: FeatureView, sources: Path) -> duckdb.DuckDBPyRelation:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for source in view.batch_sources:
        path = sources / Path(source.path).name
        connection.execute(f"CREATE VIEW {source.name} AS FROM read_parquet('{path}')")
    return connection.sql(view.sql or f"FROM {view.batch_sources[0].name}")


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_a_view_gives_its_keys_times_and_declared_features(name: str, example_sources: Path) -> None:
    view = VIEWS[name]
    table = view_rows(view, example_sources).to_arrow_table()
    times = [view.timestamp_field, *filter(None, [view.created_timestamp_field])]
    assert {*view.join_keys, *times} <= set(table.column_names)
    for field in view.fields or ():
        assert value_type_of(table.schema.field(field.name).type) == field.type, field.name
    if view.sql is not None:
        assert set(table.column_names) == {*view.join_keys, *times, *(field.name for field in view.features)}
    assert len(table) > 0


@pytest.mark.parametrize("name", ["carrier_delays", "route_delays"])
def test_a_delay_is_dated_by_the_landing_that_made_it_known(name: str, example_sources: Path) -> None:
    view = VIEWS[name]
    flights = pq.read_table(example_sources / "flights.parquet")
    landed = flights.filter(pc.is_valid(flights["arr_delay"]))
    rows = view_rows(view, example_sources).to_arrow_table()
    found = rows.select([*view.join_keys, "arrived_at", "recorded_at", "last_delay"])
    expected = landed.select([*view.join_keys, "arrived_at", "recorded_at", "arr_delay"])
    order = [(column, "ascending") for column in expected.column_names]
    expected = expected.sort_by(order).rename_columns(found.column_names)
    assert found.sort_by([(column, "ascending") for column in found.column_names]).equals(expected)
    assert view.timestamp_field == "arrived_at"


def test_joining_the_airports_neither_adds_nor_drops_a_flight(example_sources: Path) -> None:
    rows = view_rows(VIEWS["plane_status"], example_sources).to_arrow_table()
    assert len(rows) == 336_776
    without_place = set(rows.filter(pc.is_null(rows["last_lat"]))["last_airport"].to_pylist())
    assert without_place == {"BQN", "PSE", "SJU", "STT"}
    assert len(set(rows["tailnum"].to_pylist()) - {None} - plane_file(example_sources)) == 721


def plane_file(sources: Path) -> set[str]:
    return {str(row[0]) for row in duckdb.sql(f"SELECT tailnum FROM '{sources}/planes.parquet'").fetchall()}


def test_departure_facts_row_by_row() -> None:
    (facts,) = (each for each in DEFINITIONS if isinstance(each, OnDemandFeatureView))
    noon = datetime(2013, 3, 10, 12, tzinfo=UTC)
    cases: list[tuple[Any, Any, Any, Any, float | None, float | None]] = [
        (noon, noon.replace(hour=10, minute=30), 1400, 200, 90.0, 7.0),
        (noon, None, 1400, None, None, None),
        (None, noon, None, 200, None, None),
        (noon, noon, 1400, 0, 0.0, None),
    ]
    columns = list(zip(*cases, strict=True))
    names = ["sched_dep", "last_landed_at", "distance", "seats"]
    result = facts(dict(zip(names, map(list, columns[:4]), strict=True)))
    assert result == {"minutes_since_landing": list(columns[4]), "miles_per_seat": list(columns[5])}
    assert {field.name for field in facts.features} == set(result)


def test_the_service_reads_one_view_for_both_ends_of_the_flight() -> None:
    (service,) = (each for each in DEFINITIONS if isinstance(each, FeatureService))
    selections = [each for each in service.features if isinstance(each, FeatureSelection)]
    ends = {s.name: s.join_key_columns for s in selections if s.view.name == "airport_profile"}
    assert ends == {"origin_airport": {"airport": "origin"}, "dest_airport": {"airport": "dest"}}
    assert {"origin", "dest"} in [set(s.join_key_columns.values()) for s in selections]


def test_the_copy_of_the_example_is_a_project_of_its_own(tmp_path: Path, example_sources: Path) -> None:
    folder = copy_example(tmp_path / "copy", example_sources)
    assert read_settings(folder).project == "nyc_flights"
    for each in DEFINITIONS:
        if isinstance(each, FeatureView):
            assert all((folder / source.path).is_file() for source in each.batch_sources)


def test_definitions_read_nothing_when_they_are_imported(tmp_path: Path) -> None:
    """They import in an empty folder, and load no engine and no driver."""
    code = (
        f"import runpy, sys; runpy.run_path({str(EXAMPLE / 'features.py')!r}); "
        "print(sorted({'duckdb', 'pyarrow', 'pandas', 'redis', 'lmdb', 'sqlalchemy', 'deltalake'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
