"""Training sets and online reads."""

from featurestore.retrieval.coverage import TrainingSetWarning
from featurestore.retrieval.features import FeaturesArgument
from featurestore.retrieval.historical import get_historical_features
from featurestore.retrieval.online import OnlineResponse, get_online_features
from featurestore.retrieval.saving import delete_training_set, get_training_set
from featurestore.retrieval.training_set import TrainingSet

__all__ = [
    "FeaturesArgument",
    "OnlineResponse",
    "TrainingSet",
    "TrainingSetWarning",
    "delete_training_set",
    "get_historical_features",
    "get_online_features",
    "get_training_set",
]
