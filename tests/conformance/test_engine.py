"""The engine suites of `featurestore.testing` over every engine that is built."""

from __future__ import annotations

import pytest
from support.engines import open_duck

from featurestore.definitions import Aggregation
from featurestore.engine.duck import profile, windowed
from featurestore.testing.engine_checks import EngineChecksConformance
from featurestore.testing.engine_dropped import DroppedRowsConformance
from featurestore.testing.engine_events import EngineEventsConformance
from featurestore.testing.engine_folders import EngineFoldersConformance
from featurestore.testing.engine_joins import EngineJoinsConformance
from featurestore.testing.engine_log import EngineLogConformance
from featurestore.testing.engine_profiles import EngineProfilesConformance
from featurestore.testing.engine_project import EngineProject, OpenEngine
from featurestore.testing.engine_queries import EngineQueriesConformance, EngineSqlConformance
from featurestore.testing.engine_source_types import EngineSourceTypesConformance
from featurestore.testing.engine_sources import EngineSourcesConformance
from featurestore.testing.engine_splits import EngineSplitsConformance
from featurestore.testing.engine_values import EngineValuesConformance
from featurestore.testing.engine_windows import (
    BEGIN_US,
    EngineWindowsConformance,
    events_view,
    frame_of,
    join_of,
    view_log,
    write_log,
)
from featurestore.training.reference import ReferenceRow
from featurestore.types import Float64


class Duck:
    @pytest.fixture
    def open_engine(self) -> OpenEngine:
        return open_duck


class TestDuckChecks(Duck, EngineChecksConformance):
    pass


class TestDuckSplits(Duck, EngineSplitsConformance):
    pass


class TestDuckSources(Duck, EngineSourcesConformance):
    pass


class TestDuckSourceTypes(Duck, EngineSourceTypesConformance):
    pass


class TestDuckFolders(Duck, EngineFoldersConformance):
    pass


class TestDuckValues(Duck, EngineValuesConformance):
    pass


class TestDuckLog(Duck, EngineLogConformance):
    pass


class TestDuckQueries(Duck, EngineQueriesConformance):
    pass


class TestDuckJoins(Duck, EngineJoinsConformance):
    pass


class TestDuckSql(Duck, EngineSqlConformance):
    pass


class TestDuckDroppedRows(Duck, DroppedRowsConformance):
    pass


class TestDuckEvents(Duck, EngineEventsConformance):
    pass


class TestDuckProfiles(Duck, EngineProfilesConformance):
    @pytest.fixture(autouse=True)
    def in_groups(self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        """Some of the cases as with thousands of columns: a few at a time."""
        if "files" in request.node.name:
            monkeypatch.setattr(profile, "CELLS_AT_ONCE", 700)


class TestDuckWindows(Duck, EngineWindowsConformance):
    @pytest.fixture(autouse=True)
    def in_parts(self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        """Half of the cases as millions of events are computed: by shares of the keys, each by several threads."""
        if "available" in request.node.name:
            monkeypatch.setattr(windowed, "EVENTS_AT_ONCE", 150)
            monkeypatch.setattr(windowed, "WORTH_A_THREAD", 50)

    def test_all_of_history_is_read_once(self, project: EngineProject, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys are shared out by the span of the log, not by that of all instants there are."""
        shares, real = [], windowed._Reading._share
        monkeypatch.setattr(windowed._Reading, "_share", lambda *given: shares.append(given) or real(*given))
        view = events_view({"v": Float64}, [Aggregation("v", "sum", windows=[None])])
        rows = [ReferenceRow((key,), BEGIN_US + key, None, key, {"v": 1.0}) for key in range(500)]
        file = write_log(project.root / "log.parquet", view_log(view), rows, without=())
        table = project.joined(frame_of(range(500), [BEGIN_US + 999] * 500), [join_of(view, [file])])
        assert table["purchases__v_sum_all"].to_pylist() == [1.0] * 500
        assert len(shares) == 1
