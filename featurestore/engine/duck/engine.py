"""The DuckDB engine: the interface, each method a call of the module that does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView, ParquetSource
from featurestore.engine.duck import compact, dropped, examine, join, latest, query, scan, withdrawal
from featurestore.engine.duck.session import EngineSettings, Session
from featurestore.engine.duck.sources import digest_of
from featurestore.engine.interface import (
    Engine,
    JoinFacts,
    SourceColumn,
    SourceFile,
    Span,
    StagedRows,
    StageRequest,
    ViewJoin,
    Withdrawal,
)

if TYPE_CHECKING:
    import pyarrow as pa


class DuckEngine(Engine):
    """An engine of one process on DuckDB. ``root`` is the folder that relative source paths start from."""

    def __init__(self, root: Path, settings: EngineSettings | None = None) -> None:
        self._session = Session(root, settings or EngineSettings())
        self._choices: join.Choices | None = None

    def prepare(self) -> None:
        """See `Engine.prepare`."""
        self._session.prepare()

    def files(self, source: ParquetSource) -> tuple[SourceFile, ...]:
        """See `Engine.files`."""
        return scan.files(self._session, source)

    def digest(self, file: SourceFile) -> str:
        """See `Engine.digest`."""
        return digest_of(self._session.root, file)

    def columns(self, source: FeatureView | ParquetSource) -> tuple[SourceColumn, ...]:
        """See `Engine.columns`."""
        return scan.columns(self._session, source)

    def first_event_us(self, view: FeatureView) -> int | None:
        """See `Engine.first_event_us`."""
        return scan.first_event_us(self._session, view)

    def stage(self, request: StageRequest) -> StagedRows:
        """See `Engine.stage`."""
        return scan.stage(self._session, request)

    def latest(
        self,
        view: FeatureView,
        files: Sequence[str],
        *,
        changed: Sequence[str] | None,
        first_sequence: int = 0,
        until_us: int | None = None,
        batch_rows: int,
    ) -> Iterator[pa.RecordBatch]:
        """See `Engine.latest`."""
        return latest.latest(
            self._session,
            view,
            files,
            changed=changed,
            first_sequence=first_sequence,
            until_us=until_us,
            batch_rows=batch_rows,
        )

    def entities(self, view: FeatureView, files: Sequence[str], *, since_us: int, until_us: int) -> tuple[int, int]:
        """See `Engine.entities`."""
        return latest.entities(self._session, view, files, since_us=since_us, until_us=until_us)

    def withdraw(self, view: FeatureView, files: Sequence[str], span: Span, *, folder: Path | None) -> Withdrawal:
        """See `Engine.withdraw`."""
        return withdrawal.withdraw(self._session, view, files, span, folder=folder)

    def replacements(
        self,
        view: FeatureView,
        files: Sequence[str],
        *,
        removed: Sequence[str],
        added: Sequence[str],
        until_us: int | None = None,
        batch_rows: int,
    ) -> Iterator[pa.RecordBatch]:
        """See `Engine.replacements`."""
        return withdrawal.replacements(
            self._session, view, files, removed=removed, added=added, until_us=until_us, batch_rows=batch_rows
        )

    def compact(self, view: FeatureView, files: Sequence[str], path: Path) -> None:
        """See `Engine.compact`."""
        compact.compact(self._session, view, files, path)

    def join(
        self, frame: pa.Table, time_column: str, views: Sequence[ViewJoin], *, batch_rows: int
    ) -> pa.RecordBatchReader:
        """See `Engine.join`."""
        self._choices = join.Choices(frame)
        return join.join(self._session, frame, time_column, views, batch_rows=batch_rows, choices=self._choices)

    def examine(self, frame: pa.Table, time_column: str, views: Sequence[ViewJoin]) -> tuple[JoinFacts, ...]:
        """See `Engine.examine`."""
        return examine.examine(self._session, frame, time_column, views, choices=self._choices)

    def query(
        self,
        sql: str,
        sources: Mapping[str, ParquetSource],
        views: Mapping[str, tuple[FeatureView, Sequence[str]]],
    ) -> pa.Table:
        """See `SqlReader.query`."""
        return query.query(self._session, sql, sources, views)

    def span(
        self, view: FeatureView, files: Sequence[str], start_us: int, end_us: int, *, batch_rows: int
    ) -> pa.RecordBatchReader:
        """See `SqlReader.span`."""
        return query.span(self._session, view, files, start_us, end_us, batch_rows=batch_rows)

    def dropped(self, view: FeatureView, rows: int) -> pa.Table:
        """See `SqlReader.dropped`."""
        return dropped.dropped(self._session, view, rows)
