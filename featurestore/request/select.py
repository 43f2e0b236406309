"""SQL of callers over a project's sources and views."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView, ParquetSource, PushSource
from featurestore.definitions.sql import read_tables
from featurestore.errors import DefinitionError, EntityFrameError, did_you_mean
from featurestore.registered.snapshot import Snapshot
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

_SQL = re.compile(r"(?:\s|\(|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)*(?:select|with|from)\s+\S", re.IGNORECASE)
"""How a query begins: comments and parentheses may come first."""


def is_sql(text: str) -> bool:
    """Tell whether a text begins as a query does, not as a path or a name."""
    return _SQL.match(text) is not None


def select(sql: str, workspace: Readers, snapshot: Snapshot, what: str) -> pa.Table:
    """Return the result of one SELECT over a project's sources and views by name; it sees nothing else.

    Raises EntityFrameError for anything else or an unknown name; ``what`` it makes is named in messages.
    """
    try:
        tables = read_tables(sql)
    except DefinitionError as error:
        raise EntityFrameError(f"{what[0].upper()}{what[1:]}: {error.message}", hint=error.hint) from None
    if not workspace.engine.capabilities.reads_sql:
        raise EntityFrameError("This engine reads no SQL.", hint="Pass a table.")
    known: dict[str, ParquetSource | FeatureView] = {}
    for definition in snapshot.definitions.values():
        if isinstance(definition, ParquetSource | PushSource):
            known.setdefault(definition.name, definition.batch_source)
    known |= {name: registered.view for name, registered in snapshot.views.items()}
    for table in tables:
        if table not in known:
            raise EntityFrameError(
                f"The SQL of {what} reads {table!r}, which is not a source or view of the project.",
                hint=_files_hint(table) or did_you_mean(table, known),
                table=table,
            )
    sources, views = dict[str, ParquetSource](), dict[str, tuple[FeatureView, list[str]]]()
    for table in tables:
        found = known[table]
        if isinstance(found, ParquetSource):
            sources[table] = found
        else:
            version = workspace.offline.current(snapshot.views[table].table)
            files = () if version is None else version.files
            workspace.offline.verify(files)
            views[table] = found, [file.path for file in files]
    try:
        return workspace.engine.queries.query(sql, sources, views, what=what)
    except EntityFrameError as error:
        computed = ((view, name) for view, _ in views.values() for name in _windows(view))
        for view, name in computed:
            if name.lower() == str(error.details.get("column", "")).lower():
                raise EntityFrameError(
                    f"The SQL of {what} reads {name!r}, a window of view {view.name!r}, which stores events: a window "
                    "is computed for each row of an entity frame.",
                    hint=f"Ask for it in a training set: `get_historical_features(frame, ['{view.name}:{name}'])`. SQL "
                    f"reads {', '.join(field.name for field in view.stored)} of {view.name}.",
                    column=name,
                ) from None
        raise


def _windows(view: FeatureView) -> list[str]:
    stored = {field.name for field in view.stored}
    return [field.name for field in view.features if field.name not in stored]


def _files_hint(table: str) -> str:
    """Return what to do where a query reads files by their path."""
    if not re.search(r"[/\\*]|\.(parquet|csv|json)$", table):
        return ""
    return "A query reads sources and views by name. Pass the path itself, or declare a ParquetSource and query that."
