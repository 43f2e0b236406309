"""The engine on DuckDB, of one process."""

from __future__ import annotations

from pathlib import Path

from featurestore.engine.duck.checks import DuckChecks
from featurestore.engine.duck.join import DuckJoins
from featurestore.engine.duck.log import DuckLog
from featurestore.engine.duck.profile import DuckProfiles
from featurestore.engine.duck.query import DuckQueries
from featurestore.engine.duck.session import EngineSettings, Session
from featurestore.engine.duck.sources import DuckSources
from featurestore.engine.interface import Engine, EngineCapabilities


def open_engine(root: Path, settings: EngineSettings | None = None) -> Engine:
    """Return an engine of one process on DuckDB. ``root`` is the folder that relative source paths start from."""
    session = Session(root, settings or EngineSettings())
    return Engine(
        sources=DuckSources(session),
        log=DuckLog(session),
        joins=DuckJoins(session),
        queries=DuckQueries(session),
        profiles=DuckProfiles(session),
        checks=DuckChecks(session),
        capabilities=EngineCapabilities(reads_sql=True, lists_dropped_rows=True),
        prepare=session.prepare,
    )
