"""The causes of differences, and their list: of so many, oldest rows first, as one can wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.quality.before import Before, Change
from featurestore.quality.causes import CAUSES, Causes, Question, ServedRecord
from featurestore.quality.compared import Compared, Reading
from featurestore.quality.past import Arrival
from featurestore.quality.rows import NONE, LogRows
from featurestore.quality.sameness import are_same
from featurestore.quality.then import Then
from featurestore.quality.windows import WindowQuestion
from featurestore.request.features import FeatureRequest
from featurestore.request.on_demand import OnDemandFunction
from featurestore.served.hashing import NO_KEY, keys_of
from featurestore.served.shape import (
    AT,
    CRC,
    CREATED,
    EVENT,
    KEY,
    KEY_ID,
    REGISTRY_AHEAD,
    REQUEST_ID,
    REVISION,
    ROW,
    SCHEMA,
    STORE_AHEAD,
    view_column,
)
from featurestore.steps import RunningStep, step
from featurestore.training.frames import EntityFrame
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

MOST_EXPLAINED, MOST_SHOWN = 50_000, 10_000
"""Of how many differences the causes are looked for, and how many of them a report lists."""
TOLD_AFTER = 1_000
"""Differences between two reports of progress."""
Int64s = npt.NDArray[np.int64]


@dataclass
class Explained:
    """Differences by cause."""

    causes: Counter[str] = field(default_factory=Counter)
    """From what is known now."""
    causes_then: Counter[str] = field(default_factory=Counter)
    """From what was online then."""
    shown: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0
    """Differences of which nobody looked for a cause."""


class Reasons:
    """Finds the causes of differences."""

    def __init__(
        self,
        workspace: Readers,
        request: FeatureRequest,
        functions: Sequence[OnDemandFunction],
        rows: pa.Table,
        before: Before,
        then: Then,
        reads: Sequence[Reading],
        frame: EntityFrame,
    ) -> None:
        self._workspace, self._request, self._functions, self._rows = workspace, request, functions, rows
        self._before, self._then, self._reads, self._frame = before, then, reads, frame
        self._log_keys = keys_of(workspace)
        self._values: dict[str, list[Any]] = {}
        self._places: dict[int, int] = {}
        self._logs: dict[int, LogRows] = {}
        self._known: dict[tuple[Any, ...], str] = {}

    def of(self, outputs: Sequence[Compared]) -> Explained:
        """Return the causes of the differences of features, at most `MOST_EXPLAINED`, by row and then by feature."""
        found = Explained()
        differing = [np.flatnonzero(output.differs) for output in outputs]
        rows = np.concatenate([np.zeros(0, np.int64), *differing])
        numbers = np.repeat(np.arange(len(outputs)), [len(each) for each in differing])
        order = np.lexsort((numbers, rows))[:MOST_EXPLAINED]
        found.left = len(rows) - len(order)
        if len(order):
            with step("explain", "find causes of differences", total=len(order), unit="differences") as running:
                self._read(np.unique(rows[order]))
                asked = list(zip(rows[order].tolist(), numbers[order].tolist(), strict=True))
                self._explain(asked, outputs, found, running)
        return found

    def _read(self, rows: Int64s) -> None:
        """Read what is asked about some rows."""
        import pyarrow as pa

        self._places = {row: place for place, row in enumerate(rows.tolist())}
        instants = {AT} | {view_column(each.read, name) for each in self._reads for name in (EVENT, CREATED)}
        wanted = {KEY_ID, REQUEST_ID, ROW, REVISION, REGISTRY_AHEAD, STORE_AHEAD, *instants}
        wanted |= {view_column(each.read, name) for each in self._reads for name in (CRC, SCHEMA)}
        wanted |= {KEY + name for name in self._request.key_types}
        picked = pa.array(rows)
        for name in wanted & set(self._rows.column_names):
            column = self._rows.column(name).take(picked)
            self._values[name] = (column.cast("int64") if name in instants else column).to_pylist()
        for place, each in enumerate(self._reads):
            if not each.is_windowed:
                offline, registered = self._workspace.offline, each.read.registered
                keys = each.keys(self._frame, rows)
                self._logs[place] = LogRows(offline, registered, each.held, keys, self._then.at_us[rows])

    def _explain(
        self,
        asked: Sequence[tuple[int, int]],
        outputs: Sequence[Compared],
        found: Explained,
        running: RunningStep,
    ) -> None:
        for count, (row, number) in enumerate(asked, 1):
            output = outputs[number]
            now = self._cause(output, row, is_then=False) if output.differs_now[row] else ""
            then = self._cause(output, row, is_then=True) if output.differs_then[row] else ""
            found.causes.update([now] * bool(now))
            found.causes_then.update([then] * bool(then))
            if len(found.shown) < MOST_SHOWN:
                found.shown.append(self._shown(output, row, now, then))
            if count % TOLD_AFTER == 0:
                running.advance(TOLD_AFTER)

    def _shown(self, output: Compared, row: int, now: str, then: str) -> dict[str, Any]:
        names = [name for name in self._request.key_types if KEY + name in self._values]
        return {
            REQUEST_ID: self._of(REQUEST_ID, row),
            ROW: self._of(ROW, row),
            AT: self._of(AT, row),
            "entity": entity(names, [self._of(KEY + name, row) for name in names]),
            "feature": output.name,
            "served": str(output.served[row].as_py()),
            "now": str(output.now[row].as_py()),
            "cause": now,
            "cause_then": then,
        }

    def _cause(self, output: Compared, row: int, *, is_then: bool) -> str:
        """Return the cause of a difference: of the read, or of the inputs the first that explains it."""
        column, asked = output.column, dict[int, list[str]]()
        if column.read is not None:
            asked[column.read] = [column.field.name]
        else:
            assert column.on_demand is not None
            for argument in self._request.on_demand[column.on_demand].inputs:
                if argument.read is not None:
                    asked.setdefault(argument.read, []).append(argument.name)
        found = set[str]()
        for place, features in asked.items():
            if self._reads[place].is_windowed:
                found.add(self._of_windows(output, place, features, row, is_then=is_then))
            else:
                found |= {self._of_row(place, feature, row, is_then=is_then) for feature in features}
        return next((cause for cause in CAUSES if cause in found), "unexplained")

    def _of_row(self, place: int, feature: str, row: int, *, is_then: bool) -> str:
        change = self._change(place, feature, row)
        asking = place, row, is_then, None if change is None else (change.of, feature)
        if asking not in self._known:
            self._known[asking] = self._of_record(place, feature, row, change, is_then=is_then)
        return self._known[asking]

    def _of_record(self, place: int, feature: str, row: int, change: Change | None, *, is_then: bool) -> str:
        each, log = self._reads[place], self._logs[place]
        sequence = int((each.then if is_then else each.now)[row])
        names = [view_column(each.read, name) for name in (EVENT, CREATED, CRC, SCHEMA)]
        event_us, created_us, crc, schema = (self._of(name, row) for name in names)
        log_key = self._log_keys.of(self._of(KEY_ID, row)) or NO_KEY
        question = Question(
            self._then.key(place, row),
            int(self._then.at_us[row]),
            self._ahead_us(row),
            ServedRecord(event_us, created_us, crc, schema, log_key),
            None if sequence == NONE else log.by_sequence[sequence],
            change,
            self._remade(change, place, feature),
        )
        return Causes(each.read.view, each.past, log).of(question)

    def _of_windows(self, output: Compared, place: int, features: Sequence[str], row: int, *, is_then: bool) -> str:
        each = self._reads[place]
        assert each.events is not None
        changes = (self._change(place, name, row) for name in features)
        change = next((found for found in changes if found is not None), None)
        question = WindowQuestion(
            features,
            self._then.key(place, row),
            int(self._then.at_us[row]),
            self._ahead_us(row),
            partial(self._fits, output, row),
            is_then,
            change,
            self._remade(change, place, features[0]),
        )
        return each.events.cause(question)

    def _fits(self, output: Compared, row: int, values: Mapping[str, Any]) -> bool:
        """Tell whether values of windows make what was served, everything else as it was online then."""
        column, served = output.column, output.served[row].as_py()
        if column.on_demand is None:
            return are_same(served, values[column.field.name], column.field.type)
        read = self._request.on_demand[column.on_demand]
        inputs = {name: each.to_pylist() for name, each in self._then.inputs(read, np.array([row])).items()}
        inputs |= {name: [value] for name, value in values.items()}
        computed = self._functions[column.on_demand].on_lists(inputs, 1)
        place = [each.name for each in read.view.features].index(column.field.name)
        return are_same(served, computed[place][0], column.field.type)

    def _change(self, place: int, feature: str, row: int) -> Change | None:
        return self._before.change(self._of(REVISION, row), self._reads[place].read.registered, feature)

    def _remade(self, change: Change | None, place: int, feature: str) -> Callable[[Arrival], bool]:
        registered = self._reads[place].read.registered
        return lambda arrival: change is not None and self._before.remade(change, registered, arrival, feature)

    def _ahead_us(self, row: int) -> int:
        ahead = [self._of(name, row) for name in (REGISTRY_AHEAD, STORE_AHEAD)]
        return max((abs(each) for each in ahead if each is not None), default=0)

    def _of(self, column: str, row: int) -> Any:
        return self._values[column][self._places[row]] if column in self._values else None

    def differences(self, found: Explained) -> pa.Table:
        """Return the list of differences as a table."""
        import pyarrow as pa

        text = pa.string()
        names = [("entity", text), ("feature", text), ("served", text), ("now", text)]
        head = [(REQUEST_ID, text), (ROW, pa.int32()), (AT, self._rows.schema.field(AT).type)]
        schema = pa.schema([*head, *names, ("cause", text), ("cause_then", text)])
        return pa.Table.from_pylist(found.shown, schema)


def entity(names: Sequence[str], key: Sequence[Any]) -> str:
    """Return join keys as one text."""
    return ", ".join(f"{name}={value}" for name, value in zip(names, key, strict=True))
