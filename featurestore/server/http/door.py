"""The door of a server: whether requests need a token, and which of the registry's tokens it accepts.

Settings and tokens close it, and it remembers on disk what closed it: neither a restart nor a replaced or restored
registry opens it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from featurestore_registry.auth import Role, Token

from featurestore.errors import SettingsError
from featurestore.project.access import FILE_NAME, TOKENS_SEEN, Access, read_access, remember, reopen

logger = logging.getLogger("featurestore.server")


class Door:
    """Open or closed. It can close by itself at any moment; only `reopen` opens it.

    With ``reopening`` it decides nothing before the call of `reopen`.
    """

    def __init__(self, root: Path, *, is_local: bool = True, reopening: bool = False) -> None:
        self._path = root / FILE_NAME
        self._is_local = is_local
        self._reopening = reopening
        self._known = Access()
        self._held: tuple[Token, ...] = ()
        self._said: set[str] = set()
        self._learn(None, {})

    def is_open(self) -> bool:
        """Return whether requests need no token."""
        return self._is_local and self._known.closed is None

    def close(self, why: str) -> None:
        """Close for good; ``why`` is part of a sentence for messages."""
        self._learn(why, {})

    def take(self, held: tuple[Token, ...], revoked: Mapping[str, int]) -> tuple[Token, ...]:
        """Return those of the registry's tokens that may pass: never one that was seen revoked here.

        Any token closes the door, and so does a revoked one that is new here.
        """
        self._held = held
        self._learn(TOKENS_SEEN if held else None, revoked)
        back = [token for token in held if token.id in self._known.revoked]
        for token in back:
            self._say(
                f"Token {token.id} ({token.name or 'without a name'}) stays refused: this server saw it revoked, but "
                "the registry shows it valid again. Revoke it again (`fs token revoke`), and make another if needed."
            )
        return tuple(token for token in held if token not in back) if back else held

    def reopen(self) -> None:
        """Forget what closed the door, on disk as well.

        Raises SettingsError while the registry holds tokens that are not revoked, or the file cannot be written.
        """
        if self._held:
            ids = ", ".join(token.id for token in self._held[:3]) + (", …" if len(self._held) > 3 else "")
            raise SettingsError(
                f"--open serves without a token, and the registry, or what was saved of it while it is away, holds "
                f"tokens that are not revoked: {ids}.",
                hint="Revoke each with `fs token revoke ID` (`fs token list` shows them all, expired ones too), or "
                "leave --open out.",
                tokens=len(self._held),
            )
        try:
            reopen(self._path, self._known.revoked)
        except OSError as error:
            raise SettingsError(
                f"{self._path} cannot be written: {error.strerror}.",
                hint="Let this user write the folder: --open deletes what is remembered there.",
                path=str(self._path),
            ) from None
        self._known = Access(None, self._known.revoked)
        self._reopening = False

    def notice(self, passing: tuple[Token, ...], *, now_us: int) -> str:
        """Return a warning for the start if no request can pass, otherwise an empty text."""
        ends = [token.expires_at_us for token in passing if token.role >= Role.READER]
        if self._known.closed is None or any(end is None or end > now_us for end in ends):
            return ""
        return (
            f"Every request is answered 401: this server is closed, because {self._known.closed}, and there is no "
            "token that may read. Make one (`fs token create --role reader`), set FS_SERVER_TOKEN, or, with "
            "server.auth at `auto`, open it to all who reach it: `fs serve --open`."
        )

    def _learn(self, why: str | None, revoked: Mapping[str, int]) -> None:
        kept, before = read_access(self._path), self._known
        known = before.and_also(kept)
        news = known.and_also(Access(None, revoked))
        if self._reopening:
            self._known = Access(None, news.revoked)
            return
        if why is None and news.revoked.keys() - known.revoked.keys():
            why = TOKENS_SEEN
        if kept.closed is not None and not kept.is_whole:
            self._say(
                f"{kept.closed}: this server is closed, and tokens that were seen revoked are refused only where the "
                "registry says so."
            )
        self._known = Access(known.closed or why, news.revoked)
        # An intact file that says open was written by `fs serve --open`: what this process saw before must not undo it.
        self._write(kept, Access(why, news.revoked) if kept.is_whole else self._known)

    def _write(self, kept: Access, news: Access) -> None:
        wanted = kept.and_also(news)
        if wanted == kept and (kept.is_whole or kept == Access()):
            return
        try:
            remember(self._path, news)
        except OSError as error:
            self._say(
                f"{self._path} cannot be written ({error.strerror}): after a restart this server knows only the "
                "registry's tokens. Let this user write the folder."
            )

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s", what)
