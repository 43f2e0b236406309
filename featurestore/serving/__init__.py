"""Online reads."""

from featurestore.serving.read import OnlineResponse, get_online_features

__all__ = ["OnlineResponse", "get_online_features"]
