"""What every engine must do with SQL: that of views over their sources, and SQL over sources and views by name.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore.definitions import Entity, FeatureView, Field, ParquetSource
from featurestore.errors import (
    DamagedFileError,
    EntityFrameError,
    SourceError,
    SourceFileError,
    SourceSchemaError,
)
from featurestore.testing.engine_project import (
    INSTANT,
    EngineProject,
    EngineSuite,
    OpenEngine,
    damage,
    in_microseconds,
    instants,
    log_view,
    source_at,
    table_of,
    write_log,
)
from featurestore.training.reference import ReferenceRow
from featurestore.types import Float64, Int64, String, Timestamp


def joined(sql: str) -> FeatureView:
    """Return a view over two sources."""
    return FeatureView(
        "joined",
        entities=[Entity("thing", join_keys={"k": Int64})],
        source=[
            ParquetSource("flights", "flights.parquet", "at", "known"),
            ParquetSource("weather", "weather", "hour"),
        ],
        schema=[Field("v", Float64), Field("n", Int64)],
        sql=sql,
    )


LOG = log_view("shops", {"shop": String}, {"v": Int64})


def write_log_of_shops(project: EngineProject) -> list[Path]:
    """Write corrections of rows in two files; the last one of the same event time counts."""
    first = [
        ReferenceRow(("a",), 1, None, 0, {"v": 1}),
        ReferenceRow(("a",), 2, 5, 1, {"v": 2}),
        ReferenceRow(("b",), 2, 9, 2, {"v": 3}),
    ]
    second = [
        ReferenceRow(("a",), 1, 4, 10, {"v": 4}),
        ReferenceRow(("a",), 2, 5, 11, {"v": 5}),
        ReferenceRow(("b",), 2, 3, 12, {"v": 6}),
        ReferenceRow(("c",), 3, None, 13, {"v": None}),
    ]
    folder = project.root / "log"
    return [write_log(folder / f"{number}.parquet", LOG, rows) for number, rows in enumerate([first, second])]


NEWEST = [("a", 1, 4), ("a", 2, 5), ("b", 2, 3), ("c", 3, None)]


def shown(table: pa.Table) -> list[tuple[Any, ...]]:
    """Return shop, event time and value of each row."""
    return [(row["shop"], row["event_ts"], row["v"]) for row in in_microseconds(table).to_pylist()]


class _TwoSources(EngineSuite):
    @pytest.fixture
    def project(self, open_engine: OpenEngine, tmp_path: Path) -> EngineProject:
        """Return a project with two sources."""
        project = EngineProject(tmp_path, open_engine)
        project.write("flights.parquet", table_of(known=instants(2_500, None, 2_500, unit="ns", zone=None)))
        project.write("weather/day=1/w.parquet", pa.table({"hour": instants(0, 0), "temp": [1.0, None]}))
        return project


class EngineSqlConformance(_TwoSources):
    """The SQL of views."""

    def test_sql_joins_sources_by_name(self, project: EngineProject) -> None:
        sql = """
            WITH counted AS (SELECT day, count(*) AS n, avg(temp) AS t FROM weather GROUP BY day)
            SELECT k, "at", f.known, v + t AS v, n FROM flights f CROSS JOIN counted -- a comment at the end"""
        view = joined(sql)
        rows = project.rows(view)
        assert [(row["k"], row["v"], row["n"]) for row in rows] == [(0, 2.5, 2), (1, 2.5, 2), (2, 2.5, 2)]
        assert [row["created_ts"] and row["created_ts"].microsecond for row in rows] == [3, None, 3]
        assert project.first_event_us(view) == 0
        types = {"k": Int64, "at": Timestamp, "known": Timestamp, "v": Float64, "n": Int64}
        assert project.value_types(view) == types

    def test_sql_that_no_longer_fits_its_sources_is_told(self, project: EngineProject) -> None:
        with pytest.raises(SourceSchemaError, match=r"(?s)'joined' fails.*gone") as caught:
            project.columns(joined('SELECT k, "at", known, gone AS v, 1 AS n FROM flights, weather'))
        assert caught.value.details == {"view": "joined"}
        with pytest.raises(SourceSchemaError, match="does not fit the output of its SQL") as caught:
            project.stage(joined('SELECT k, "at", k AS n FROM flights, weather'))
        assert caught.value.details["problems"] == [
            "created time 'known' is missing. Known are: at, k, n.",
            "feature 'v' is missing. Known are: at, k, n.",
        ]

    def test_sql_that_fails_on_the_data_is_told(self, project: EngineProject) -> None:
        n = "CAST(CASE WHEN k > 1 THEN 'x' ELSE '1' END AS BIGINT) AS n"
        sql = f'SELECT k, "at", known, v, {n} FROM flights, weather'
        with pytest.raises(SourceError, match=r"(?s)'joined' fails: .*'x'"):
            project.stage(joined(sql))

    def test_sql_of_nulls_fits_every_type(self, project: EngineProject) -> None:
        view = joined('SELECT k, "at", NULL AS known, NULL AS v, NULL AS n FROM flights, weather')
        rows = project.rows(view)
        assert {(row["created_ts"], row["v"], row["n"]) for row in rows} == {(None, None, None)}


class EngineQueriesConformance(_TwoSources):
    """SQL over sources and views by name, for an engine that reads by SQL as its capabilities say."""

    def test_the_engine_says_that_it_reads_sql(self, project: EngineProject) -> None:
        assert project.engine.capabilities.reads_sql

    def test_nothing_is_read_but_the_sources(self, project: EngineProject) -> None:
        """A definition's SQL comes from people who may not read every file that the process may read."""
        secret = project.write("secret/s.parquet", pa.table({"v": ["a secret"]}))
        flights, weather = source_at("flights.parquet"), ParquetSource("weather", "weather", "hour")
        for what in (
            f"'{secret}'",
            f"read_parquet('{secret}')",
            f"read_text('{secret}')",
            f"glob('{secret.parent}/*')",
        ):
            with pytest.raises(EntityFrameError) as caught:
                project.query(f"SELECT * FROM {what}", [flights, weather])
            assert "a secret" not in str(caught.value)
        assert project.query("SELECT count(*) AS n FROM flights, weather", [flights, weather])["n"].to_pylist() == [6]

    def test_a_query_sees_views_as_they_were_last_corrected(self, project: EngineProject) -> None:
        files = write_log_of_shops(project)
        found = project.query("SELECT * FROM shops ORDER BY shop, event_ts", views=[(LOG, files)])
        assert found.column_names == ["shop", "event_ts", "v"]
        assert shown(found) == NEWEST
        joined = "SELECT k, v.v AS n FROM flights f LEFT JOIN shops v ON f.k = v.v ORDER BY k"
        found = project.query(joined, [source_at("flights.parquet")], [(LOG, files[:1])])
        assert found.to_pylist() == [{"k": 0, "n": None}, {"k": 1, "n": 1}, {"k": 2, "n": 2}]
        assert project.query("SELECT * FROM shops", views=[(LOG, [])]).num_rows == 0

    @pytest.mark.parametrize(
        ("sql", "words"),
        [("SELECT gone FROM flights", "gone"), ("SELECT CAST('x' AS BIGINT) AS n FROM flights", "'x'"), ("SELECT", "")],
    )
    def test_a_query_that_does_not_run_is_told(self, project: EngineProject, sql: str, words: str) -> None:
        with pytest.raises(EntityFrameError, match=f"(?s)entity frame fails: .*{words}"):
            project.query(sql, [source_at("flights.parquet")])

    def test_what_a_query_reads_and_cannot_is_named(self, project: EngineProject) -> None:
        files = write_log_of_shops(project)
        damage(files[1], 0, files[1].stat().st_size)
        with pytest.raises(DamagedFileError, match=r"1\.parquet"):
            project.query("SELECT * FROM shops", views=[(LOG, files)])
        with pytest.raises(DamagedFileError, match=r"1\.parquet"):
            project.span(LOG, files, 0, 9)
        (project.root / "flights.parquet").write_bytes(b"carrier,delay")
        with pytest.raises(SourceFileError, match=r"flights\.parquet"):
            project.query("SELECT * FROM flights", [source_at("flights.parquet")])

    def test_a_span_of_a_view_is_ordered_by_time_and_key(self, project: EngineProject) -> None:
        files = write_log_of_shops(project)
        found = project.span(LOG, files, 1, 4)
        assert found.schema.equals(pa.schema([("shop", pa.string()), ("event_ts", INSTANT), ("v", pa.int64())]))
        assert shown(found) == NEWEST
        assert shown(project.span(LOG, files[::-1], 2, 3)) == NEWEST[1:3]
        assert project.span(LOG, [], 0, 9).schema.equals(found.schema)
