"""Labels: what became known of an entity within a horizon, to train on and to compare predictions with."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

from pydantic import field_validator

from featurestore.definitions.base import ColumnName, Part
from featurestore.definitions.view import FeatureSelection, FeatureView
from featurestore.types.times import MICROSECOND

SHORTEST = 2 * MICROSECOND
"""Instants are whole microseconds: within one there is no event after the row's time and before the horizon's end."""


class Label(Part):
    """What a feature is at the end of a horizon, by events that happened within it: after the row's time.

    ``feature`` is ``"view:feature"``, or one feature of a view, such as ``outcomes[["late"]].with_join_keys(...)``. The
    label of a row at t is the view's newest value of the events in (t, t + horizon] as it was known at t + horizon; a
    feature with a window is its value at t + horizon, and the window is at most as long as the horizon. ``name`` is the
    label's column; by default the feature's.
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

    @property
    def horizon_us(self) -> int:
        """The horizon in microseconds."""
        return self.horizon // MICROSECOND

    @property
    def reference(self) -> str:
        """``view:feature``, for messages."""
        if isinstance(self.feature, str):
            return self.feature
        return f"{self.feature.name}:{self.feature.features[0].name}"
