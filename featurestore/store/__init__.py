"""The FeatureStore facade: each public method calls one use case."""

from featurestore.store.facade import FeatureStore

__all__ = ["FeatureStore"]
