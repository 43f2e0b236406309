"""How models did: their predictions beside labels that are known by now, by model version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from featurestore.quality.figures import Task
from featurestore.served.joining import same_id_text
from featurestore.served.keep import after_now_text
from featurestore.tables import html_table, visible
from featurestore.types.times import duration_text, to_short_rfc3339

if TYPE_CHECKING:
    import pandas as pd

_UNUSABLE: Mapping[Task, str] = {
    "numbers": "null or not finite",
    "yes/no": "null, not finite, or no score between 0 and 1",
    "classes": "null",
}
"""What cannot be judged, by what is judged."""
HEADS = ("model", "rows", "not matured", "without label")


@dataclass(frozen=True, slots=True)
class ModelPerformance:
    """How one model (version) did."""

    model: str
    """As it was logged."""
    rows: int
    """Predictions with a label: the figures are of these."""
    not_matured: int
    """Predictions whose horizon ends after now: in no figure, also where something is known already."""
    not_committed: int
    """Predictions of which the offline store does not hold all that happened in their horizon."""
    without_label: int
    """Predictions after which nothing became known within the horizon."""
    without_served: int
    """Predictions beside which nothing was served: nobody knows for whom they were."""
    unusable: int
    """Predictions that cannot be judged: null, NaN, infinite, and for a yes or no those outside [0, 1]."""
    first_us: int | None
    """When the first of them was served, in UTC microseconds."""
    last_us: int | None
    """When the last one was."""
    figures: Mapping[str, float | None]
    """By name; None where there is nothing to compare."""


@dataclass(frozen=True)
class Performance:
    """How the models of a service did."""

    service: str
    """The feature service."""
    prediction: str
    """The prediction that is judged."""
    label: str
    """``view:feature`` of the label."""
    horizon_us: int
    """Its horizon, in microseconds."""
    task: Task
    """What was judged."""
    start_us: int
    """The span of served rows, in UTC microseconds: the end is not in it."""
    end_us: int
    """Its end."""
    models: tuple[ModelPerformance, ...]
    """Each model, the one that was first in use first."""
    repeated: int
    """Predictions that a later one of the same request, row and model replaced."""
    other_kind: int = 0
    """Values of the prediction that are of another kind than those that are judged: in no other figure."""
    same_id: int = 0
    """Served rows with the request id of a later one: predictions for either count for the later one."""
    after_now: int = 0
    """Served rows that lie after now and after the span: they are in no other figure."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        models = [asdict(each) for each in self.models]
        for each in models:
            for name, at in (("first", each.pop("first_us")), ("last", each.pop("last_us"))):
                each[name] = None if at is None else to_short_rfc3339(at)
        return {
            "service": self.service,
            "prediction": self.prediction,
            "label": self.label,
            "horizon_seconds": self.horizon_us / 1_000_000,
            "task": self.task,
            "start": to_short_rfc3339(self.start_us),
            "end": to_short_rfc3339(self.end_us),
            "models": models,
            "repeated": self.repeated,
            "other_kind": self.other_kind,
            "same_id": self.same_id,
            "after_now": self.after_now,
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each model, with its counts and figures."""
        import pandas as pd

        counts = [{name: value for name, value in asdict(each).items() if name != "figures"} for each in self.models]
        return pd.DataFrame([{**own, **each.figures} for own, each in zip(counts, self.models, strict=True)])

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of `cells`."""
        return (*HEADS, *(name.replace("_", " ") for name in self._figure_names()))

    def cells(self) -> Iterator[tuple[str, ...]]:
        """Yield the texts of each model's line, in the order of ``heads``."""
        for each in self.models:
            figures = (each.figures[name] for name in self._figure_names())
            counts = (f"{count:,}" for count in (each.rows, each.not_matured, each.without_label))
            yield (visible(each.model), *counts, *("" if value is None else f"{value:.4g}" for value in figures))

    def _figure_names(self) -> tuple[str, ...]:
        return tuple(self.models[0].figures) if self.models else ()

    def title(self) -> str:
        """Return what was judged, in words."""
        what = f"{self.service}: {self.prediction} beside {self.label} within {duration_text(self.horizon_us)}"
        firsts = (each.first_us for each in self.models if each.first_us is not None)
        start_us = self.start_us or min(firsts, default=0)  # without a start it is that of the rows
        end = to_short_rfc3339(self.end_us)
        return f"{what}, {to_short_rfc3339(start_us)} to {end}" if start_us else f"{what}, up to {end}"

    def notes(self) -> Iterator[str]:
        """Yield what the table does not say."""
        if not self.models:
            yield "no prediction of this span stands beside what was served"
        if self.repeated:
            yield f"{self.repeated:,} predictions were logged again: the last one counts"
        if self.other_kind:
            yield f"{self.other_kind:,} predictions are of another kind than those that are judged: left out"
        if self.same_id:
            yield same_id_text(self.same_id)
        if self.after_now:
            yield after_now_text(self.after_now)
        view = self.label.partition(":")[0]
        for each in self.models:
            name = visible(each.model)
            if each.not_committed:
                yield f"{name}: {each.not_committed:,} wait for what is not committed: `fs materialize --view {view}`"
            if each.without_served:
                yield f"{name}: {each.without_served:,} predictions are of requests that are not in the served log"
            if each.unusable:
                yield f"{name}: {each.unusable:,} predictions are {_UNUSABLE[self.task]}"

    def __str__(self) -> str:
        rows = [self.heads, *self.cells()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([self.title(), *lines, *self.notes()])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes())
        return f"<p>{escape(self.title())}</p>{html_table(self.cells(), self.heads)}{notes}"
