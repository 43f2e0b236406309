"""The work of judging models: predictions, what was served for them, and labels, by model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from featurestore.definitions import FeatureService, Label
from featurestore.errors import InputError
from featurestore.ledger.watermarks import read_watermark
from featurestore.quality.figures import FIGURES, Task
from featurestore.quality.labelling import labelled
from featurestore.quality.performance import ModelPerformance, Performance
from featurestore.served.joining import PredictedRows, join_predictions
from featurestore.served.shape import AT, MODEL, PREDICTION
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
    snapshot = workspace.snapshot()
    snapshot.get(FeatureService, service)
    read = read_label(snapshot, label)
    kinds = _FITTING.get(read.request.outputs[0].field.type, ())
    found = join_predictions(workspace, service, start_us, end_us, only=prediction, fitting=kinds)
    old_enough, labels = labelled(workspace, snapshot, service, found.rows, [read])
    times = found.rows.column(AT).cast("int64").to_numpy()
    watermark = read_watermark(workspace.ledger, read.read.registered)
    known = matured(times, label.horizon_us, workspace.clock(), watermark)
    rows = _rows(read, found, prediction, known, old_enough.places, labels[read.name])
    judged = task or rows.task()
    values = rows.values(judged)
    lonely = Counter(found.lonely.column(MODEL).to_pylist())
    models = [rows.model_performance(name, judged, values, lonely[name]) for name in {*rows.models.tolist(), *lonely}]
    models.sort(key=lambda each: (each.first_us is None, each.first_us, each.model))
    feature = f"{read.read.view.name}:{read.read.features[0]}"
    made = tuple(models)
    return Performance(
        service,
        prediction,
        feature,
        label.horizon_us,
        judged,
        start_us,
        end_us,
        made,
        found.repeated,
        other_kind=found.other_kind,
    )


class _Values(NamedTuple):
    """Predictions and labels as a task compares them, and which of them it can."""

    predicted: npt.NDArray[Any]
    actual: npt.NDArray[Any]
    is_usable: Bools
    has_label: Bools


@dataclass(frozen=True)
class _Rows:
    """Predictions beside their labels, as columns."""

    what: str
    """The label, for messages."""
    prediction: str
    kind: ValueType
    """The label's type."""
    models: npt.NDArray[Any]
    at_us: npt.NDArray[np.int64]
    matured: Matured
    predicted: pa.Array
    actual: pa.Array
    """The labels; null where there is none, and in rows that are not old enough."""

    def task(self) -> Task:
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

    def values(self, task: Task) -> _Values:
        """Return what a task compares; raises InputError where that is not possible."""
        import pyarrow as pa

        if task == "classes":
            predicted, actual = ((column.cast(pa.string())) for column in (self._comparable(), self.actual))
            valid = (column.is_valid().to_numpy(zero_copy_only=False) for column in (predicted, actual))
            texts = (column.fill_null("").to_numpy(zero_copy_only=False) for column in (predicted, actual))
            return _Values(*texts, *valid)
        scores, truth = self._floats(self.predicted, "prediction"), self._floats(self.actual, "label")
        is_usable, has_label = np.isfinite(scores), np.isfinite(truth)
        if task == "yes/no":
            is_usable &= (scores >= 0) & (scores <= 1)
            if not np.isin(truth[has_label], (0, 1)).all():
                raise InputError(
                    f"The label {self.what} is not only 0 and 1, so it is no yes or no.",
                    hint='Leave task out, or pass task="numbers".',
                )
        return _Values(scores, truth, is_usable, has_label)

    def _comparable(self) -> pa.Array:
        """Return predictions of classes; raises InputError where they cannot be equal to labels."""
        import pyarrow as pa

        is_text = self.kind == String
        if is_text != (pa.types.is_string(self.predicted.type) or pa.types.is_null(self.predicted.type)):
            raise self._apart()
        return self.predicted if is_text else self.predicted.cast(self.actual.type, safe=False)

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
            f"The prediction {self.prediction!r} is {self.predicted.type}, the label {self.what} is {self.kind}: they "
            "cannot be compared.",
            hint="Numbers and booleans compare with numbers and booleans, texts with texts.",
        )

    def model_performance(self, name: str, task: Task, values: _Values, without_served: int) -> ModelPerformance:
        """Return how one model did."""
        mine = self.models == name
        is_known = mine & self.matured.is_known
        with_label = is_known & values.has_label
        judged = with_label & values.is_usable
        served = self.at_us[mine]
        return ModelPerformance(
            model=name,
            rows=int(judged.sum()),
            not_matured=int((mine & self.matured.not_matured).sum()),
            not_committed=int((mine & self.matured.not_committed).sum()),
            without_label=int((is_known & ~values.has_label).sum()),
            without_served=without_served,
            unusable=int((with_label & ~values.is_usable).sum()),
            first_us=int(served.min()) if len(served) else None,
            last_us=int(served.max()) if len(served) else None,
            figures=FIGURES[task](values.predicted[judged], values.actual[judged]),
        )


_NUMBERS = {Bool, Int32, Int64, Float32, Float64}
_FITTING = {String: ("text",), **dict.fromkeys(_NUMBERS, ("number", "boolean"))}
"""The kinds of predictions that compare with labels of a type."""


def _rows(
    read: LabelRead,
    found: PredictedRows,
    prediction: str,
    known: Matured,
    places: npt.NDArray[np.int64],
    labels: pa.Array,
) -> _Rows:
    """Return predictions beside their labels."""
    import pyarrow as pa

    rows, column = found.rows, PREDICTION + prediction
    has_any = column in rows.column_names  # of no rows at all there is no such column
    predicted = rows.column(column).combine_chunks() if has_any else pa.nulls(rows.num_rows)
    beside = np.full(rows.num_rows, -1, np.int64)
    beside[places] = np.arange(len(places))
    actual = labels.take(pa.array(beside, mask=beside < 0))
    return _Rows(
        read.label.reference,
        prediction,
        read.request.outputs[0].field.type,
        np.asarray(rows.column(MODEL).to_pylist(), object),
        rows.column(AT).cast("int64").to_numpy(),
        known,
        predicted,
        actual,
    )
