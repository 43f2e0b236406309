"""Writing a view's table again as one file in its order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featurestore.definitions import FeatureView
from featurestore.engine.duck.identity import LOG_ORDER
from featurestore.engine.duck.offline_sql import read_whole_log
from featurestore.engine.duck.session import Session, text, translated


def compact(session: Session, view: FeatureView, files: Sequence[str], path: Path) -> None:
    """See `Engine.compact`."""
    query = f"{read_whole_log(view, files)} ORDER BY {', '.join(LOG_ORDER)}"
    with session.open(reads=files, writes=path.parent) as connection, translated("compact", table_files=files):
        try:
            connection.execute(f"COPY ({query}) TO {text(str(path))} (FORMAT parquet, COMPRESSION zstd)")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
