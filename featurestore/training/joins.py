"""Where the rows of a training set come from: a point-in-time join of pinned table versions, or a view's own rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.engine.interface import AsOf, Join, JoinFacts, Joins, Queries, ViewJoin
from featurestore.errors import EngineError, TableVersionError
from featurestore.offline.interface import DataFile, TableReader, TableVersion
from featurestore.request.features import FeatureRequest, OutputColumn, ViewRead
from featurestore.request.on_demand import OnDemandFunction
from featurestore.statistics.sets import sampled_rows
from featurestore.training.frames import TIME, EntityFrame, engine_column, no_columns
from featurestore.training.labels import LabelFacts, LabelRead
from featurestore.types import Timestamp
from featurestore.types.arrow import arrow_schema, one_array
from featurestore.types.columns import EVENT

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

BATCH_ROWS = 131_072
SAMPLE_ROWS = 1_000


class Observed:
    """Observations of a join as its batches pass: nulls, and the values of some rows."""

    def __init__(self, count: int) -> None:
        self.rows = sampled_rows(count, SAMPLE_ROWS)
        self.nulls: Counter[tuple[str, str]] = Counter()
        """For each read and feature the rows without a value."""
        self._values: dict[str, list[pa.RecordBatch]] = {}

    def see(self, read: ViewRead, columns: Sequence[pa.Array], start: int) -> None:
        """Take the joined features of the rows from ``start`` on."""
        import numpy as np
        import pyarrow as pa

        for feature, column in zip(read.features, columns, strict=True):
            self.nulls[read.name, feature] += column.null_count
        first, last = np.searchsorted(self.rows, [start, start + len(columns[0])])
        mine = pa.array(self.rows[first:last] - start)
        taken = [column.take(mine) for column in columns]
        self._values.setdefault(read.name, []).append(pa.RecordBatch.from_arrays(taken, list(read.features)))

    def merge(self, other: Observed) -> None:
        """Add the observations of the next rows, if parts of one set are joined separately; both know ``count``."""
        self.nulls.update(other.nulls)
        for name, batches in other._values.items():
            self._values.setdefault(name, []).extend(batches)

    def values(self, read: ViewRead) -> dict[str, list[Any]]:
        """Return the values of the sampled ``rows`` by feature of a read."""
        import pyarrow as pa

        batches = self._values.get(read.name)
        return pa.Table.from_batches(batches).to_pydict() if batches else {name: [] for name in read.features}


@dataclass(frozen=True, slots=True)
class PinnedRead:
    """One read and the table version it reads."""

    read: ViewRead
    as_of: AsOf
    version: TableVersion | None
    """None where nothing was ever committed, and in direct sets."""
    staged: tuple[str, ...] | None = None
    """Files of a direct set."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files to read, as the engine reads them."""
        return (self.staged or ()) if self.version is None else tuple(file.path for file in self.version.files)

    @property
    def opens(self) -> Sequence[DataFile | str]:
        """The same files, as `opened` takes them."""
        return (self.staged or ()) if self.version is None else self.version.files

    def view_join(self) -> ViewJoin:
        """Return the read as the engine takes it."""
        view = self.read.view
        columns = {key: engine_column(column, view.join_keys[key]) for key, column in self.read.key_columns}
        is_begun = self.version is not None or self.staged is not None
        return ViewJoin(self.read.name, view, self.files, columns, self.read.features, self.as_of, is_begun)


def pin(
    read: ViewRead, as_of: AsOf | None, version: TableVersion | None, staged: tuple[str, ...] | None = None
) -> PinnedRead:
    """Pin a read to a table version, or to staged files.

    Without ``as_of`` availability counts where the view's source declares a created column, and in a view with
    aggregations that takes pushes: a pushed event always has a created time.
    """
    if as_of is None:
        is_stamped = read.view.created_timestamp_field is not None or read.view.takes_events
        as_of = "available" if is_stamped else "event"
    return PinnedRead(read, as_of, version, staged)


def repinned(offline: TableReader, pins: Sequence[PinnedRead]) -> tuple[PinnedRead, ...]:
    """Return the same reads of the newest versions."""
    return tuple(replace(found, version=offline.current(found.read.registered.table)) for found in pins)


def is_gone(offline: TableReader, pinned: PinnedRead) -> bool:
    """Tell whether files of a pinned version were cleaned away and there is a newer version."""
    if pinned.version is None:
        return False
    try:
        offline.version(pinned.version.table, pinned.version.number)
    except TableVersionError:
        newest = offline.current(pinned.version.table)
        return newest is not None and newest.number != pinned.version.number
    return False


@dataclass(frozen=True)
class JoinedRows:
    """Features joined to an entity frame."""

    joins: Joins
    offline: TableReader
    functions: Sequence[OnDemandFunction]
    """One for each of ``request.on_demand``."""
    request: FeatureRequest
    frame: EntityFrame
    pins: tuple[PinnedRead, ...]
    direct: bool = False
    """Whether the pins are files of this set's own, staged from the sources."""
    labels: tuple[JoinedLabel, ...] = ()
    """Labels of the same rows."""

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema of the feature columns, in the order asked, and of the labels after them."""
        outputs = [output for request in self.requests for output in request.outputs]
        return arrow_schema({output.name: output.field.type for output in outputs})

    @property
    def requests(self) -> list[FeatureRequest]:
        """The request for the features, and those for the labels."""
        return [self.request, *(label.rows.request for label in self.labels)]

    @property
    def all_pins(self) -> tuple[PinnedRead, ...]:
        """The pins of the labels' views, and of the features'."""
        return (*(pinned for label in self.labels for pinned in label.rows.pins), *self.pins)

    def first(self, n: int) -> JoinedRows:
        """Return the same join of the first rows."""
        labels = tuple(replace(label, rows=label.rows.first(n)) for label in self.labels)
        return replace(self, frame=self.frame.first(n), labels=labels)

    def taken(self, places: npt.NDArray[np.int64]) -> JoinedRows:
        """Return the same join of some of the rows, by their places."""
        labels = tuple(replace(label, rows=label.rows.taken(places)) for label in self.labels)
        return replace(self, frame=self.frame.taken(places), labels=labels)

    def repinned(self) -> JoinedRows:
        """Return the same join of the newest table versions."""
        labels = tuple(replace(label, rows=label.rows.repinned()) for label in self.labels)
        return replace(self, pins=repinned(self.offline, self.pins), labels=labels)

    @cached_property
    def join(self) -> Join:
        """The join of the pinned files, which also gives facts about them."""
        views = [pinned.view_join() for pinned in self.pins]
        return self.joins.join(self.frame.keys, TIME, views, batch_rows=BATCH_ROWS)

    @property
    def windowed(self) -> tuple[JoinFacts, ...]:
        """Facts about the views with aggregations, known once the rows are joined."""
        return self.join.windowed() if self.pins else ()

    def verify(self) -> None:
        """Check the pinned files' hashes, each once per process; raises DamagedFileError."""
        self.offline.verify([file for pinned in self.pins if pinned.version for file in pinned.version.files])

    def batches(self, observed: Observed | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the feature columns in the frame's order; ``observed`` sees the joined rows.

        Raises what the engine and the on-demand functions raise.
        """
        import pyarrow as pa

        done = 0
        for joined in self._verified(self._joined()):
            columns = joined.columns
            places, first = [], 0
            for pinned in self.pins:
                mine = columns[first : first + len(pinned.read.features)]
                places.append(mine)
                first += len(mine)
                if observed is not None:
                    observed.see(pinned.read, mine, done)
            computed = self._computed(places, done, joined.num_rows)
            arrays = [self._output(output, places, computed) for output in self.request.outputs]
            arrays += [label.column.slice(done, joined.num_rows) for label in self.labels]
            done += joined.num_rows
            yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        if done != len(self.frame):
            raise EngineError(f"The join gave {done} rows for the entity frame's {len(self.frame)}.")

    def _verified(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass batches on; checks the hashes while the engine chooses rows, before it passes the first batch on."""
        with ThreadPoolExecutor(1, thread_name_prefix="verify") as aside:
            verified = aside.submit(self.verify)
            try:
                first = next(batches, None)
            finally:
                verified.result()  # a damaged file explains more than the engine's own error
        if first is not None:
            yield first
            yield from batches

    def _joined(self) -> Iterator[pa.RecordBatch]:
        """Yield the engine's batches; for nothing but request data, batches without columns."""
        if self.pins:
            yield from self.join.batches()
        else:
            yield from no_columns(len(self.frame)).to_arrow().to_batches(BATCH_ROWS)

    def _computed(self, places: Sequence[Sequence[pa.Array]], start: int, rows: int) -> list[list[pa.Array]]:
        data = {name: column.slice(start, rows) for name, column in self.frame.request_data.items()}
        computed = zip(self.functions, self.request.on_demand, strict=True)
        return [function.on_arrow(read.taken(data, places), rows) for function, read in computed]

    def _output(
        self, output: OutputColumn, places: Sequence[Sequence[pa.Array]], computed: Sequence[Sequence[pa.Array]]
    ) -> pa.Array:
        if output.read is not None:
            return places[output.read][self.request.reads[output.read].features.index(output.field.name)]
        assert output.on_demand is not None
        names = [field.name for field in self.request.on_demand[output.on_demand].view.features]
        return computed[output.on_demand][names.index(output.field.name)]


@dataclass(frozen=True)
class JoinedLabel:
    """One label of a set's rows: a join of its own, at the ends of their horizons."""

    label: LabelRead
    rows: JoinedRows
    facts: LabelFacts

    @cached_property
    def observed(self) -> Observed:
        """What a certificate needs of the join, once there is the ``column``."""
        return Observed(len(self.rows.frame))

    @cached_property
    def column(self) -> pa.Array:
        """The label of each row."""
        import pyarrow as pa

        table = pa.Table.from_batches(self.rows.batches(self.observed), self.rows.schema)
        return one_array(table.column(0))


@dataclass(frozen=True)
class SpanRows:
    """A view's own rows with event time in [start, end), only the last correction of each."""

    queries: Queries
    offline: TableReader
    request: FeatureRequest
    pins: tuple[PinnedRead, ...]
    timestamp_column: str
    start_us: int
    end_us: int

    @property
    def requests(self) -> list[FeatureRequest]:
        """The request, as of `JoinedRows`."""
        return [self.request]

    @property
    def all_pins(self) -> tuple[PinnedRead, ...]:
        """The pins, as of `JoinedRows`."""
        return self.pins

    def repinned(self) -> SpanRows:
        """Return the same rows of the newest table versions."""
        return replace(self, pins=repinned(self.offline, self.pins))

    @cached_property
    def schema(self) -> pa.Schema:
        """The schema: join keys (by the caller's names), event time, and the features in the order asked."""
        (read,) = self.request.reads
        keys = {column: read.view.join_keys[key] for key, column in read.key_columns}
        features = {output.name: output.field.type for output in self.request.outputs}
        return arrow_schema({**keys, self.timestamp_column: Timestamp, **features})

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows, ordered by event time and keys."""
        import pyarrow as pa

        (pinned,) = self.pins
        if pinned.version is not None:
            self.offline.verify(pinned.version.files)
        keys = [key for key, _ in pinned.read.key_columns]
        names = [*keys, EVENT, *(output.field.name for output in self.request.outputs)]
        span = self.queries.span(pinned.read.view, pinned.files, self.start_us, self.end_us, batch_rows=BATCH_ROWS)
        for batch in span:
            yield pa.RecordBatch.from_arrays([batch.column(name) for name in names], schema=self.schema)
