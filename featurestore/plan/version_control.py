"""The feature repo's git commit: what a revision was applied from, and whether a checkout has it."""

from __future__ import annotations

import subprocess
from pathlib import Path

DIRTY = "-dirty"
"""Behind the commit of a revision that was applied with changes that were not committed, as git describe writes it."""
_DEFINITIONS = ("features.py", "features")


def commit_of(root: Path) -> str:
    """Return the commit that is checked out; an empty text where there is none."""
    code, found = _git(root, "rev-parse", "HEAD")
    if code:
        return ""
    _, changed = _git(root, "status", "--porcelain", "--", *_DEFINITIONS)
    return f"{found}{DIRTY}" if changed else found


def lacks(root: Path, commit: str) -> bool:
    """Tell whether a checkout is under version control and does not have a commit in its history."""
    if not commit or _git(root, "rev-parse", "HEAD")[0]:
        return False
    return _git(root, "merge-base", "--is-ancestor", commit.removesuffix(DIRTY), "HEAD")[0] != 0


def _git(root: Path, *arguments: str) -> tuple[int, str]:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 1, ""
    return done.returncode, done.stdout.strip()
