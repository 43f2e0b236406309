"""The work of judging models: predictions, what was served for them, and labels, by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from featurestore.definitions import FeatureService, Label
from featurestore.errors import InputError
from featurestore.ledger.watermarks import read_watermark
from featurestore.quality.figures import FIGURES, Task
from featurestore.quality.labelling import labelled
from featurestore.quality.observed import numbered
from featurestore.quality.performance import ModelPerformance, Performance
from featurestore.served.joining import PredictedRows, join_predictions
from featurestore.served.keep import rows_after
from featurestore.served.kinds import word_of
from featurestore.served.shape import AT, KEY, MODEL, PREDICTION, REQUEST
from featurestore.training.labels import LabelRead, Matured, matured, read_label
from featurestore.types import Bool, Float32, Float64, Int32, Int64, String
from featurestore.types.values import ValueType
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

Bools = npt.NDArray[np.bool_]


def performance(
    workspace: Workspace,
    service: str,
    label: Label,
    prediction: str,
    start_us: int,
    end_us: int,
    *,
    task: Task | None = None,
) -> Performance:
    """Judge the models of a service. See `FeatureStore.performance`."""
    if task not in (None, *get_args(Task)):
        raise InputError(f"task={task!r} is nothing that can be judged.", hint=f"Pass one of {get_args(Task)}.")
    found = predictions_beside(workspace, service, label, prediction, start_us, end_us)
    judged = task or found.task()
    models = found.performances(judged)
    return Performance(
        service,
        prediction,
        found.feature,
        label.horizon_us,
        judged,
        start_us,
        end_us,
        models,
        found.repeated,
        other_kind=found.other_kind,
        same_id=found.same_id,
        after_now=rows_after(workspace, service, max(end_us, workspace.clock() + 1)),
    )


def predictions_beside(
    workspace: Workspace, service: str, label: Label, prediction: str, start_us: int, end_us: int
) -> PredictedLabels:
    """Return the predictions for what was served in [start, end), beside their labels. Raises as `performance`."""
    snapshot = workspace.snapshot()
    snapshot.get(FeatureService, service)
    read = read_label(snapshot, label)
    kinds = _FITTING.get(read.request.outputs[0].field.type, ())
    found = join_predictions(workspace, service, start_us, end_us, only=prediction, fitting=kinds)
    old_enough, labels = labelled(workspace, snapshot, service, found.rows, [read])
    times = found.rows.column(AT).cast("int64").to_numpy()
    watermark = read_watermark(workspace.ledger, read.read.registered)
    known = matured(times, label.horizon_us, workspace.clock(), watermark)
    return _beside(read, found, prediction, known, old_enough.places, labels[read.name])


class Values(NamedTuple):
    """Predictions and labels as a task compares them, and which of them it can."""

    predicted: npt.NDArray[Any]
    actual: npt.NDArray[Any]
    is_usable: Bools
    has_label: Bools


@dataclass(frozen=True)
class PredictedLabels:
    """Predictions beside their labels, as columns."""

    what: str
    """The label, for messages."""
    feature: str
    """``view:feature`` of the label."""
    prediction: str
    kind: ValueType
    """The label's type."""
    models: npt.NDArray[Any]
    at_us: npt.NDArray[np.int64]
    matured: Matured
    predicted: pa.Array
    actual: pa.Array
    """The labels; null where there is none, and in rows that are not old enough."""
    entities: npt.NDArray[np.int64]
    """A number for each entity that labels are of."""
    lonely: Counter[str]
    """By model the predictions of requests that are not in the served log."""
    repeated: int
    """Predictions that later ones replaced."""
    other_kind: int
    """Values of another kind than those that are judged."""
    same_id: int
    """Served rows with the request id of a later one."""

    def task(self, among: Sequence[Task] = get_args(Task)) -> Task:
        """Return what fits of some tasks; the last one where the label calls for none of them."""
        fitting = self._fitting()
        return fitting if fitting in among else among[-1]

    def _fitting(self) -> Task:
        """Return what can be judged, by the type of the label and, for a yes or no that is a number, by the values."""
        if self.kind == String:
            return "classes"
        if self.kind == Bool:
            return "yes/no"
        predicted, actual = self._floats(self.predicted, "prediction"), self._floats(self.actual, "label")
        both = np.isfinite(predicted) & np.isfinite(actual)
        if not both.any() or not np.isin(actual[both], (0, 1)).all():
            return "numbers"
        return "yes/no" if ((predicted[both] >= 0) & (predicted[both] <= 1)).all() else "numbers"

    def values(self, task: Task) -> Values:
        """Return what a task compares; raises InputError where that is not possible."""

        if task == "classes" and self.kind == String:
            return self._texts()
        scores, truth = self._floats(self.predicted, "prediction"), self._floats(self.actual, "label")
        is_usable, has_label = np.isfinite(scores), np.isfinite(truth)
        if task == "classes" and self.kind not in (Float32, Float64):
            is_usable &= scores == np.floor(scores)
            if self.kind == Bool:
                is_usable &= (scores >= 0) & (scores <= 1)
        if task == "yes/no":
            is_usable &= (scores >= 0) & (scores <= 1)
            if not np.isin(truth[has_label], (0, 1)).all():
                raise InputError(
                    f"The label {self.what} is not only 0 and 1, so it is no yes or no.",
                    hint='Leave task out, or pass task="numbers".',
                )
        return Values(scores, truth, is_usable, has_label)

    def _texts(self) -> Values:
        """Return predictions and labels that are texts; raises InputError where predictions are none."""
        import pyarrow as pa

        kind = self.predicted.type
        if not pa.types.is_string(kind) and not pa.types.is_null(kind):
            raise self._apart()
        columns = self.predicted.cast(pa.string()), self.actual
        valid = (column.is_valid().to_numpy(zero_copy_only=False) for column in columns)
        texts = (column.fill_null("").to_numpy(zero_copy_only=False) for column in columns)
        return Values(*texts, *valid)

    def _floats(self, column: pa.Array, what: str) -> npt.NDArray[np.float64]:
        """Return numbers and booleans as floats, NaN for null; raises InputError for anything else."""
        import pyarrow as pa

        if pa.types.is_string(column.type) or (what == "label" and self.kind not in _NUMBERS):
            raise self._apart()
        numbers = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
        found: npt.NDArray[np.float64] = (
            numbers.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy(zero_copy_only=False)
        )
        return found

    def _apart(self) -> InputError:
        return InputError(
            f"The prediction {self.prediction!r} is a {word_of(self.predicted.type)}, the label {self.what} is "
            f"{self.kind}: they cannot be compared.",
            hint="Numbers and booleans compare with numbers and booleans, texts with texts.",
        )

    def performances(self, task: Task) -> tuple[ModelPerformance, ...]:
        """Return how each model did, the one that was first in use first; raises InputError as `values`."""
        values = self.values(task)
        models = [self._performance(name, task, values) for name in {*self.models.tolist(), *self.lonely}]
        return tuple(sorted(models, key=lambda each: (each.first_us is None, each.first_us, each.model)))

    def judged(self, model: str, values: Values) -> Bools:
        """Return which rows the figures of a model are of."""
        found: Bools = (self.models == model) & self.matured.is_known & values.has_label & values.is_usable
        return found

    def _performance(self, name: str, task: Task, values: Values) -> ModelPerformance:
        """Return how one model did."""
        mine = self.models == name
        is_known = mine & self.matured.is_known
        with_label = is_known & values.has_label
        judged = self.judged(name, values)
        served = self.at_us[mine]
        return ModelPerformance(
            model=name,
            rows=int(judged.sum()),
            not_matured=int((mine & self.matured.not_matured).sum()),
            not_committed=int((mine & self.matured.not_committed).sum()),
            without_label=int((is_known & ~values.has_label).sum()),
            without_served=self.lonely[name],
            unusable=int((with_label & ~values.is_usable).sum()),
            first_us=int(served.min()) if len(served) else None,
            last_us=int(served.max()) if len(served) else None,
            figures=FIGURES[task](values.predicted[judged], values.actual[judged]),
        )


_NUMBERS = {Bool, Int32, Int64, Float32, Float64}
_FITTING = {String: ("text",), **dict.fromkeys(_NUMBERS, ("number", "boolean"))}
"""The kinds of predictions that compare with labels of a type."""


def _beside(
    read: LabelRead,
    found: PredictedRows,
    prediction: str,
    known: Matured,
    places: npt.NDArray[np.int64],
    labels: pa.Array,
) -> PredictedLabels:
    """Return predictions beside their labels."""
    import pyarrow as pa

    rows, column = found.rows, PREDICTION + prediction
    has_any = column in rows.column_names  # of no rows at all there is no such column
    predicted = rows.column(column).combine_chunks() if has_any else pa.nulls(rows.num_rows)
    beside = np.full(rows.num_rows, -1, np.int64)
    beside[places] = np.arange(len(places))
    actual = labels.take(pa.array(beside, mask=beside < 0))
    keys = ([KEY + name, REQUEST + name] for name in read.request.key_types)
    owners = [rows.column(next(name for name in names if name in rows.column_names)) for names in keys]
    return PredictedLabels(
        read.label.reference,
        f"{read.read.view.name}:{read.read.features[0]}",
        prediction,
        read.request.outputs[0].field.type,
        np.asarray(rows.column(MODEL).to_pylist(), object),
        rows.column(AT).cast("int64").to_numpy(),
        known,
        predicted,
        actual,
        numbered(owners),
        Counter(found.lonely.column(MODEL).to_pylist()),
        found.repeated,
        found.other_kind,
        found.same_id,
    )
