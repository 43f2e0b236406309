"""How far the tests look that make up their own examples."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
FURTHER = 20


def examples(count: int) -> int:
    """Return how many examples a test tries for which the profile's number is too many: more where it explores."""
    return count * FURTHER if PROFILE == "explore" else count


def at_most(count: int) -> Any:
    """Let a property try fewer examples than the profile's where so many find what is wrong; exploring tries all."""
    return settings() if PROFILE == "explore" else settings(max_examples=count)
