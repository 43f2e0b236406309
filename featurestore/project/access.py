"""What a feature repo's servers remember about tokens: that they are closed, and which tokens they saw revoked.

The registry cannot be trusted to remember: restored, replaced or emptied, it forgets both. The file holds no secret,
and its knowledge only grows, except by `reopen`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurestore.project.private_file import checksum, make_folder, matches, replace_file

FORMAT_VERSION = 1
FILE_NAME = Path(".featurestore", "access.json")
"""The path of the file in a feature repo."""

MOST_REVOKED = 10_000
"""At most so many revoked tokens are remembered, the latest ones: about 400 kB. The registry refuses older ones,
unless it is restored to a state of more than 10,000 revocations ago."""

TOKENS_SEEN = "the registry held tokens"
TOKEN_SET = "a server of this feature repo was started with FS_SERVER_TOKEN"  # noqa: S105 - a sentence, no token
AUTH_REQUIRED = "the setting server.auth was `required`"


@dataclass(frozen=True, slots=True)
class Access:
    """What the file remembers."""

    closed: str | None = None
    """Why requests need a token, as part of a sentence; None where nothing requires one."""
    revoked: Mapping[str, int] = field(default_factory=dict)
    """When each revoked token was seen revoked, in UTC microseconds, by its id."""
    is_whole: bool = False
    """Whether this was read from an intact file; False if there is none."""

    def and_also(self, other: Access) -> Access:
        """Return what both know together, with the newest `MOST_REVOKED` revoked tokens."""
        revoked = {**other.revoked, **self.revoked}
        if len(revoked) > MOST_REVOKED:
            newest = sorted(revoked, key=lambda token_id: (revoked[token_id], token_id))[-MOST_REVOKED:]
            revoked = {token_id: revoked[token_id] for token_id in newest}
        return Access(self.closed or other.closed, revoked, self.is_whole)


def read_access(path: Path) -> Access:
    """Return what is remembered. Never raises: a file that is damaged or cannot be read means closed."""
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Access()
    except OSError as error:
        return Access(f"{path} could not be read ({error.strerror})")
    try:
        document = json.loads(text)
        content = document["access"]
        if document["format"] == FORMAT_VERSION and matches(content, document["checksum"]):
            return Access(content["closed"], content["revoked"], is_whole=True)
    except (ValueError, RecursionError, TypeError, KeyError):
        pass
    return Access(f"{path} was damaged")


def remember(path: Path, news: Access) -> None:
    """Add to the file; other processes may add at the same time. Raises OSError; the old file then stays."""
    with _locked(path):
        kept = read_access(path)
        known = kept.and_also(news)
        if known != kept or not kept.is_whole:
            _write(path, known)


def reopen(path: Path, revoked: Mapping[str, int]) -> None:
    """Forget that servers are closed; remember that these tokens are known, and revoked. Raises OSError."""
    with _locked(path):
        known = read_access(path).and_also(Access(None, revoked))
        _write(path, Access(None, known.revoked))


def _write(path: Path, known: Access) -> None:
    content: dict[str, Any] = {"closed": known.closed, "revoked": dict(known.revoked)}
    replace_file(path, {"format": FORMAT_VERSION, "checksum": checksum(content), "access": content})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time read and replace the file. The lock is a file next to it that stays."""
    make_folder(path.parent)
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
