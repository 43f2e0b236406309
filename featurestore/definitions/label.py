"""Labels: what became known of an entity within a horizon, to train on and to compare predictions with."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, ClassVar

from pydantic import field_validator

from featurestore.definitions.base import ColumnName, Part
from featurestore.definitions.view import FeatureSelection, FeatureView
from featurestore.types.times import MICROSECOND, duration_text

SHORTEST = 2 * MICROSECOND
"""Instants are whole microseconds: within one there is no event after the row's time and before the horizon's end."""

SHORTER_WINDOW = "Take a window that is at most as long as the horizon."


class Label(Part):
    """What a feature is at the end of a horizon, by events that happened within it: after the row's time.

    ``feature`` is ``"view:feature"``, or one feature of a view, such as ``outcomes[["late"]].with_join_keys(...)``. The
    label of a row at t is the view's newest value of the events in (t, t + horizon] as it was known at t + horizon; a
    feature with a window is its value at t + horizon, and the window is at most as long as the horizon: both its ends
    are exact here, so nothing up to t counts. ``name`` is the label's column; by default the feature's.
    """

    kind: ClassVar[str] = "label"
    title: ClassVar[str] = "Label"

    feature: str | FeatureSelection
    horizon: timedelta
    name: ColumnName | None = None

    def __init__(
        self, feature: str | FeatureView | FeatureSelection, *, horizon: timedelta, name: str | None = None
    ) -> None:
        chosen = FeatureSelection(feature) if isinstance(feature, FeatureView) else feature
        self._fill(feature=chosen, horizon=horizon, name=name)

    @field_validator("feature")
    @classmethod
    def _check_feature(cls, feature: str | FeatureSelection) -> str | FeatureSelection:
        if isinstance(feature, str):
            view, colon, name = feature.partition(":")
            is_one = bool(view and colon and name) and "*" not in name and ":" not in name
        else:
            is_one = len(feature.names or feature.view.fields or ()) == 1
        if not is_one:
            raise ValueError('a label is one feature: "view:feature", or view[["feature"]]')
        return feature

    @field_validator("horizon")
    @classmethod
    def _check_horizon(cls, horizon: timedelta) -> timedelta:
        if horizon < SHORTEST:
            raise ValueError("must be a length of time after the row's, such as timedelta(hours=6)")
        return horizon

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield the feature as its reference, where that says which it is."""
        read = self.feature
        is_plain = isinstance(read, str) or (read.name == read.view.name and not read.columns)
        for name, value in super().__repr_args__():
            yield (None, self.reference) if name == "feature" and is_plain else (name, value)

    @property
    def view(self) -> str:
        """The name of its view."""
        return self.reference.partition(":")[0] if isinstance(self.feature, str) else self.feature.view.name

    def lack_in(self, view: FeatureView) -> str | None:
        """Return why a view has no such label, None where it has."""
        name = self.reference.rpartition(":")[2]
        view.feature(name)
        window = next((window for window in view.windows if window.name == name), None) if view.aggregations else None
        if window is None or (window.length_us is not None and window.length_us <= self.horizon_us):
            return None
        length = "all of history" if window.length_us is None else duration_text(window.length_us)
        return (
            f"The label {self.reference} looks back over {length}, and its horizon is only "
            f"{duration_text(self.horizon_us)}: it would count what happened before the row."
        )

    @property
    def horizon_us(self) -> int:
        """The horizon in microseconds."""
        return self.horizon // MICROSECOND

    @property
    def reference(self) -> str:
        """``view:feature``, for messages."""
        if isinstance(self.feature, str):
            return self.feature
        return f"{self.feature.name}:{(self.feature.names or [field.name for field in self.feature.features])[0]}"
