"""The rows of a view's source that no run takes: without keys or event time, or followed by one with the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView
from featurestore.engine.duck.identity import CREATED_US, EVENT_US, SOURCE_TIMES, has_keys, identity
from featurestore.engine.duck.scan import opened
from featurestore.engine.duck.session import Session, quote
from featurestore.engine.duck.sources import POSITION
from featurestore.types.columns import CREATED, EVENT

if TYPE_CHECKING:
    import pyarrow as pa

NO_TIME, NULL_KEY, DUPLICATE = "no event time", "null key", "duplicate"


def dropped(session: Session, view: FeatureView, rows: int) -> pa.Table:
    """See `SqlReader.dropped`."""
    keys = ", ".join(map(quote, view.join_keys))
    with opened(session, view) as scanned, scanned.translated("read the source"):
        shown = ", ".join(map(quote, scanned.values))
        found = scanned.rows(scanned.values)
        if view.sql is not None:  # its rows have the order that runs give them: by their content
            found = f"SELECT *, row_number() OVER (ORDER BY {scanned.content_order}) AS {POSITION} FROM ({found})"
        last = f"max({POSITION}) OVER (PARTITION BY {identity(view)})"
        query = (
            f"SELECT CASE WHEN {EVENT_US} IS NULL THEN '{NO_TIME}' WHEN NOT ({has_keys(view)}) THEN '{NULL_KEY}' "
            f"WHEN {POSITION} < {last} THEN '{DUPLICATE}' END AS fs_dropped, {shown}, "
            f"make_timestamptz({EVENT_US}) AS {EVENT}, make_timestamptz({CREATED_US}) AS {CREATED} "
            f"FROM (SELECT *, {SOURCE_TIMES} FROM ({found}))"
        )
        return scanned.connection.sql(
            f"SELECT * FROM ({query}) WHERE fs_dropped IS NOT NULL "
            f"ORDER BY fs_dropped, {EVENT} DESC, {keys} LIMIT {rows}"
        ).to_arrow_table()
