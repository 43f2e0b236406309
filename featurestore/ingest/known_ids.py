"""The ids of a log's newest events, in memory: what a commit of a few events is compared with.

The engine compares any number of events with any log, but takes tens of milliseconds to begin. One who pushes an event
a second waits for that; so the events of the last day are kept by their ids, and only commits that came since are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.definitions import FeatureView
from featurestore.definitions.events import ONE_EVENT_US
from featurestore.engine.interface import JudgedEvents
from featurestore.offline.interface import OfflineReader, TableVersion
from featurestore.types.columns import CREATED, EVENT, SEQUENCE

if TYPE_CHECKING:
    import pyarrow as pa

MOST_JUDGED = 2_000
"""For more events at once the engine is quicker."""
MOST_KNOWN = 200_000
"""So many events are kept, about 50 MB; of a busier log the engine judges."""
_KEPT_US = 2 * ONE_EVENT_US
MANY_ROWS = 2_000
"""A commit of more stays columns, of which those with the ids asked for are looked at."""


class Known(NamedTuple):
    """One event of the log."""

    event_us: int
    sequence: int
    content: int
    """A hash of all that makes it another event although its id is the same."""


class KnownIds:
    """The events of one log since some event time. One thread uses it at a time."""

    def __init__(self, view: FeatureView) -> None:
        assert view.event_id is not None
        self._view = view
        self._keys = list(view.join_keys)
        self._id = next(name for name in view.stored_types if name.lower() == view.event_id.lower())
        self._rest = [field.name for field in view.stored if field.name != self._id]
        self._forget()

    def is_of(self, view: FeatureView) -> bool:
        """Tell whether it compares events as a view has them."""
        return self._view is view or self._view == view

    def _forget(self) -> None:
        self._known: defaultdict[tuple[Any, ...], list[Known]] = defaultdict(list)
        self._columns: list[pa.Table] = []
        """Events of large commits."""
        self._count = 0
        self._read: TableVersion | None = None
        self._since_us = 0

    def judge(
        self, offline: OfflineReader, version: TableVersion | None, rows: pa.Table, now_us: int
    ) -> JudgedEvents | None:
        """Compare events on their way into a log with it, and with one another, as `Log.judge`.

        None where that takes the engine: many events, old ones, or a log with more of the last day than are kept.
        """
        import numpy as np

        if rows.num_rows > MOST_JUDGED or not self._follow(offline, version, now_us):
            return None
        in_columns = self._in_columns(rows)
        events = sorted(self._events(rows), key=lambda event: event[1:3])
        if events and events[0][1] - ONE_EVENT_US < self._since_us:
            return None
        known_as = np.full(rows.num_rows, -1, np.int64)
        is_new, conflicts = np.ones(rows.num_rows, np.bool_), np.zeros(rows.num_rows, np.bool_)
        kept: defaultdict[tuple[Any, ...], list[tuple[int, int]]] = defaultdict(list)
        for row, event_us, _, of, content in events:
            known = [*self._known.get(of, ()), *in_columns.get(of, ())]
            near = [one for one in known if abs(one.event_us - event_us) <= ONE_EVENT_US]
            if near:
                is_new[row], known_as[row] = False, max(one.sequence for one in near)
                conflicts[row] = all(one.content != content for one in near)
                continue
            same = next((its for at_us, its in kept[of] if event_us - at_us <= ONE_EVENT_US), None)
            if same is None:
                kept[of].append((event_us, content))
            else:
                is_new[row], conflicts[row] = False, same != content
        return JudgedEvents(is_new, known_as, conflicts)

    def _follow(self, offline: OfflineReader, version: TableVersion | None, now_us: int) -> bool:
        """Read what was committed since; False where that is too much to keep."""
        before = self._read
        if version is None or (before is not None and not _goes_on(offline, before, version)):
            self._forget()
            before = None
        if version is None:
            return True
        if before is None or now_us - self._since_us > 2 * _KEPT_US:
            self._forget()
            self._since_us, before = now_us - _KEPT_US, None
        after = -1 if before is None else before.next_sequence - 1
        files = [f for f in version.files if f.max_sequence > after and f.max_event_us >= self._since_us]
        if sum(file.rows for file in files) + self._count > MOST_KNOWN:
            self._forget()
            return False
        offline.verify(files)
        for file in files:
            with offline.open(file) as opened:
                self._add(opened, after)
        self._read = version
        return True

    def _add(self, opened: pa.NativeFile, after: int) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        table = pq.read_table(opened)
        for name in self._rest:
            if name not in table.column_names:  # written before the view had it
                table = table.append_column(name, pa.nulls(table.num_rows))
        is_new = pc.greater(table.column(SEQUENCE), after)
        is_kept = pc.greater_equal(table.column(EVENT).cast(pa.int64()), self._since_us)
        table = table.select([*self._keys, self._id, *self._rest, EVENT, CREATED, SEQUENCE])
        table = table.filter(pc.and_(is_new, is_kept))
        self._count += table.num_rows
        if table.num_rows > MANY_ROWS:
            self._columns.append(table)
        else:
            self._note(table, self._known)

    def _in_columns(self, rows: pa.Table) -> Mapping[tuple[Any, ...], list[Known]]:
        """Return the events of large commits that have an id of one of the rows."""
        import pyarrow.compute as pc

        found = defaultdict[tuple[Any, ...], list[Known]](list)
        for table in self._columns:
            ids = table.column(self._id)
            asked = rows.column(self._id).combine_chunks().cast(ids.type)
            self._note(table.filter(pc.is_in(ids, value_set=asked)), found)
        return found

    def _note(self, table: pa.Table, into: defaultdict[tuple[Any, ...], list[Known]]) -> None:
        sequences = table.column(SEQUENCE).to_pylist()
        for row, event_us, _, of, content in self._events(table):
            into[of].append(Known(event_us, sequences[row], content))

    def _events(self, rows: pa.Table) -> Iterator[tuple[int, int, int, tuple[Any, ...], int]]:
        """Yield row, event time, known time, keys with id, and content of each event."""
        event_us, created_us = (_plain(rows.column(name)) for name in (EVENT, CREATED))
        ids = zip(*(_plain(rows.column(name)) for name in (*self._keys, self._id)), strict=True)
        rest = [_plain(rows.column(name)) for name in self._rest]
        contents = zip(event_us, *rest, strict=True)
        for row, (at_us, made_us, of, content) in enumerate(zip(event_us, created_us, ids, contents, strict=True)):
            yield row, at_us, at_us if made_us is None else made_us, of, hash(repr(content))


def _goes_on(offline: OfflineReader, before: TableVersion, version: TableVersion) -> bool:
    """Tell whether a version has all rows of another, and the rows after them are new."""
    if version.number < before.number or version.rows_kept_since > before.number:
        return False
    commit = offline.find_commit(before.table, before.number)
    return commit is not None and commit.identity == before.identity


def _plain(column: pa.ChunkedArray) -> list[Any]:
    import pyarrow as pa

    values: list[Any] = (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
    return values
