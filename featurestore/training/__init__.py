"""Training sets."""

from featurestore.training.coverage import TrainingSetWarning
from featurestore.training.historical import get_historical_features
from featurestore.training.rebuilding import get_training_set
from featurestore.training.saving import delete_training_set
from featurestore.training.training_set import TrainingSet

__all__ = [
    "TrainingSet",
    "TrainingSetWarning",
    "delete_training_set",
    "get_historical_features",
    "get_training_set",
]
