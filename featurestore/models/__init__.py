"""Models that a tracker of experiments knows: what they were trained with, and who reads which services."""

from featurestore.models.consumers import register_model, register_models
from featurestore.models.features import ModelFeatures, features_for

__all__ = ["ModelFeatures", "features_for", "register_model", "register_models"]
