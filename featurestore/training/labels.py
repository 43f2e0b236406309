"""Labels beside rows: a point-in-time join at the end of a horizon, of events within it, for rows that are old enough.

The value that is known at t + horizon of an event after t is the point-in-time value there with a greatest age just
below the horizon. So one join makes features and labels, and late rows and corrections count alike. A window of a label
has exact ends: in steps its old end could lie before the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from featurestore_registry.documents import LABEL
from featurestore_registry.interface import LedgerReader

from featurestore.definitions import Label
from featurestore.definitions.aggregation import ExactAggregation
from featurestore.definitions.label import SHORTER_WINDOW
from featurestore.errors import InputError, OutputNameClashError
from featurestore.ledger.watermarks import Watermark, covered, read_watermark
from featurestore.registered.selections import selection_from
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest, ViewRead, resolve
from featurestore.training.frames import TIME, EntityFrame, OwnColumns, check_frame
from featurestore.types.times import MICROSECOND, duration_text, to_rfc3339

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class LabelRead:
    """A label, resolved: the request for its one feature, whose view answers by events within the horizon only."""

    label: Label
    request: FeatureRequest

    @property
    def read(self) -> ViewRead:
        """The one read."""
        return self.request.reads[0]

    @property
    def name(self) -> str:
        """The label's column."""
        return self.request.outputs[0].name

    def frame(self, own: OwnColumns, timestamp_column: str) -> EntityFrame:
        """Return the rows of a table at the ends of their horizons; raises as `check_frame`."""
        if found := [name for name in own.names if str(name).lower() == self.name.lower()]:
            raise OutputNameClashError(
                f"The label {self.label.reference} has the name of your own column {found[0]!r}.",
                hint='Give the label another name: Label(..., name="...").',
                column=self.name,
            )
        return later(check_frame(own, self.request, timestamp_column), self.label.horizon_us)

    def document(self) -> dict[str, Any]:
        """Return the label as a saved set keeps it among its references."""
        (reference,) = self.request.references
        return {**reference, LABEL: self.label.name, "horizon_us": self.label.horizon_us}


def later(frame: EntityFrame, by_us: int) -> EntityFrame:
    """Return a frame's rows so much later, for a join alone."""
    import pyarrow as pa

    place = frame.keys.column_names.index(TIME)
    times = pa.array(frame.times + by_us).cast(pa.timestamp("us", "UTC"))
    return replace(frame, keys=frame.keys.set_column(place, TIME, times), request_data={})


def listed_labels(labels: Any) -> list[Label]:
    """Return labels as a list; raises InputError for a text, which would be taken letter by letter."""
    if isinstance(labels, str):
        raise _no_label(labels)
    return [labels] if isinstance(labels, Label) else list(labels)


def _no_label(given: Any) -> InputError:
    return InputError(f"{given!r} is not a Label.", hint='Pass Label("view:feature", horizon=timedelta(hours=6)).')


def read_label(snapshot: Snapshot, label: Label, *, full_feature_names: bool = False) -> LabelRead:
    """Return a label, resolved against the applied definitions; raises NotFoundError and InputError."""
    if not isinstance(label, Label):
        raise _no_label(label)
    request = resolve(snapshot, label.feature, full_feature_names=full_feature_names)
    if request.on_demand or len(request.outputs) != 1:
        raise InputError(
            f"The label {label.reference} is not one stored feature.",
            hint="A label is one feature of a feature view: nothing is computed on demand after the fact.",
        )
    (read,), (output,) = request.reads, request.outputs
    if label.name is not None:
        output = replace(output, name=label.name)
    if lack := label.lack_in(read.view):
        raise InputError(lack, hint=SHORTER_WINDOW)
    if read.view.aggregations:
        view = read.view.replaced(aggregations=tuple(map(ExactAggregation.of, read.view.aggregations)))
    else:
        view = read.view.replaced(ttl=label.horizon - MICROSECOND)
    read = replace(read, registered=replace(read.registered, view=view))
    return LabelRead(label, replace(request, reads=(read,), outputs=(output,)))


def read_labels(
    snapshot: Snapshot, labels: Sequence[Label], request: FeatureRequest, *, full_feature_names: bool
) -> list[LabelRead]:
    """Return the labels of a training set; raises OutputNameClashError for one called like a feature or another."""
    found = [read_label(snapshot, label, full_feature_names=full_feature_names) for label in labels]
    seen = {output.name.lower(): output.reference for output in request.outputs}
    for each in found:
        reference = f"the label {each.label.reference}"
        other = seen.setdefault(each.name.lower(), reference)
        if other is not reference:
            raise OutputNameClashError(
                f"Two output columns would be named {each.name!r}: {other} and {reference}.",
                hint='Give the label a name: Label(..., name="...").',
                column=each.name,
            )
    return found


def label_from(snapshot: Snapshot, document: Mapping[str, Any], *, full_feature_names: bool) -> LabelRead:
    """Return the label of a `LabelRead.document`."""
    selection = selection_from(document, lambda _, name: snapshot.registered(name).view)
    horizon = document["horizon_us"] * MICROSECOND
    return read_label(
        snapshot, Label(selection, horizon=horizon, name=document[LABEL]), full_feature_names=full_feature_names
    )


@dataclass(frozen=True)
class Matured:
    """Which rows are old enough for a label: their horizon has ended, and what happened in it is committed."""

    not_matured: npt.NDArray[np.bool_]
    """Their horizon ends after now."""
    not_committed: npt.NDArray[np.bool_]
    """It has ended, and the offline store does not hold all of it."""

    @property
    def is_known(self) -> npt.NDArray[np.bool_]:
        """The rows that are left."""
        known: npt.NDArray[np.bool_] = ~(self.not_matured | self.not_committed)
        return known


def matured(times: npt.NDArray[np.int64], horizon_us: int, now_us: int, watermark: Watermark | None) -> Matured:
    """Tell which rows at some instants have their label; without a watermark only the clock counts.

    A row that is not old enough has none either where its outcome came early: else early outcomes alone would train.
    """
    import numpy as np

    is_late = times > now_us - horizon_us
    if watermark is None:
        return Matured(is_late, np.zeros(len(times), bool))
    if not watermark.intervals:
        return Matured(is_late, ~is_late)
    begun_us = watermark.begun_us if watermark.source_begun_us is None else watermark.source_begun_us
    first_us = times + 1 if begun_us is None else np.maximum(times + 1, begun_us)
    return Matured(is_late, ~is_late & ~covered(watermark.intervals, first_us, times + horizon_us))


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """What is said of one label of a set of rows."""

    name: str
    """Its column."""
    feature: str
    """``view:feature``."""
    horizon_us: int
    """Its horizon, in microseconds."""
    not_matured: int
    """Rows that are left out because their horizon ends after now."""
    not_committed: int
    """Rows that are left out because the offline store does not hold all of what happened in their horizon."""


@dataclass(frozen=True)
class OldEnough:
    """The rows that have every label."""

    facts: tuple[LabelFacts, ...]
    rows: int
    """Rows of which they are."""
    places: npt.NDArray[np.int64]
    """Where they are."""

    @classmethod
    def of(cls, frame: EntityFrame, labels: Sequence[LabelRead], ledger: LedgerReader | None, now_us: int) -> OldEnough:
        """Return the rows of a frame that are; without a ledger by the clock alone."""
        import numpy as np

        facts, is_known = [], np.ones(len(frame), bool)
        for label in labels:
            read, horizon_us = label.read, label.label.horizon_us
            watermark = None if ledger is None else read_watermark(ledger, read.registered)
            found = matured(frame.times, horizon_us, now_us, watermark)
            counts = int(found.not_matured.sum()), int(found.not_committed.sum())
            facts.append(LabelFacts(label.name, f"{read.view.name}:{read.features[0]}", horizon_us, *counts))
            is_known &= found.is_known
        return cls(tuple(facts), len(frame), np.flatnonzero(is_known))

    @property
    def left_out(self) -> int:
        """How many rows are not."""
        return self.rows - len(self.places)

    def rows_of(self, frame: EntityFrame) -> EntityFrame:
        """Return the frame without those that are not."""
        return frame.taken(self.places) if self.left_out else frame

    def text(self, now_us: int) -> str | None:
        """Return a sentence about the rows that are left out, None where none are."""
        if not self.left_out:
            return None
        reasons, commands = [], []
        for each in self.facts:
            counts = (each.not_matured, "end after now"), (each.not_committed, "are not all committed")
            if told := [f"{count:,} {why}" for count, why in counts if count]:
                reasons.append(
                    f"of the {duration_text(each.horizon_us)} after the row for {each.name!r} {' and '.join(told)}"
                )
            if each.not_committed:
                commands.append(f"`fs materialize --view {each.feature.partition(':')[0]}`")
        fill = f" Commit what is new with {' and '.join(dict.fromkeys(commands))}." if commands else ""
        return (
            f"{self.left_out:,} of {self.rows:,} rows are left out, because their labels are not known at "
            f"{to_rfc3339(now_us)}: {'; '.join(reasons)}.{fill}"
        )
