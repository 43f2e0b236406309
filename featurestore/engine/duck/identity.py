"""Which row is which, in SQL: rows with equal keys, event time and known time are versions of one row.

A row is known from its created time on; a null one counts as the event time. Source rows on their way into a table
carry their times as integers (`EVENT_US`, `CREATED_US`), rows of a table as ``event_ts`` and ``created_ts``.
"""

from __future__ import annotations

from featurestore.definitions import FeatureView
from featurestore.engine.duck.session import quote
from featurestore.types.columns import CREATED, EVENT, SEQUENCE

EVENT_US, CREATED_US, KNOWN_US = "fs_event_us", "fs_created_us", "fs_known_us"
"""Columns of source rows and of rows that are compared with them, in UTC microseconds."""
SOURCE_KNOWN = f"coalesce({CREATED_US}, {EVENT_US})"


def known(of: str = "") -> str:
    """Return the instant at which a table's row became known; ``of`` is the table's alias."""
    prefix = f"{of}." if of else ""
    return f"coalesce({prefix}{CREATED}, {prefix}{EVENT})"


LOG_ORDER = (f"epoch_us({EVENT})", f"epoch_us({known()})", SEQUENCE)
"""The sort order of a table's rows: the last row of an entity is the newest."""
LOG_TIMES = f"epoch_us({EVENT}) AS {EVENT_US}, epoch_us({known()}) AS {KNOWN_US}"
SOURCE_TIMES = f"{SOURCE_KNOWN} AS {KNOWN_US}"
"""What a SELECT adds, so that `identity` names columns of its rows."""


def identity(view: FeatureView) -> str:
    """Return the columns that say which row it is, to group by and to join on (``USING``)."""
    return ", ".join([*map(quote, view.join_keys), EVENT_US, KNOWN_US])


def has_happened(event: str, known: str, by_us: int) -> str:
    """Return the condition that a row has happened and is known at an instant; the times are expressions."""
    return f"{event} <= {by_us} AND {known} <= {by_us}"


def has_keys(view: FeatureView) -> str:
    """Return the condition that no join key is null."""
    return " AND ".join(f"{quote(key)} IS NOT NULL" for key in view.join_keys)
