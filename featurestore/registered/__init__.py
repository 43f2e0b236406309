"""The definitions that a registry holds, as objects of the feature store."""
