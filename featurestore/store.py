"""The FeatureStore facade."""


class FeatureStore:
    """The facade."""
