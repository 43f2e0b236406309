"""The suite that every registry passes; it needs pytest."""

from featurestore_registry.testing.suite import RegistryConformance

__all__ = ["RegistryConformance"]
