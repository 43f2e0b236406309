"""The work of a comparison: what was served beside two answers of the offline store, and why they differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.definitions import FeatureService, FeatureView
from featurestore.ledger.journal import catch_up_quietly
from featurestore.quality.causes import Causes, Question, ServedRecord, told
from featurestore.quality.entities import entity_columns
from featurestore.quality.parity import FeatureParity, Parity
from featurestore.quality.past import Past, read_past
from featurestore.quality.rows import LogRows
from featurestore.quality.windows import WindowEvents
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest, OnDemandRead, OutputColumn, ViewRead, resolve
from featurestore.request.on_demand import OnDemandFunction
from featurestore.served.hashing import NO_KEY, keys_of
from featurestore.served.keep import read_served
from featurestore.served.shape import (
    AT,
    CODE,
    CRC,
    CREATED,
    EVENT,
    KEY,
    KEY_ID,
    REGISTRY_AHEAD,
    REQUEST,
    REQUEST_ID,
    REVISION,
    ROW,
    SCHEMA,
    STORE_AHEAD,
    VALUE,
    code_hash,
    named_outputs,
    view_column,
)
from featurestore.training.frames import TIME, EntityFrame, OwnColumns, check_frame, engine_column
from featurestore.training.joins import JoinedRows, PinnedRead, pin
from featurestore.types.arrow import arrow_type
from featurestore.types.values import ValueType
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

MOST_SHOWN, MOST_ENTITIES = 10_000, 10
"""How many differences a report lists, and how many entities with the most of them."""
NONE = -1
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


def parity(workspace: Workspace, service: str, start_us: int, end_us: int) -> Parity:
    """Compare what was served for a service in [start, end). See `FeatureStore.parity`."""
    rows = read_served(workspace, service, start_us, end_us)
    snapshot = workspace.snapshot()
    request = resolve(snapshot, snapshot.get(FeatureService, service), full_feature_names=True)
    return _Comparison(workspace, snapshot, request, rows).result(service, start_us, end_us)


@dataclass
class _Read:
    """One read of the comparison: which rows of its log answer, and what it takes to explain a difference."""

    pinned: PinnedRead
    past: Past
    now: Int64s
    """The ``fs_seq`` of each row's answer by what is known now, `NONE` where there is none."""
    then: Int64s
    """The same by what was online then."""
    log: LogRows | None = None
    events: WindowEvents | None = None

    @property
    def read(self) -> ViewRead:
        return self.pinned.read

    @property
    def moved(self) -> Bools:
        """The rows whose two answers are different rows of the log."""
        moved: Bools = self.now != self.then
        return moved

    def value(self, sequence: int, place: int) -> Any:
        """Return a stored value of a row of the log, None for no row."""
        assert self.log is not None
        return None if sequence == NONE else self.log.by_sequence[sequence].values[place]

    def stored_place(self, feature: str) -> int:
        """Return where a feature stands among the stored values."""
        return [name for name, _ in self.read.registered.table_schema.stored].index(feature)


@dataclass
class _Output:
    """One feature under comparison."""

    name: str
    column: OutputColumn
    served: pa.Array
    now: pa.Array
    compared: Bools
    differs_now: Bools
    differs_then: Bools = field(default_factory=lambda: np.zeros(0, bool))


class _Comparison:
    """One comparison under way."""

    def __init__(self, workspace: Workspace, snapshot: Snapshot, request: FeatureRequest, rows: pa.Table) -> None:
        self._workspace, self._snapshot, self._request, self._rows = workspace, snapshot, request, rows
        self._at_us: Int64s = rows.column(AT).cast("int64").to_numpy()
        self._before = _Before(workspace, snapshot, rows)
        self._log_keys = keys_of(workspace)
        self._shown: list[dict[str, Any]] = []
        self._entities: Counter[str] = Counter()
        self._causes: dict[tuple[int, int, bool], str] = {}

    def result(self, service: str, start_us: int, end_us: int) -> Parity:
        """Return how the rows compare."""
        frame = self._frame()
        pins = self._pins()
        catch_up_quietly(self._workspace, sorted({pinned.read.registered.table for pinned in pins}, key=str))
        functions = [OnDemandFunction(self._snapshot, read.view) for read in self._request.on_demand]
        joined = JoinedRows(
            self._workspace.engine.joins, self._workspace.offline, functions, self._request, frame, pins
        )
        outputs = [*self._outputs(joined)]
        chosen = joined.join.chosen() if pins else []
        reads = [self._read(pinned, frame, now) for pinned, now in zip(pins, chosen, strict=True)]
        self._fetch(reads, outputs, frame)
        for output in outputs:
            output.differs_then = self._differs_then(output, reads, functions)
        causes_now, causes_then = Counter[str](), Counter[str]()
        for output in outputs:
            for row in np.flatnonzero(output.differs_now | output.differs_then).tolist():
                self._explain(output, row, reads, causes_now, causes_then)
        return Parity(
            service,
            start_us,
            end_us,
            self._rows.num_rows,
            tuple(map(_figures, outputs)),
            told(causes_now),
            told(causes_then),
            tuple(self._entities.most_common(MOST_ENTITIES)),
            {each.name: int((~each.compared).sum()) for each in outputs if not each.compared.all()},
            self._differences(),
        )

    def _frame(self) -> EntityFrame:
        import pyarrow as pa

        columns: dict[str, Any] = dict(entity_columns(self._workspace, self._request, self._rows))
        columns[TIME] = self._rows.column(AT)
        for name, request_field in self._request.request_fields.items():
            kept = REQUEST + name
            is_kept = kept in self._rows.column_names
            nulls = pa.nulls(self._rows.num_rows, arrow_type(request_field.type))
            columns[name] = self._rows.column(kept) if is_kept else nulls
        return check_frame(OwnColumns("arrow", pa.table(columns)), self._request, TIME)

    def _pins(self) -> tuple[PinnedRead, ...]:
        offline = self._workspace.offline
        versions = {read.view.name: offline.current(read.registered.table) for read in self._request.reads}
        return tuple(pin(read, None, versions[read.view.name]) for read in self._request.reads)

    def _outputs(self, joined: JoinedRows) -> Iterator[_Output]:
        import pyarrow as pa
        import pyarrow.compute as pc

        now = pa.Table.from_batches(joined.batches(), joined.schema)
        code = self._rows.column(CODE)
        is_same_code = np.asarray(pc.equal(code, code_hash(self._request)).to_numpy(zero_copy_only=False), bool)
        for place, (name, column) in enumerate(named_outputs(self._request).items()):
            if VALUE + name not in self._rows.column_names:
                continue  # personal
            expected = now.column(place).combine_chunks()
            served = self._rows.column(VALUE + name).combine_chunks().cast(expected.type)
            compared = is_same_code if column.on_demand is not None else np.ones(len(served), bool)
            differs = ~_same(served, expected, column.field.type) & compared
            yield _Output(name, column, served, expected, compared, differs)

    def _read(self, pinned: PinnedRead, frame: EntityFrame, chosen: pa.Array | None) -> _Read:
        workspace, registered = self._workspace, pinned.read.registered
        past = read_past(workspace.registry.journal, workspace.offline, registered)
        if chosen is None:
            nothing = np.full(len(frame), NONE, np.int64)
            return _Read(pinned, past, nothing, nothing)
        now = _sequences(chosen)
        since = past.since()
        if not since or max(instant for _, instant in since) <= self._at_us.min(initial=0):
            return _Read(pinned, past, now, now)
        then = _sequences(workspace.engine.joins.chosen(frame.keys, TIME, pinned.view_join(), since=since))
        return _Read(pinned, past, now, then)

    def _fetch(self, reads: Sequence[_Read], outputs: Sequence[_Output], frame: EntityFrame) -> None:
        """Read the rows of the log that explain differences: of the entities of rows that differ."""
        import pyarrow as pa

        differs = np.zeros(len(frame), bool)
        for output in outputs:
            differs |= output.differs_now
        moved = np.zeros(len(frame), bool)
        for each in reads:
            moved |= each.moved
        rows = np.flatnonzero(differs | moved)
        for each in reads:
            view = each.read.view
            keys = [
                frame.keys.column(engine_column(column, view.join_keys[key])) for key, column in each.read.key_columns
            ]
            taken = [column.take(pa.array(rows)).combine_chunks() for column in keys]
            if view.aggregations:
                joins, offline = self._workspace.engine.joins, self._workspace.offline
                each.events = WindowEvents(joins, offline, each.pinned, each.past, taken, self._at_us[rows])
                continue
            each.log = LogRows(
                self._workspace.offline, each.read.registered, each.pinned.version, taken, self._at_us[rows]
            )

    def _differs_then(self, output: _Output, reads: Sequence[_Read], functions: Sequence[OnDemandFunction]) -> Bools:
        """Return where a feature differs from what was online then."""
        found = output.differs_now.copy()
        column, kind = output.column, output.column.field.type
        if column.read is not None:
            each = reads[column.read]
            if each.events is not None:
                for row in np.flatnonzero(found).tolist():
                    expected = each.events.then(column.field.name, self._key(each.read, row), int(self._at_us[row]))
                    found[row] = not are_same(output.served[row].as_py(), expected, kind)
                return found
            place = each.stored_place(column.field.name)
            for row in np.flatnonzero(each.moved).tolist():
                expected = each.value(int(each.then[row]), place)
                found[row] = not are_same(output.served[row].as_py(), expected, kind)
            return found
        assert column.on_demand is not None
        read = self._request.on_demand[column.on_demand]
        moved = np.zeros(len(found), bool)
        for argument in read.inputs:
            if argument.read is not None:
                windowed = reads[argument.read].events is not None
                moved |= found if windowed else reads[argument.read].moved
        rows = np.flatnonzero(moved & output.compared)
        if len(rows):
            names = [each.name for each in read.view.features]
            values = self._computed(read, functions[column.on_demand], reads, rows)[names.index(column.field.name)]
            for row, expected in zip(rows.tolist(), values, strict=True):
                found[row] = not are_same(output.served[row].as_py(), expected, kind)
        return found

    def _computed(
        self, read: OnDemandRead, function: OnDemandFunction, reads: Sequence[_Read], rows: Int64s
    ) -> list[list[Any]]:
        """Return an on-demand view's features of some rows by what was online then."""
        inputs: dict[str, list[Any]] = {}
        for argument in read.inputs:
            if argument.read is None:
                column = REQUEST + argument.name
                kept = self._rows.column(column).take(rows).to_pylist() if column in self._rows.column_names else None
                inputs[argument.name] = [None] * len(rows) if kept is None else kept
                continue
            each = reads[argument.read]
            if (events := each.events) is not None:
                asked = [(self._key(each.read, row), int(self._at_us[row])) for row in rows.tolist()]
                inputs[argument.name] = [events.then(argument.name, key, at_us) for key, at_us in asked]
                continue
            place = each.stored_place(argument.name)
            inputs[argument.name] = [each.value(int(each.then[row]), place) for row in rows.tolist()]
        return function.on_lists(inputs, len(rows))

    def _explain(
        self,
        output: _Output,
        row: int,
        reads: Sequence[_Read],
        causes_now: Counter[str],
        causes_then: Counter[str],
    ) -> None:
        now = self._cause(output, row, reads, is_then=False) if output.differs_now[row] else None
        then = self._cause(output, row, reads, is_then=True) if output.differs_then[row] else None
        if now is not None:
            causes_now[now] += 1
        if then is not None:
            causes_then[then] += 1
        entity = self._entity(row)
        self._entities[entity] += 1
        if len(self._shown) < MOST_SHOWN:
            self._shown.append(
                {
                    REQUEST_ID: self._rows.column(REQUEST_ID)[row].as_py(),
                    ROW: self._rows.column(ROW)[row].as_py(),
                    AT: self._rows.column(AT)[row].as_py(),
                    "entity": entity,
                    "feature": output.name,
                    "served": str(output.served[row].as_py()),
                    "now": str(output.now[row].as_py()),
                    "cause": now or "",
                    "cause_then": then or "",
                }
            )

    def _cause(self, output: _Output, row: int, reads: Sequence[_Read], *, is_then: bool) -> str:
        """Return the cause of a difference: of the read, or of the inputs the first that explains it."""
        column = output.column
        if column.read is not None:
            asked = [column.read]
        else:
            assert column.on_demand is not None
            inputs = self._request.on_demand[column.on_demand].inputs
            asked = sorted({argument.read for argument in inputs if argument.read is not None})
        found = set()
        for place in asked:
            asking = place, row, is_then  # all features of a read have one cause
            if asking not in self._causes:
                self._causes[asking] = self._cause_of_read(reads[place], row, is_then=is_then)
            found.add(self._causes[asking])
        return next(iter(told(dict.fromkeys(found, 1))), "unexplained")

    def _cause_of_read(self, each: _Read, row: int, *, is_then: bool) -> str:
        before = self._before.view(self._of(REVISION, row), each.read.view)
        ahead = [self._of(name, row) for name in (REGISTRY_AHEAD, STORE_AHEAD)]
        ahead_us = max((abs(each) for each in ahead if each is not None), default=0)
        if each.events is not None:
            at_us, key = int(self._at_us[row]), self._key(each.read, row)
            return each.events.cause(key, at_us, ahead_us, before, is_then=is_then)
        assert each.log is not None
        sequence = int((each.then if is_then else each.now)[row])
        served = ServedRecord(
            self._instant(view_column(each.read, EVENT), row),
            self._instant(view_column(each.read, CREATED), row),
            self._of(view_column(each.read, CRC), row),
            self._of(view_column(each.read, SCHEMA), row),
            self._log_keys.of(self._of(KEY_ID, row)) or NO_KEY,
        )
        expected = None if sequence == NONE else each.log.by_sequence[sequence]
        question = Question(self._key(each.read, row), int(self._at_us[row]), ahead_us, served, expected, before)
        return Causes(each.read.view, each.past, each.log).of(question)

    def _key(self, read: ViewRead, row: int) -> tuple[Any, ...]:
        columns = dict(read.key_columns)
        return tuple(self._keys[columns[key]][row].as_py() for key in read.view.join_keys)

    @property
    def _keys(self) -> dict[str, pa.Array]:
        if not hasattr(self, "_known_keys"):
            self._known_keys = entity_columns(self._workspace, self._request, self._rows)
        return self._known_keys

    def _entity(self, row: int) -> str:
        return ", ".join(f"{name}={self._of(KEY + name, row)}" for name in self._request.key_types)

    def _of(self, column: str, row: int) -> Any:
        return self._rows.column(column)[row].as_py() if column in self._rows.column_names else None

    def _instant(self, column: str, row: int) -> int | None:
        if column not in self._rows.column_names:
            return None
        value = self._rows.column(column)[row].cast("int64").as_py()
        return None if value is None else int(value)

    def _differences(self) -> pa.Table:
        import pyarrow as pa

        text = pa.string()
        names = [("entity", text), ("feature", text), ("served", text), ("now", text)]
        head = [(REQUEST_ID, text), (ROW, pa.int32()), (AT, self._rows.schema.field(AT).type)]
        schema = pa.schema([*head, *names, ("cause", text), ("cause_then", text)])
        return pa.Table.from_pylist(self._shown, schema)


class _Before:
    """The views as they were at earlier revisions."""

    def __init__(self, workspace: Workspace, snapshot: Snapshot, rows: pa.Table) -> None:
        self._workspace, self._now = workspace, snapshot
        self._known: dict[str, Snapshot | None] = {snapshot.chain.head: snapshot}

    def view(self, revision: str, view: FeatureView) -> FeatureView | None:
        """Return a view as it was at a revision, None where it is the same now."""
        if revision not in self._known:
            hashes = self._now.chain.hashes
            definitions = self._workspace.registry.definitions
            is_known = revision in hashes
            read = definitions.read(self._now.project, hashes.index(revision) + 1) if is_known else None
            self._known[revision] = None if read is None else Snapshot.of(read)
        found = self._known[revision]
        before = None if found is None else found.views.get(view.name)
        return None if before is None or before.view == view else before.view


def _sequences(chosen: pa.Array) -> Int64s:
    import pyarrow.compute as pc

    found: Int64s = pc.fill_null(chosen, NONE).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _same(one: pa.Array, other: pa.Array, kind: ValueType) -> Bools:
    """Return where two arrays hold the same values: nulls are, NaNs are."""
    import pyarrow.compute as pc

    if kind.item is not None:
        pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
        return np.array([are_same(a, b, kind) for a, b in pairs], bool)
    same = pc.fill_null(pc.equal(one, other), False)
    both = pc.and_(one.is_null(), other.is_null())
    same = pc.or_(same, both)
    if kind.name in ("Float32", "Float64"):
        nans = pc.and_(pc.fill_null(pc.is_nan(one), False), pc.fill_null(pc.is_nan(other), False))
        same = pc.or_(same, nans)
    return np.asarray(same.to_numpy(zero_copy_only=False), bool)


def are_same(one: Any, other: Any, kind: ValueType) -> bool:
    """Tell whether two canonical values are the same: NaNs are."""
    if isinstance(one, list) and isinstance(other, list):
        assert kind.item is not None
        item = kind.item
        return len(one) == len(other) and all(are_same(a, b, item) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return bool(one == other)


def _figures(output: _Output) -> FeatureParity:
    import pyarrow as pa
    import pyarrow.compute as pc

    mean = greatest = None
    kind = output.column.field.type
    if kind.name in ("Int32", "Int64", "Float32", "Float64") or kind.precision is not None:
        both = [each.cast(pa.float64(), safe=False) for each in (output.served, output.now)]  # long integers, too
        errors = pc.abs(pc.subtract(*both)).filter(pa.array(output.compared))
        errors = errors.filter(pc.fill_null(pc.is_finite(errors), False))
        if len(errors):
            mean, greatest = float(pc.mean(errors).as_py()), float(pc.max(errors).as_py())
    return FeatureParity(
        output.name,
        int(output.compared.sum()),
        int((output.differs_then & output.compared).sum()),
        int(output.differs_now.sum()),
        mean,
        greatest,
    )
