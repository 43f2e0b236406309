"""Feature services: what one model reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import ClassVar, Literal

from pydantic import field_validator

from featurestore.definitions.base import Definition, Part, as_dict, as_tuple
from featurestore.definitions.on_demand import OnDemandFeatureView
from featurestore.definitions.view import FeatureSelection, FeatureView


class ServedLog(Part):
    """What feature servers write down of what they answer for a service: a share of the requests, for some time.

    ``sample`` is the share of requests whose answers are kept; chance decides. ``keys`` says how join keys are kept:
    ``"hashed"`` with a secret of the settings, so that nobody reads them back, or ``"plain"``. Fields tagged
    ``personal``, and features that are made of such fields, are left out.
    """

    kind: ClassVar[str] = "served_log"
    title: ClassVar[str] = "ServedLog"

    sample: float = 0.1
    retention: timedelta = timedelta(days=30)
    keys: Literal["hashed", "plain"] = "hashed"

    def __init__(
        self,
        sample: float = 0.1,
        *,
        retention: timedelta = timedelta(days=30),
        keys: Literal["hashed", "plain"] = "hashed",
    ) -> None:
        self._fill(sample=sample, retention=retention, keys=keys)

    @field_validator("sample", mode="before")
    @classmethod
    def _check_sample(cls, sample: object) -> object:
        if isinstance(sample, bool) or not isinstance(sample, int | float) or not 0 < sample <= 1:
            raise ValueError("must be a share of the requests, greater than 0 and at most 1, such as 0.1")
        return float(sample)

    @field_validator("retention")
    @classmethod
    def _check_retention(cls, retention: timedelta) -> timedelta:
        if retention <= timedelta(0):
            raise ValueError("must be greater than zero; leave log out to keep nothing")
        return retention


class FeatureService(Definition):
    """The features that one model (version) reads, in order, in training and in serving.

    With ``log`` feature servers keep what they answer to requests for the service: see `FeatureStore.read_served`.
    """

    kind: ClassVar[str] = "feature_service"
    title: ClassVar[str] = "FeatureService"

    features: tuple[FeatureSelection | OnDemandFeatureView, ...]
    log: ServedLog | None = None

    def __init__(
        self,
        name: str,
        features: Sequence[FeatureView | FeatureSelection | OnDemandFeatureView],
        *,
        log: ServedLog | None = None,
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        deprecated: str = "",
    ) -> None:
        self._fill(
            name,
            features=tuple(FeatureSelection(f) if isinstance(f, FeatureView) else f for f in as_tuple(features)),
            log=log,
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
