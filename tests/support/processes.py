"""Environments for commands that tests run."""

from __future__ import annotations

import os


def plain_environment() -> dict[str, str]:
    """Return the environment without settings of ours, and without what makes a process count its coverage.

    For whole walks through the product, whose lines other tests count too: counting takes as long again.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(("FS_", "COVERAGE_"))}
