"""Feature services: what one model reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import field_validator

from featurestore.definitions.base import Definition, as_dict, as_tuple
from featurestore.definitions.on_demand import OnDemandFeatureView
from featurestore.definitions.view import FeatureSelection, FeatureView


class FeatureService(Definition):
    """The features that one model (version) reads, in order, in training and in serving."""

    kind: ClassVar[str] = "feature_service"
    title: ClassVar[str] = "FeatureService"

    features: tuple[FeatureSelection | OnDemandFeatureView, ...]

    def __init__(
        self,
        name: str,
        features: Sequence[FeatureView | FeatureSelection | OnDemandFeatureView],
        *,
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        deprecated: str = "",
    ) -> None:
        self._fill(
            name,
            features=tuple(FeatureSelection(f) if isinstance(f, FeatureView) else f for f in as_tuple(features)),
            description=description,
            owner=owner,
            tags=as_dict(tags),
            deprecated=deprecated,
        )

    @field_validator("features")
    @classmethod
    def _check_features(
        cls, features: tuple[FeatureSelection | OnDemandFeatureView, ...]
    ) -> tuple[FeatureSelection | OnDemandFeatureView, ...]:
        if not features:
            raise ValueError("a feature service needs at least one feature")
        counts = Counter(feature.name for feature in features)
        for name, count in counts.items():
            if count > 1:
                raise ValueError(f"{name!r} is given twice; read it once, or under another name: .with_name(...)")
        return features
