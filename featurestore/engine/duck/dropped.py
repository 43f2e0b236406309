"""The rows of a view's source that no run takes: without keys or event time, or followed by one with the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView
from featurestore.engine.duck.scan import KNOWN_US, opened
from featurestore.engine.duck.session import Session, quote
from featurestore.engine.duck.sources import CREATED_US, EVENT_US, POSITION
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
            order = ", ".join([EVENT_US, KNOWN_US, *map(quote, scanned.values)])
            found = f"SELECT *, row_number() OVER (ORDER BY {order}) AS {POSITION} FROM ({found})"
        is_null = " OR ".join(f"{quote(key)} IS NULL" for key in view.join_keys)
        last = f"max({POSITION}) OVER (PARTITION BY {keys}, {EVENT_US}, {KNOWN_US})"
        query = (
            f"SELECT CASE WHEN {EVENT_US} IS NULL THEN '{NO_TIME}' WHEN {is_null} THEN '{NULL_KEY}' "
            f"WHEN {POSITION} < {last} THEN '{DUPLICATE}' END AS fs_dropped, {shown}, "
            f"make_timestamptz({EVENT_US}) AS {EVENT}, make_timestamptz({CREATED_US}) AS {CREATED} FROM ({found})"
        )
        return scanned.connection.sql(
            f"SELECT * FROM ({query}) WHERE fs_dropped IS NOT NULL "
            f"ORDER BY fs_dropped, {EVENT} DESC, {keys} LIMIT {rows}"
        ).to_arrow_table()
