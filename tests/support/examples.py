"""How far the tests look that make up their own examples."""

from __future__ import annotations

import os

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
FURTHER = 20


def examples(count: int) -> int:
    """Return how many examples a test tries for which the profile's number is too many: more where it explores."""
    return count * FURTHER if PROFILE == "explore" else count
