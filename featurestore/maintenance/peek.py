"""The newest rows of a view in the offline store."""

from __future__ import annotations

import logging

import pyarrow as pa

from featurestore.consistency.belonging import compare_table
from featurestore.errors import InputError
from featurestore.offline.interface import DataFile, TableReader
from featurestore.offline.reading import opened, read_groups
from featurestore.registered.snapshot import RegisteredView
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import CREATED, EVENT, SEQUENCE
from featurestore.workspace import Readers

logger = logging.getLogger("featurestore")


def peek(workspace: Readers, registered: RegisteredView, rows: int) -> pa.Table:
    """Return the newest ``rows`` rows of a view's table, newest first: keys, event_ts, created_ts, stored fields.

    Returns an empty table where nothing is materialized yet. Reads only the ends of the files, which are in time
    order, and no file that is older than the rows already found. Raises DamagedFileError.
    """
    mismatch = compare_table(workspace, registered)
    if mismatch is not None and mismatch.kind != "unreadable":  # the read below raises that
        logger.warning("%s %s", mismatch.message, mismatch.hint)
    version = workspace.offline.current(registered.table)
    instant = pa.timestamp("us", tz="UTC")
    kinds = registered.view.stored_types
    shown = dict.fromkeys([*registered.view.join_keys, EVENT, CREATED, *kinds])
    schema = pa.schema([(name, instant if name in (EVENT, CREATED) else arrow_type(kinds[name])) for name in shown])
    order = [(EVENT, "descending"), (CREATED, "descending"), (SEQUENCE, "descending")]
    files = () if version is None else sorted(version.files, key=lambda file: file.max_event_us, reverse=True)
    found = schema.append(pa.field(SEQUENCE, pa.int64())).empty_table()
    for file in files:
        if found.num_rows == rows and found[EVENT][-1].cast(pa.int64()).as_py() > file.max_event_us:
            break
        workspace.offline.verify([file])
        found = pa.concat_tables([found, _end_of(workspace.offline, file, rows, schema)]).sort_by(order).slice(0, rows)
    return found.select(schema.names)


def peek_dropped(workspace: Readers, registered: RegisteredView, rows: int) -> pa.Table:
    """Return rows of a view's source that runs do not take, with the reason; see `Sources.dropped`."""
    if not workspace.engine.capabilities.lists_dropped_rows:
        raise InputError("This engine does not list what is dropped.")
    return workspace.engine.sources.dropped(registered.view, rows)


def _end_of(offline: TableReader, file: DataFile, rows: int, schema: pa.Schema) -> pa.Table:
    """Return the last ``rows`` rows of one file in the view's columns; a column that the file lacks is null."""
    with opened(offline, file) as parquet:
        groups, found = [], 0
        for group in reversed(range(parquet.num_row_groups)):
            groups.append(group)
            found += parquet.metadata.row_group(group).num_rows
            if found >= rows:
                break
        table = read_groups(parquet, sorted(groups), schema.append(pa.field(SEQUENCE, pa.int64())))
    return table.slice(max(0, table.num_rows - rows))
