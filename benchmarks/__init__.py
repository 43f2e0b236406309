"""Benchmarks: our speed beside floors that do the bare minimum with the same libraries."""
