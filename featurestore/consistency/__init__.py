"""Whether registry, offline store and online store belong together."""
