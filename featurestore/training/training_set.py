"""Training sets: an entity frame's rows with each feature as it was known at the row's time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from featurestore.errors import (
    DamagedFileError,
    EngineError,
    InputError,
    OfflineStoreError,
    TrainingSetChangedError,
    TrainingSetError,
)
from featurestore.ledger.saved_sets import SavedSet, not_to_be_built
from featurestore.request.personal import inherits, left_out
from featurestore.statistics.sets import SetProfile, statistics_of_set
from featurestore.tables import html_table, import_polars
from featurestore.training.certificate import Certificate, certify
from featurestore.training.checking import check_set
from featurestore.training.coverage import Gap, gaps_text, held_back, own_events, warn
from featurestore.training.fingerprints import TableFingerprint, fingerprint
from featurestore.training.for_models import ForModels
from featurestore.training.frames import OwnColumns, no_columns
from featurestore.training.joins import BATCH_ROWS, JoinedLabel, JoinedRows, Observed, SpanRows, is_gone
from featurestore.training.labels import LabelFacts
from featurestore.training.outputs import check_output, replaced
from featurestore.training.profiling import columns_of, profile_of, read_sample
from featurestore.training.saving import save
from featurestore.training.splitting import split
from featurestore.training.sql_text import join_sql
from featurestore.types.arrow import one_array
from featurestore.types.times import Instant
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    from datetime import timedelta

    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from featurestore_registry.documents import StatisticsDocument

    from featurestore.definitions.expectations import FieldRule, ViewRule
    from featurestore.statistics.profile import Profile

T = TypeVar("T")


class TrainingSet(ForModels):
    """The rows of an entity frame, in its order and with its columns untouched, with the features next to them.

    The join runs when rows are first asked for; the table versions that it reads were pinned when the set was made.
    ``warnings`` says what users should know; each was also issued as `TrainingSetWarning`. Libraries that read Arrow
    streams take a set directly: ``pyarrow.table(training)``, ``polars.DataFrame(training)``,
    ``duckdb.sql("FROM training")``.
    """

    def __init__(
        self,
        workspace: Workspace,
        rows: JoinedRows | SpanRows,
        *,
        gaps: Sequence[Gap] = (),
        after_now: int = 0,
        checks_availability: bool = False,
        notes: Mapping[str, str] | None = None,
        told: Sequence[str] = (),
        left_out: int = 0,
        saved: SavedSet | None = None,
    ) -> None:
        self._workspace = workspace
        self._rows = rows
        self._gaps = tuple(gaps)
        self._after_now = after_now
        self._checks_availability = checks_availability
        self._left_out = left_out
        self._notes = dict(notes or {})
        """Notes by view, for the certificate."""
        self._saved = saved
        """The saved set that the rows are compared with."""
        self._saved_as = None if saved is None else saved.name
        self._table: pa.Table | None = None
        self._observed: Observed | None = None
        self._reopened = False
        self.warnings: list[str] = []
        """What its user should know before using it; each was also given as a `TrainingSetWarning`.

        What the values show comes when they are computed: by `to_pandas`, for example.
        """
        if (text := gaps_text(self._gaps)) is not None:
            self._warn(text)
        for note in dict.fromkeys([*self._notes.values(), *told]):
            self._warn(note)
        if after_now:
            self._warn(f"{after_now:,} of {len(self):,} entity rows are after now: their values may still change.")

    def __len__(self) -> int:
        return len(self._rows.frame) if isinstance(self._rows, JoinedRows) else self._features().num_rows

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of `to_arrow`: the frame's own, then the features, then the labels."""
        own = self._rows.frame.own.names if isinstance(self._rows, JoinedRows) else []
        return (*own, *self._rows.schema.names)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self), len(self.columns)

    @property
    def features(self) -> tuple[str, ...]:
        """The feature columns, in the order asked."""
        return tuple(output.name for output in self._rows.request.outputs)

    @property
    def labels(self) -> tuple[LabelFacts, ...]:
        """The labels, in the order asked: their horizons, and how many rows are left out for want of them."""
        return tuple(label.facts for label in self._labels)

    @property
    def _labels(self) -> tuple[JoinedLabel, ...]:
        return self._rows.labels if isinstance(self._rows, JoinedRows) else ()

    @property
    def sql(self) -> str:
        """The SQL of the join of the features, for people; each label is a join of its own."""
        rows = self._rows
        at = rows.frame.timestamp_column if isinstance(rows, JoinedRows) else rows.timestamp_column
        return join_sql(rows.request, rows.pins, at)

    @cached_property
    def certificate(self) -> Certificate:
        """Facts about the set, checked by an independent method; computed when first asked for.

        Raises CertificateError when a check fails, TrainingSetError for a view's rows in a span.
        """
        if self._saved is not None:
            return Certificate.from_dict(self._saved.certificate)

        def work() -> Certificate:
            rows = self.joined("has no certificate")
            if self._observed is None:
                for _ in self._batches():
                    pass
            assert self._observed is not None
            now_us = self._workspace.clock()
            return certify(rows, self._observed, self._gaps, self._after_now, now_us, self._notes, self._left_out)

        return self._with_reopening(work)

    def to_arrow(self) -> pa.Table:
        """Return the frame's own columns, except a pandas index, and the features."""
        table = self._own.to_arrow()
        for name, column in zip(self._rows.schema.names, self._features().columns, strict=True):
            table = table.append_column(name, column)
        return table

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows of `to_arrow` in Arrow batches as they are joined, never holding the whole set.

        A saved set is compared with the saved hash after the last batch.
        """

        def begin() -> tuple[pa.RecordBatch | None, Iterator[pa.RecordBatch]]:
            _, batches = self._beside_own()
            return next(batches, None), batches

        first, others = self._with_reopening(begin)
        if first is not None:
            yield first
            yield from others

    def to_pandas(self) -> pd.DataFrame:
        """Return the frame's own columns and index as you passed them, and the features.

        Numbers and booleans have numpy dtypes if nothing is null, otherwise pandas' nullable ones. Texts have pandas'
        string type, instants are datetime64 in UTC, and dates, decimals, bytes and lists are Python objects.
        """
        return _beside(self._own, self._features())

    to_df = to_pandas

    def head(self, n: int = 5) -> pd.DataFrame:
        """Return the first ``n`` rows as `to_pandas`, with dtypes that fit these rows only.

        Joins only these rows if the whole set was not asked for before; a saved set is built completely, to compare it
        with the saved hash. Raises InputError for an ``n`` below 0.
        """
        if n < 0:
            raise InputError(f"n={n} is not a number of rows.", hint="Pass 0 or more.")
        features = self._with_reopening(lambda: self._first(n))
        joined = self._rows.frame if isinstance(self._rows, JoinedRows) else None
        own = no_columns(features.num_rows) if joined is None else joined.first(n).own
        return _beside(own, features)

    def to_polars(self) -> pl.DataFrame:
        """Return a polars frame; raises InputError where polars is not installed."""
        pl = import_polars()
        features = pl.DataFrame(self._features())
        own = self._own.table if self._own.form == "polars" else pl.DataFrame(self._own.to_arrow())
        return own.hstack(features) if own.width else features

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return `to_arrow` as a stream. The join runs first, because a reader would hide our errors."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def write_parquet(self, path: str | Path) -> Path:
        """Write the rows to a Parquet file as they are joined, never holding the whole set, and return its path.

        The file appears complete or not at all. Overwrites only an earlier training set: raises InputError for any
        other file, the entity frame's own, the folders of the stores, a path that a source would read, and a missing
        folder. Raises DiskFullError.
        """
        target = Path(path)
        frame = self._rows.frame.own.path if isinstance(self._rows, JoinedRows) else None
        check_output(self._workspace, target, frame)
        with replaced(target) as partial:
            self._with_reopening(lambda: self._write(partial))
        return target

    def save(self, name: str) -> TrainingSet:
        """Register the set, so that `get_training_set(name)` builds it again, identical; return it.

        Saving the same set under its name again changes nothing. Raises InputError for an ill-formed name,
        TrainingSetError for a name that holds another set and for a direct set.

        The set's `statistics` and a `sample` of its rows are kept with it.
        """
        rows = self.joined("cannot be saved")

        def content() -> tuple[str, Certificate, SetProfile]:
            profile: SetProfile | None = None

            def counted(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
                nonlocal profile
                profile = profile_of(rows)
                return profile.seeing(batches)

            text = self._fingerprint(counted)
            assert profile is not None
            return text, self.certificate, profile

        save(self._workspace, rows, name, content)
        self._saved_as = name
        return self

    @property
    def statistics(self) -> StatisticsDocument | None:
        """What a saved set holds, feature by feature; None of one that is not saved, or by an earlier release."""
        return None if self._saved is None else statistics_of_set(self._workspace, self._saved.name)

    def sample(self) -> pa.Table:
        """Return at most 20,000 rows of a saved set as they were saved, without building it.

        Columns: the join keys, hashed, ``event_timestamp``, and the features that are not tagged ``personal``. Raises
        TrainingSetError for a set that is not saved. `left_out` says what is missing and why.
        """
        if self._saved is None:
            raise TrainingSetError("Only a saved set has a sample.", hint="Save it, and ask `get_training_set(name)`.")
        sample = read_sample(self._workspace, self._saved)
        for name in sorted(inherits(self._rows.request) - set(sample.column_names)):
            warn(self.left_out[name])
        return sample

    @property
    def left_out(self) -> Mapping[str, str]:
        """The columns of which statistics, profiles and samples show no values, because they are personal, and why."""
        return {name: why for request in self._rows.requests for name, why in left_out(request).items()}

    def profile(self) -> Profile:
        """Return what the features hold: counts, quantiles, frequent values, drawn in a notebook."""
        from featurestore.statistics.profile import profile

        columns = [each.column for each in columns_of(*self._rows.requests)]
        table = self._features().select([column.name for column in columns])
        return profile(self._workspace.engine, "the training set", table, columns)

    def check(
        self,
        expect: ViewRule | Iterable[ViewRule] = (),
        *,
        columns: Mapping[str, FieldRule | Iterable[FieldRule]] | None = None,
    ) -> TrainingSet:
        """Return the set; raises TrainingSetError saying what of its rows is not as expected.

        ``expect`` holds `Rows` and `Share`, of all columns of `to_arrow`; ``columns`` rules of single ones by name.
        Raises InputError for rules that do not fit.
        """
        kinds = {output.name: output.field.type for request in self._rows.requests for output in request.outputs}
        check_set(self._workspace, self.to_arrow(), kinds, expect, columns or {}, hidden=set(self.left_out))
        return self

    def split(self, at: Instant, *, embargo: timedelta | None = None, allow_overlap: bool = False) -> Split:
        """Return the rows before an instant to train on, those from it on to test with, and how many are in between.

        A row trains if its time lies before ``at - embargo``, and tests from ``at`` on. The embargo is by default the
        greatest horizon of the labels: what trains was then known before the test begins. A shorter one is refused
        unless ``allow_overlap``. Both parts are sets of their own, joined when their rows are asked for; of a saved
        set the whole is built first, and compared. Raises InputError, also for a part without rows.
        """
        rows = self.joined("cannot be split")
        *parts, left_out = split(rows, at, embargo, allow_overlap=allow_overlap)
        known = self._features() if self._saved is not None else self._table
        train, test = (TrainingSet(self._workspace, rows.taken(places)) for places in parts)
        for part, places in zip((train, test), parts, strict=True):
            part._table = None if known is None else known.take(places)
        return Split(train, test, left_out)

    def fingerprint(self) -> str:
        """Return the hash of the feature columns: every value, its type and its place count."""
        return self._fingerprint(lambda batches: batches)

    def _fingerprint(self, seen: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]) -> str:
        def work() -> str:
            batches = self._batches() if self._table is None else iter(self._table.to_batches())
            return fingerprint(self._rows.schema, seen(batches))

        return self._with_reopening(work)

    def joined(self, complaint: str) -> JoinedRows:
        """Return the join; raises TrainingSetError for a view's rows in a span."""
        if isinstance(self._rows, SpanRows):
            raise TrainingSetError(
                f"A view's rows in a span are not a training set: it {complaint}.",
                hint="Pass an entity frame: then each value is as it was known at its row's time.",
            )
        return self._rows

    @property
    def _own(self) -> OwnColumns:
        return self._rows.frame.own if isinstance(self._rows, JoinedRows) else no_columns(self._features().num_rows)

    def _features(self) -> pa.Table:
        """Return the feature columns of all rows, joined once."""
        import pyarrow as pa

        if self._table is None:
            self._table = self._with_reopening(lambda: pa.Table.from_batches(self._batches(), self._rows.schema))
        return self._table

    def _first(self, n: int) -> pa.Table:
        """Return the feature columns of the first rows; joins no others if it can."""
        import pyarrow as pa

        if self._table is not None or self._saved is not None:
            return self._features().slice(0, n)
        rows = self._rows
        if isinstance(rows, JoinedRows):
            rows = rows.first(n)
        batches, count = [], 0
        for batch in rows.batches():
            batches.append(batch)
            count += batch.num_rows
            if isinstance(rows, SpanRows) and count >= n:
                break
        return pa.Table.from_batches(batches, self._rows.schema).slice(0, n)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the feature columns, and compare them with the saved hash at the end."""
        if isinstance(self._rows, SpanRows):
            yield from self._rows.batches()
            return
        taken = None if self._saved is None else TableFingerprint(self._rows.schema)
        observed = Observed(len(self))
        try:
            for batch in self._rows.batches(observed):
                if taken is not None:
                    taken.update(batch)
                yield batch
        except DamagedFileError as error:
            if self._saved is None:
                raise
            raise not_to_be_built(self._saved.name, error) from None
        if taken is not None and self._saved is not None and taken.hexdigest() != self._saved.fingerprint:
            raise TrainingSetChangedError(
                f"Training set {self._saved.name!r} does not build to the rows that were saved.",
                hint="Its files are as they were: look for an on-demand function that is not deterministic.",
                name=self._saved.name,
            )
        self._observed = observed
        if self._checks_availability:
            self._checks_availability = False
            for text in held_back(self._rows, observed):
                self._warn(text)
            for label in self._rows.labels:
                for text in held_back(label.rows, label.observed):
                    self._warn(f"Label {label.facts.name!r}, at the ends of the horizons: {text}")
        for text in own_events(self._rows):
            if text not in self.warnings:
                self._warn(text)

    def _beside_own(self) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Return the schema and, as they are joined, the batches of the frame's own columns and the features."""
        import pyarrow as pa

        own = self._rows.frame.own.to_arrow() if isinstance(self._rows, JoinedRows) else pa.table({})
        schema = pa.schema([*own.schema, *self._rows.schema], metadata=own.schema.metadata)

        def batches() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in self._batches() if self._table is None else self._table.to_batches(BATCH_ROWS):
                mine = own.slice(start, batch.num_rows).columns
                start += batch.num_rows
                yield pa.RecordBatch.from_arrays([*map(one_array, mine), *batch.columns], schema=schema)

        return schema, batches()

    def _write(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema, batches = self._beside_own()
        # Dictionaries only where values repeat, which saves a third of the time.
        texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        with pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=texts or False) as writer:
            for batch in batches:
                writer.write_batch(batch, row_group_size=BATCH_ROWS)

    def _with_reopening(self, work: Callable[[], T]) -> T:
        """Run ``work``; if pinned files were cleaned away in the meantime, run it again with the newest versions."""
        offline = self._workspace.offline
        try:
            return work()
        except (OfflineStoreError, EngineError):
            if self._reopened or self._saved is not None or not any(is_gone(offline, p) for p in self._rows.all_pins):
                raise
        self._reopened, self._observed = True, None
        self._rows = self._rows.repinned()
        self._warn("The files of a pinned table version were cleaned away: the set was opened again with the newest.")
        return work()

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        warn(text)

    def __repr__(self) -> str:
        count = (
            f"{len(self):,} row{'s' * (len(self) != 1)}"
            if isinstance(self._rows, JoinedRows) or self._table is not None
            else "a span"
        )
        return f"TrainingSet({self._saved.name + ': ' if self._saved else ''}{count}, {len(self.features)} features)"

    def _repr_html_(self) -> str:
        reads = [
            (pin.read.name, pin.read.view.name, "" if pin.version is None else pin.version.number, pin.as_of)
            for pin in self._rows.all_pins
        ]
        table = html_table(reads, ("read as", "view", "table version", "as of"))
        notes = "".join(f"<p>⚠ {escape(text)}</p>" for text in self.warnings)
        return f"<p><b>{escape(repr(self))}</b>: {escape(', '.join(self.features))}</p>{table}{notes}"


class Split(NamedTuple):
    """Two parts of a set, and how many of its rows are in neither."""

    train: TrainingSet
    """The rows with times before ``at - embargo``."""
    test: TrainingSet
    """The rows with times from ``at`` on."""
    left_out: int
    """Rows in between: some of their labels were known only after the test begins."""


def _beside(own_columns: OwnColumns, features: pa.Table) -> pd.DataFrame:
    """Return the frame's own columns, its index and attributes, and the features."""
    import pandas as pd

    from featurestore.request.conversion import to_frame

    own = own_columns.to_pandas()
    frame = to_frame(features, own.index)
    if not len(own.columns):
        return frame
    frame = pd.concat([own, frame], axis="columns")
    frame.index, frame.columns.name = own.index, own.columns.name
    frame.attrs = dict(own.attrs)
    return frame
