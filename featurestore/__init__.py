"""A feature store: correct training sets, fast online features, embedded by default.

Names load at their first use, so that ``import featurestore`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.definitions import (
        Aggregation,
        Between,
        Drift,
        Entity,
        FeatureService,
        FeatureView,
        Field,
        Fresh,
        Label,
        Matches,
        MatchRate,
        ModelMetric,
        Monitor,
        NotNull,
        OnDemandFeatureView,
        OneOf,
        ParquetSource,
        PushSource,
        RequestSource,
        Rows,
        ServedLog,
        Share,
        Unique,
        on_demand_feature_view,
    )
    from featurestore.maintenance.profile import profile
    from featurestore.store import FeatureStore
    from featurestore.training import TrainingSetWarning

__version__ = "0.1.0"

_HOMES = {
    "Aggregation": "featurestore.definitions",
    "Between": "featurestore.definitions",
    "Drift": "featurestore.definitions",
    "Entity": "featurestore.definitions",
    "FeatureService": "featurestore.definitions",
    "FeatureStore": "featurestore.store",
    "FeatureView": "featurestore.definitions",
    "Field": "featurestore.definitions",
    "Fresh": "featurestore.definitions",
    "Label": "featurestore.definitions",
    "Matches": "featurestore.definitions",
    "ModelMetric": "featurestore.definitions",
    "MatchRate": "featurestore.definitions",
    "Monitor": "featurestore.definitions",
    "NotNull": "featurestore.definitions",
    "on_demand_feature_view": "featurestore.definitions",
    "OnDemandFeatureView": "featurestore.definitions",
    "OneOf": "featurestore.definitions",
    "ParquetSource": "featurestore.definitions",
    "profile": "featurestore.maintenance.profile",
    "PushSource": "featurestore.definitions",
    "RequestSource": "featurestore.definitions",
    "Rows": "featurestore.definitions",
    "ServedLog": "featurestore.definitions",
    "Share": "featurestore.definitions",
    "TrainingSetWarning": "featurestore.training.coverage",
    "Unique": "featurestore.definitions",
}

__all__ = [
    "Aggregation",
    "Between",
    "Drift",
    "Entity",
    "FeatureService",
    "FeatureStore",
    "FeatureView",
    "Field",
    "Fresh",
    "Label",
    "MatchRate",
    "Matches",
    "ModelMetric",
    "Monitor",
    "NotNull",
    "OnDemandFeatureView",
    "OneOf",
    "ParquetSource",
    "PushSource",
    "RequestSource",
    "Rows",
    "ServedLog",
    "Share",
    "TrainingSetWarning",
    "Unique",
    "on_demand_feature_view",
    "profile",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'featurestore' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
