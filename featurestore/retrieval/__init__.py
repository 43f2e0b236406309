"""Training sets and online reads."""

from featurestore.retrieval.features import FeaturesArgument
from featurestore.retrieval.online import OnlineResponse, get_online_features

__all__ = ["FeaturesArgument", "OnlineResponse", "get_online_features"]
