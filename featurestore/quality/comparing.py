"""The work of a comparison: what was served beside two answers of the offline store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.definitions import FeatureService
from featurestore.ledger.journal import catch_up_quietly
from featurestore.offline.interface import DataFile
from featurestore.quality.before import Before
from featurestore.quality.causes import told
from featurestore.quality.compared import Compared, Reading
from featurestore.quality.entities import entity_columns, of_known_keys
from featurestore.quality.held import Held
from featurestore.quality.parity import FeatureParity, Parity
from featurestore.quality.past import read_past
from featurestore.quality.reasons import Reasons, entity
from featurestore.quality.rows import NONE
from featurestore.quality.sameness import Bools, errors, same
from featurestore.quality.then import Then, sequences
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest, ViewRead, resolve
from featurestore.request.on_demand import OnDemandFunction
from featurestore.request.personal import is_hidden
from featurestore.served.keep import read_served, rows_after
from featurestore.served.shape import AT, CODE, KEY, REQUEST, REVISION, STATUS, VALUE, named_outputs
from featurestore.statuses import Status
from featurestore.steps import step
from featurestore.training.frames import TIME, EntityFrame, OwnColumns, check_frame
from featurestore.training.joins import JoinedRows, PinnedRead, pin
from featurestore.types.arrow import arrow_type
from featurestore.types.times import check_span
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ENTITIES = 10
"""How many entities with the most differences a report names."""
Int64s = npt.NDArray[np.int64]


def parity(workspace: Workspace, service: str, start_us: int, end_us: int) -> Parity:
    """Compare what was served for a service in [start, end). See `FeatureStore.parity`."""
    check_span(start_us, end_us)
    served = read_served(workspace, service, start_us, end_us, with_checksums=True)
    rows = of_known_keys(workspace, served)
    snapshot = workspace.snapshot()
    request = resolve(snapshot, snapshot.get(FeatureService, service), full_feature_names=True)
    comparison = _Comparison(workspace, snapshot, request, rows, Before(workspace, snapshot, request, service))
    return comparison.result(service, (start_us, end_us), other_secret=served.num_rows - rows.num_rows)


class _Comparison:
    """One comparison under way."""

    def __init__(
        self, workspace: Workspace, snapshot: Snapshot, request: FeatureRequest, rows: pa.Table, before: Before
    ) -> None:
        self._workspace, self._request, self._rows, self._before = workspace, request, rows, before
        self._at_us: Int64s = rows.column(AT).cast("int64").to_numpy()
        self._functions = [OnDemandFunction(snapshot, read.view) for read in request.on_demand]
        self._not_served, self._not_recomputed = Counter[str](), Counter[str]()

    def result(self, service: str, span: tuple[int, int], *, other_secret: int) -> Parity:
        """Return how the rows compare."""
        reads = [*self._readings()]
        entities = entity_columns(self._workspace, self._request, self._rows, files=_files_of(reads))
        frame = self._frame(entities)
        with step("compare", f"compare what was served for {service}", total=len(frame)):
            outputs = self._compared(frame, reads)
            then = Then(self._workspace, self._request, self._functions, self._rows, frame, reads, outputs)
            not_known = {each.name: then.compare(each) for each in outputs}
        reasons = Reasons(self._workspace, self._request, self._functions, self._rows, self._before, then, reads, frame)
        explained = reasons.of(outputs)
        return Parity(
            service,
            *span,
            self._rows.num_rows,
            tuple(map(_figures, outputs)),
            told(explained.causes),
            told(explained.causes_then),
            self._worst(outputs),
            dict(self._not_recomputed),
            reasons.differences(explained),
            not_served=dict(self._not_served),
            not_known={name: count for name, count in not_known.items() if count},
            other_secret=other_secret,
            differing=sum(int(output.differs.sum()) for output in outputs),
            not_explained=explained.left,
            after_now=rows_after(self._workspace, service, max(span[1], self._workspace.clock() + 1)),
        )

    def _readings(self) -> Iterator[Reading]:
        workspace, oldest_us = self._workspace, int(self._at_us.min(initial=self._workspace.clock()))
        offline = workspace.offline
        tables = {read.registered.table for read in self._request.reads}
        catch_up_quietly(workspace, sorted(tables, key=str))
        versions = {table: offline.current(table) for table in tables}
        for read in self._request.reads:
            pinned = pin(read, None, versions[read.registered.table])
            past = read_past(workspace.registry.journal, offline, read.registered)
            yield Reading(pinned, past, Held(offline, pinned, past, oldest_us))

    def _frame(self, entities: dict[str, pa.Array]) -> EntityFrame:
        import pyarrow as pa

        columns: dict[str, Any] = {**entities, TIME: self._rows.column(AT)}
        for name, request_field in self._request.request_fields.items():
            kept = REQUEST + name
            is_kept = kept in self._rows.column_names
            nulls = pa.nulls(self._rows.num_rows, arrow_type(request_field.type))
            columns[name] = self._rows.column(kept) if is_kept else nulls
        return check_frame(OwnColumns("arrow", pa.table(columns)), self._request, TIME)

    def _compared(self, frame: EntityFrame, reads: Sequence[Reading]) -> list[Compared]:
        """Return each feature beside what is known now; each read learns which rows of its log answer."""
        import pyarrow as pa

        pins: tuple[PinnedRead, ...] = tuple(each.pinned for each in reads)
        engine, offline = self._workspace.engine, self._workspace.offline
        joined = JoinedRows(engine.joins, offline, self._functions, self._request, frame, pins)
        now = pa.Table.from_batches(joined.batches(), joined.schema)
        nothing = np.full(len(frame), NONE, np.int64)
        for each, chosen in zip(reads, joined.join.chosen() if pins else (), strict=True):
            each.now = nothing if chosen is None else sequences(chosen)
        outputs = []
        for place, (name, column) in enumerate(named_outputs(self._request).items()):
            if is_hidden(self._request, column):
                continue
            expected = now.column(place).combine_chunks()
            served = self._column(VALUE + name, expected.type).combine_chunks()
            compared = self._comparable(name, is_on_demand=column.on_demand is not None)
            differs = compared & ~same(served, expected, column.field.type)
            outputs.append(Compared(name, column, served, expected, compared, differs, np.zeros(0, bool)))
        return outputs

    def _comparable(self, name: str, *, is_on_demand: bool) -> Bools:
        """Return the rows in which a feature was served as it is made now; counts the others."""
        import pyarrow as pa
        import pyarrow.compute as pc

        status, values = (
            self._rows.column(each + name) if each + name in self._rows.column_names else None
            for each in (STATUS, VALUE)
        )
        is_served = np.full(self._rows.num_rows, status is not None)
        is_unkept = np.zeros(len(is_served), bool)
        if status is not None and status.null_count:
            is_served = status.is_valid().to_numpy().astype(bool)
        if status is not None and (values is None or values.null_count):
            nulls = np.flatnonzero(is_served if values is None else values.is_null().to_numpy())
            told = status.take(pa.array(nulls)).cast(pa.string())
            is_unkept[nulls] = pc.fill_null(pc.equal(told, Status.PRESENT.name), False).to_numpy()
        is_same = np.ones(len(is_served), bool)
        for (revision, code), mine in self._kinds:
            is_other = not is_on_demand and self._before.way(revision, name) not in (None, self._before.way_now(name))
            if is_other or (is_unkept & mine).any():  # it was personal then: no value of that revision was kept
                is_served[mine] = False
            if is_on_demand and not self._before.is_same_code(revision, code, name):
                is_same[mine] = False
        if count := int((~is_served).sum()):
            self._not_served[name] = count
        if count := int((is_served & ~is_same).sum()):
            self._not_recomputed[name] = count
        return is_served & is_same

    def _column(self, name: str, kind: pa.DataType) -> pa.ChunkedArray:
        """Return a column of the log, of nulls where no file has it."""
        import pyarrow as pa

        if name in self._rows.column_names:
            return self._rows.column(name).cast(kind)
        return pa.chunked_array([pa.nulls(self._rows.num_rows, kind)])

    @cached_property
    def _kinds(self) -> list[tuple[tuple[str, str], Bools]]:
        """The revisions and hashes of code that are in the log, and which rows have them."""
        encoded = [self._rows.column(name).combine_chunks().dictionary_encode() for name in (REVISION, CODE)]
        values = [each.dictionary.to_pylist() for each in encoded]
        places = [each.indices.to_numpy() for each in encoded]
        numbers = places[0] * np.int64(len(values[1])) + places[1]
        return [
            ((values[0][number // len(values[1])], values[1][number % len(values[1])]), numbers == number)
            for number in np.unique(numbers).tolist()
        ]

    def _worst(self, outputs: Sequence[Compared]) -> tuple[tuple[str, int], ...]:
        """Return the entities with the most differences."""
        counts = np.zeros(self._rows.num_rows, np.int64)
        for output in outputs:
            counts += output.differs
        rows = np.flatnonzero(counts)
        names = [name for name in self._request.key_types if KEY + name in self._rows.column_names]
        keys = [self._rows.column(KEY + name).take(rows).to_pylist() for name in names]
        found = Counter[tuple[Any, ...]]()
        for key, count in zip(zip(*keys, strict=True), counts[rows].tolist(), strict=False):
            found[key] += count
        return tuple((entity(names, key), count) for key, count in found.most_common(MOST_ENTITIES))


def _files_of(reads: Sequence[Reading]) -> Callable[[ViewRead], Iterable[DataFile]]:
    by_name = {each.read.name: each.held for each in reads}
    return lambda read: (file for _, file in by_name[read.name].files)


def _figures(output: Compared) -> FeatureParity:
    apart = errors(output.served, output.now, output.column.field.type, output.compared)
    return FeatureParity(
        output.name,
        int(output.compared.sum()),
        int(output.differs_then.sum()),
        int(output.differs_now.sum()),
        *(apart or (None, None)),
    )
