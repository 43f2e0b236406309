"""What users write: frozen, typed definitions, validated when they are made. Imports no backend."""

from featurestore.definitions.aggregation import Aggregation
from featurestore.definitions.base import Definition, Field
from featurestore.definitions.entity import Entity
from featurestore.definitions.expectations import Between, Fresh, Matches, NotNull, OneOf, Rows, Share, Unique
from featurestore.definitions.label import Label
from featurestore.definitions.monitor import Drift, MatchRate, ModelMetric, Monitor
from featurestore.definitions.on_demand import OnDemandFeatureView, on_demand_feature_view
from featurestore.definitions.service import FeatureService, ServedLog
from featurestore.definitions.source import ParquetSource, PushSource, RequestSource
from featurestore.definitions.view import FeatureSelection, FeatureView

__all__ = [
    "Aggregation",
    "Between",
    "Definition",
    "Drift",
    "Entity",
    "FeatureSelection",
    "FeatureService",
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
    "Unique",
    "on_demand_feature_view",
]
