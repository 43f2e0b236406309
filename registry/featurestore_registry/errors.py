"""The base of the error tree, and what a registry raises.

FeatureStoreError
└── RegistryError
    ├── RevisionConflictError      another apply came first
    ├── LedgerConflictError        another writer appended to the same key first
    ├── RegistryUnavailableError   the registry cannot be reached or opened
    ├── RegistryFormatError        the registry was written by a newer version, or is damaged
    ├── RecordNotFoundError        no such project or revision
    ├── ApprovalNeededError        a second person has to approve
    └── AuthError                  a token is missing, unknown, expired or not allowed
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

UPGRADE_HINT = (
    "Upgrade the package to the newest version that writes into this registry: "
    "pip install --upgrade . in a newer checkout."
)
"""The hint for data that a newer version wrote."""
_TWO_ENDS = re.compile(r"(?<![.])([.?!])[.]$")
"""The end of a sentence that quotes one with an end of its own."""


class FeatureStoreError(Exception):
    """Base of every error that this product raises on purpose.

    ``message`` says what was wrong, with the offending name and value; ``hint`` says what to do next;
    ``details`` carries the same facts as data for the HTTP API and ``--json``.
    """

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        self.message, self.hint = (_TWO_ENDS.sub(r"\1", text) for text in (message, hint))
        super().__init__(self.message)
        self.details = details

    def __str__(self) -> str:
        gap = "\n" if "\n" in self.message else " "  # below a list, not at the end of its last line
        return f"{self.message}{gap}{self.hint}" if self.hint else self.message


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest of ``known``, or lists them; empty when there are none."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    if not names:
        return ""
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"Known are: {shown}."


class RegistryError(FeatureStoreError):
    """Base of what a registry raises."""


class RevisionConflictError(RegistryError):
    """The project's revision is not the one the changes were planned against."""


class LedgerConflictError(RegistryError):
    """The newest version of a ledger key is not the one the writer expected."""


class RegistryUnavailableError(RegistryError):
    """The registry cannot be reached or opened."""


class RegistryFormatError(RegistryError):
    """The registry was written by a newer version, or what it holds is damaged."""


class RecordNotFoundError(RegistryError):
    """The registry has no such project, revision or ledger entry."""


class ApprovalNeededError(RegistryError):
    """The project's policy wants a second person for these changes; ``plan`` is what that one approves."""


class AuthError(RegistryError):
    """A token is missing, unknown, expired, or its role is not enough. ``status`` is 401 or 403."""

    def __init__(self, message: str, *, status: int = 401, hint: str = "", **details: Any) -> None:
        super().__init__(message, hint=hint, **details)
        self.status = status
