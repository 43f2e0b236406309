"""What was committed and online when something was served: the same join, over the rows that counted by then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.quality.compared import Compared, Reading, key_tuples
from featurestore.quality.rows import NONE, LogRows, stored_values
from featurestore.quality.sameness import Bools, same
from featurestore.quality.windows import WindowEvents
from featurestore.request.features import FeatureRequest, OnDemandRead
from featurestore.request.on_demand import OnDemandFunction
from featurestore.served.shape import AT, CREATED, EVENT, REQUEST, view_column
from featurestore.training.frames import TIME, EntityFrame
from featurestore.types.arrow import arrow_type, column_from_values
from featurestore.types.times import MAX_INSTANT
from featurestore.types.values import ValueType
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

Int64s = npt.NDArray[np.int64]
MOST_LOOKED_UP = 50_000
"""Of at most so many rows it is looked up whether the log has the record that was served."""


class Then:
    """Compares features with what was online then."""

    def __init__(
        self,
        workspace: Readers,
        request: FeatureRequest,
        functions: Sequence[OnDemandFunction],
        rows: pa.Table,
        frame: EntityFrame,
        reads: Sequence[Reading],
        outputs: Sequence[Compared],
    ) -> None:
        self._workspace, self._request, self._functions = workspace, request, functions
        self._rows, self._frame, self._reads = rows, frame, reads
        self.at_us: Int64s = rows.column(AT).cast("int64").to_numpy()
        differs = np.zeros(len(self.at_us), bool)
        for output in outputs:
            differs |= output.differs_now
        picked = differs.copy()
        for each in reads:
            each.then = each.now if each.is_windowed else self._chosen(each)
            picked |= each.moved
        self.rows: Int64s = np.flatnonzero(picked)
        """The rows that may differ from one of the two answers."""
        for each in reads:
            if each.is_windowed:
                each.events = self._events(each, np.flatnonzero(differs))
        self._places = np.full(len(self.at_us), NONE, np.int64)
        self._places[self.rows] = np.arange(len(self.rows))
        self._stored: dict[int, pa.Table] = {}
        self._keys: dict[int, list[Any]] = {}
        self._lost: dict[int, Bools] = {}

    def compare(self, output: Compared) -> int:
        """Find where a feature differs from what was online then; returns in how many rows that is not known."""
        found, column, kind = output.differs_now.copy(), output.column, output.column.field.type
        lost = np.zeros(len(found), bool)
        if column.read is not None:
            each = self._reads[column.read]
            rows = np.flatnonzero(found if each.is_windowed else each.moved & output.compared)
            expected = self._values(column.read, column.field.name, kind, rows)
            lost |= self._lost_rows(column.read, [column.field.name], np.flatnonzero(found | each.moved))
        else:
            assert column.on_demand is not None
            read, moved = self._request.on_demand[column.on_demand], found.copy()
            asked: dict[int, list[str]] = {}
            for argument in read.inputs:
                if argument.read is not None:
                    moved |= self._reads[argument.read].moved
                    asked.setdefault(argument.read, []).append(argument.name)
            rows = np.flatnonzero(moved & output.compared)
            for place, names in asked.items():
                lost |= self._lost_rows(place, names, rows)
            names = [each.name for each in read.view.features]
            computed = self._functions[column.on_demand].on_arrow(self.inputs(read, rows), len(rows))
            expected = computed[names.index(column.field.name)]
        if len(rows):
            import pyarrow as pa

            found[rows] = ~same(output.served.take(pa.array(rows)), expected, kind)
        output.differs_then = found & ~lost
        return int((found & lost).sum())

    def inputs(self, read: OnDemandRead, rows: Int64s) -> dict[str, pa.Array]:
        """Return what an on-demand function takes of some rows, by what was online then."""
        import pyarrow as pa

        found: dict[str, pa.Array] = {}
        for argument in read.inputs:
            kind = argument.field.type
            if argument.read is not None:
                found[argument.name] = self._values(argument.read, argument.name, kind, rows)
                continue
            column = REQUEST + argument.name
            is_kept = column in self._rows.column_names
            kept = self._rows.column(column).take(pa.array(rows)).combine_chunks() if is_kept else None
            found[argument.name] = pa.nulls(len(rows), arrow_type(kind)) if kept is None else kept
        return found

    def key(self, place: int, row: int) -> tuple[Any, ...]:
        """Return the join keys of a row of `rows` for a read."""
        if place not in self._keys:
            self._keys[place] = key_tuples(self._reads[place].keys(self._frame, self.rows))
        found: tuple[Any, ...] = self._keys[place][self._places[row]]
        return found

    def _values(self, place: int, feature: str, kind: ValueType, rows: Int64s) -> pa.Array:
        """Return a feature of a read at some of `rows`."""
        import pyarrow as pa

        each = self._reads[place]
        if each.events is not None:
            asked = ((self.key(place, row), int(self.at_us[row])) for row in rows.tolist())
            return column_from_values([each.events.then(feature, *one) for one in asked], kind)
        if place not in self._stored:
            offline, registered = self._workspace.offline, each.read.registered
            self._stored[place] = stored_values(offline, registered, each.held, each.then[self.rows])
        return self._stored[place].column(feature).take(pa.array(self._places[rows])).combine_chunks()

    def _chosen(self, each: Reading) -> Int64s:
        """Return which rows of a log answered then."""
        import pyarrow as pa

        since, spans = each.past.since(), each.held.spans(each.pinned.view_join())
        newest_us = max((instant for _, instant in since), default=0)
        if len(spans) == 1 and newest_us <= self.at_us.min(initial=MAX_INSTANT):
            return each.now
        found = np.full(len(self.at_us), NONE, np.int64)
        for begin_us, end_us, join in spans:
            is_in = np.ones(len(found), bool)
            if begin_us is not None:
                is_in &= self.at_us >= begin_us
            if end_us is not None:
                is_in &= self.at_us < end_us
            mine = np.flatnonzero(is_in)
            if len(mine) and join.files:
                keys = self._frame.keys if len(mine) == len(found) else self._frame.keys.take(pa.array(mine))
                chosen = self._workspace.engine.joins.chosen(keys, TIME, join, since=since)
                found[mine] = sequences(chosen)
        return found

    def _events(self, each: Reading, rows: Int64s) -> WindowEvents:
        engine, keys = self._workspace.engine, each.keys(self._frame, rows)
        return WindowEvents(
            engine.joins, self._workspace.offline, each.pinned, each.past, each.held, keys, self.at_us[rows]
        )

    def _lost_rows(self, place: int, features: Sequence[str], rows: Int64s) -> Bools:
        """Return for which of some rows the answer of then may be a row that is gone since."""
        each, found = self._reads[place], np.zeros(len(self.at_us), bool)
        if not each.held.lost:
            return found
        if each.events is not None:
            at_us = self.at_us[rows].tolist()
            found[rows] = [any(each.events.is_lost(name, at) for name in features) for at in at_us]
            return found
        if place not in self._lost:
            self._lost[place] = self._served_of_lost(each, place)
        return self._lost[place]

    def _served_of_lost(self, each: Reading, place: int) -> Bools:
        """Return the rows whose record may be of a row that was withdrawn and is gone: the log does not have it."""
        found = np.zeros(len(self.at_us), bool)
        event_us, created_us = (self._record(each, name) for name in (EVENT, CREATED))
        for lost in each.held.lost:
            found |= (lost.start_us <= event_us) & (event_us < lost.end_us) & (self.at_us < lost.offline_us)
        rows = np.flatnonzero(found & np.isin(np.arange(len(found)), self.rows))[:MOST_LOOKED_UP]
        log = LogRows(
            self._workspace.offline, each.read.registered, each.held, each.keys(self._frame, rows), self.at_us[rows]
        )
        for row in rows.tolist():
            found[row] = not log.same(self.key(place, row), int(event_us[row]), int(created_us[row]))
        return found

    def _record(self, each: Reading, name: str) -> Int64s:
        import pyarrow.compute as pc

        column = view_column(each.read, name)
        if column not in self._rows.column_names:
            return np.full(len(self.at_us), np.iinfo(np.int64).min)
        found: Int64s = pc.fill_null(self._rows.column(column).cast("int64"), np.iinfo(np.int64).min).to_numpy()
        return found


def sequences(chosen: pa.Array) -> Int64s:
    """Return ``fs_seq`` as numbers, `NONE` for null."""
    import pyarrow.compute as pc

    found: Int64s = pc.fill_null(chosen, NONE).to_numpy(zero_copy_only=False).astype(np.int64)
    return found
