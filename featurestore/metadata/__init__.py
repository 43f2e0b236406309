"""What the registry knows, as objects of the feature store."""
