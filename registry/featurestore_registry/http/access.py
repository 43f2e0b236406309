"""Who may do what: roles of routes, and of each kind of entries in ledger and journal."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Scope

from featurestore_registry.auth import (
    AuthMiddleware,
    Person,
    Role,
    Session,
    Token,
    TokenVerifier,
    end_sessions,
    sessions,
    tokens,
)
from featurestore_registry.auth.sessions import SESSIONS, begin_session
from featurestore_registry.auth.tokens import EVERY_PROJECT
from featurestore_registry.auth.tokens import KIND as TOKEN
from featurestore_registry.documents import AUDIT, SERVING
from featurestore_registry.errors import AuthError, RegistryError
from featurestore_registry.http.policy import name_of
from featurestore_registry.http.urls import PREFIX, is_private
from featurestore_registry.interface import Registry
from featurestore_registry.records import Clock, Document, system_clock

if TYPE_CHECKING:
    from featurestore_registry.http.oidc import IdentityProvider

logger = logging.getLogger("featurestore.registry")

SESSION_PATH = f"{PREFIX}/session"
OPEN_PATHS = frozenset({"/health", "/ready", "/", "/login", "/login/callback", "/logout", f"{PREFIX}/login"})
OPEN_BELOW = ("/p/", "/static/")
"""Pages of the catalog: they answer those without a token how to log in, and check roles themselves."""
REFRESH_SECONDS = 2.0
"""How long a revoked token may go on at most, and a new one of another process wait."""
SESSION_SECONDS = 12 * 3600.0
"""How long somebody who logged in stays so."""


class Needs(NamedTuple):
    """The least role that reads entries of a kind, and the one that writes them; None: only the server itself does."""

    read: Role
    write: Role | None
    is_server: bool = False
    """Whether it must be a feature server's token, or an admin's, that writes them."""


LEDGER: Mapping[str, Needs] = {
    **dict.fromkeys(
        (
            "watermark",
            "run",
            "run_start",
            "lease",
            "lease_process",
            "commit",
            "repair",
            "unread",
            "blocked",
            "accepted",
            "quarantine",
        ),
        Needs(Role.VIEWER, Role.OPERATOR),
    ),
    **dict.fromkeys(("training_set", "training_set_frame"), Needs(Role.VIEWER, Role.OPERATOR)),
    **dict.fromkeys(("statistics", "edges", "monitor"), Needs(Role.READER, Role.OPERATOR)),  # they show values
    **dict.fromkeys(("generation", "prepared", "consumer"), Needs(Role.VIEWER, Role.EDITOR)),
}
"""By the kind of a ledger's entries. Tokens have routes of their own."""
AUDITED = frozenset({"training_set", "consumer"})
"""Kinds of the ledger's entries that people write and delete by name."""
ACCEPTED = "accepted"
"""A kind of the ledger's entries: that rows which were blocked are committed all the same."""
JOURNAL: Mapping[str, Needs] = {
    **dict.fromkeys(("commit", "publish", "pushed_online"), Needs(Role.VIEWER, Role.OPERATOR)),
    SERVING: Needs(Role.VIEWER, Role.READER, is_server=True),  # readers' tokens are in many hands
    AUDIT: Needs(Role.ADMIN, None),
}
"""By the kind of a journal's entries."""


class Access:
    """Checks tokens and roles, and writes down who changed what."""

    def __init__(
        self,
        registry: Registry,
        *,
        provider: IdentityProvider | None = None,
        public_url: str = "",
        session_seconds: float = SESSION_SECONDS,
        clock: Clock = system_clock,
    ) -> None:
        """``provider`` vouches for people; browsers know the server by ``public_url``."""
        self._registry = registry
        self.provider = provider
        self.public_url = public_url.rstrip("/") if is_private(public_url) else ""
        """Without a path, as in the header Origin; empty where browsers are not served."""
        self.is_tls = self.public_url.startswith("https:")
        self.cookie = self.cookie_named("fs_session")
        self.session_seconds = session_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        """How far the ledger of each project was when its tokens were read."""
        self._by_project: dict[str, tuple[Token, ...]] = {}
        self._tokens: tuple[Token, ...] = ()
        self._threads: list[tuple[threading.Thread, threading.Event]] = []
        self._verifier = TokenVerifier(lambda: self._tokens, clock=clock)

    def guard(self, app: ASGIApp) -> ASGIApp:
        """Return an app that lets only those through who may."""
        return AuthMiddleware(
            app,
            verifier=self,
            open_paths=OPEN_PATHS,
            permit=permit,
            cookie=self.cookie,
            open_below=OPEN_BELOW,
        )

    def cookie_named(self, name: str) -> str:
        """Return the whole name: over TLS one that only this host can have set, for all of its paths (RFC 6265bis)."""
        return f"__Host-{name}" if self.is_tls else name

    def verify(self, presented: bytes) -> Token | None:
        """Return the token of the registry, or the person, that a text stands for."""
        found = self._verifier.verify(presented)
        if found is None and self.provider is not None and presented.count(b".") == 2:
            return self.provider.verify(presented)
        return found

    def log_in(self, person: Person, by: str, address: str) -> tuple[str, Session]:
        """Begin a session and return it with its text; raises AuthError for somebody without any role here."""
        if not person.roles:
            self.audit(person, EVERY_PROJECT, "refuse login", {"with": by}, address)
            raise AuthError(
                f"{person.name} is known, but has no role here: an admin names a group of theirs in `oidc_roles`.",
                status=403,
            )
        text, made = begin_session(
            self._registry.ledger,
            person,
            by=by,
            address=address,
            now_us=self._clock(),
            length_us=int(self.session_seconds * 1_000_000),
        )
        self.audit(person, EVERY_PROJECT, "log in", {"session": made.id, "with": by}, address)
        self.refresh()
        return text, made

    def log_out(self, person: Person, address: str) -> None:
        """End somebody's session."""
        end_sessions(self._registry.ledger, lambda each: each.id == person.session and each.person == person.id)
        self.audit(person, EVERY_PROJECT, "log out", {"session": person.session}, address)
        self.refresh()

    @property
    def has_tokens(self) -> bool:
        """Whether anybody could enter."""
        return bool(self._tokens)

    def start(self) -> None:
        """Read the tokens, and again every `REFRESH_SECONDS`, in the background; while they cannot be read, wait.

        The identity provider has a thread of its own: one that hangs delays neither the start nor a revocation.
        """
        self._try("tokens", self.refresh)
        keys = [] if self.provider is None else [("keys", self.provider.refresh)]
        for name, refresh in (("tokens", self.refresh), *keys):
            stop = threading.Event()
            thread = threading.Thread(
                target=self._run, args=(stop, name, refresh), name=f"featurestore-registry-{name}", daemon=True
            )
            self._threads.append((thread, stop))
            thread.start()

    def stop(self) -> None:
        """End the background threads; one that waits for the identity provider or the database ends after that."""
        for _, stop in self._threads:
            stop.set()
        while self._threads:
            self._threads.pop()[0].join(REFRESH_SECONDS)

    def refresh(self) -> None:
        """Read the tokens of projects in whose ledger something was written."""
        with self._lock:
            # A project before its first apply, too.
            for project in {EVERY_PROJECT, SESSIONS, *self._registry.projects_with(TOKEN)}:
                ledger = self._registry.state(project).ledger
                if self._seen.get(project) != ledger:
                    found = self._logged_in() if project == SESSIONS else tokens(self._registry.ledger, project or None)
                    # Of another project than its own are those of every one, which are read for themselves.
                    self._by_project[project] = tuple(
                        each for each in found if (each.project or EVERY_PROJECT) == project or project == SESSIONS
                    )
                    self._seen[project] = ledger
            current = tuple(token for found in self._by_project.values() for token in found)
            if current != self._tokens:
                self._tokens = current

    def audit(self, token: Token, project: str, action: str, document: Document, client: str) -> None:
        """Write down who did what, and from where; the registry's clock says when."""
        entry = {"action": action, "by": name_of(token), "token": token.id, "from": client, **document}
        self._registry.journal.append(project, AUDIT, [(action, entry)])

    def _logged_in(self) -> list[Person]:
        if self.provider is None:
            return []
        return [each for each in map(self.provider.resume, sessions(self._registry.ledger)) if each is not None]

    def _try(self, name: str, refresh: Callable[[], None]) -> None:
        try:
            refresh()
        except Exception as error:
            why, is_strange = getattr(error, "why", ""), not isinstance(error, RegistryError)
            logger.warning("the %s could not be read again: %s %s", name, error, why, exc_info=is_strange)

    def _run(self, stop: threading.Event, name: str, refresh: Callable[[], None]) -> None:
        while not stop.is_set():
            began_s = time.monotonic()
            self._try(name, refresh)
            if time.monotonic() - began_s > REFRESH_SECONDS:
                logger.warning("reading the %s took longer than %g seconds", name, REFRESH_SECONDS)
            stop.wait(REFRESH_SECONDS)


def permit(scope: Scope, token: Token) -> None:
    """Raise AuthError (403) unless a token is enough for a request: by its route, project and kind of entries."""
    query = QueryParams(scope["query_string"])
    path, method = scope["path"], scope["method"]
    project = _one(query, "project")
    if path == SESSION_PATH:
        return  # only about oneself
    if isinstance(token, Person) and not token.roles:
        raise AuthError("Your groups have no role here: ask an admin for one.", status=403)
    if isinstance(token, Person) and token.nonce is not None:
        raise AuthError("This token is for a login alone: run `fs login`.", status=403)
    if path in ("/", f"{PREFIX}/projects") or path.startswith(OPEN_BELOW):
        return  # of those that the token sees
    if path == f"{PREFIX}/apply":
        token.require(Role.EDITOR, project)
    elif path == f"{PREFIX}/ledger":
        token.require(_role(LEDGER, "ledger", _one(query, "kind"), writes=method != "GET"), project)
    elif path in (f"{PREFIX}/journal", f"{PREFIX}/journal/newest"):
        kind = _one(query, "kind")
        is_cleaning = method == "DELETE" and kind in JOURNAL and kind != AUDIT
        if method == "POST" and kind and kind in JOURNAL and JOURNAL[kind].is_server and not token.is_server:
            _require_admin(token, project, kind)
        token.require(
            Role.OPERATOR if is_cleaning else _role(JOURNAL, "journal", kind, writes=method != "GET"), project
        )
    elif path in (f"{PREFIX}/approve", f"{PREFIX}/policy", f"{PREFIX}/proposals"):
        token.require(
            Role.EDITOR if path.endswith("approve") else Role.VIEWER if method == "GET" else Role.ADMIN, project
        )
    elif path == f"{PREFIX}/tokens" and method == "GET":
        # Servers of one project also take the tokens of every project.
        try:
            token.require(Role.READER if token.is_server else Role.ADMIN, project or token.project)
        except AuthError as error:
            raise AuthError(
                f"{error.message} A feature server has one of `fs token create --role operator --server`.", status=403
            ) from None
    elif path.startswith((f"{PREFIX}/state", f"{PREFIX}/chain", f"{PREFIX}/revisions/", f"{PREFIX}/history")):
        token.require(Role.VIEWER, project)
    else:
        token.require(Role.ADMIN, project)


def _one(query: QueryParams, name: str) -> str | None:
    """Return a parameter; raises AuthError where it is there twice: two parts of a program might read two values."""
    found = query.getlist(name)
    if len(found) > 1:
        raise AuthError(f"The query names {name} {len(found)} times.", status=403)
    return found[0] if found else None


def _require_admin(token: Token, project: str | None, kind: str) -> None:
    try:
        token.require(Role.ADMIN, project)  # there, and not in another project
    except AuthError:
        raise AuthError(
            f"Entries of kind {kind!r} are written by feature servers, with a token of theirs.", status=403
        ) from None


def _role(kinds: Mapping[str, Needs], where: str, kind: str | None, *, writes: bool) -> Role:
    needs = kinds.get(kind or "")
    if needs is None:
        raise AuthError(f"The {where} has no entries of kind {kind!r} for requests.", status=403)
    if not writes:
        return needs.read
    if needs.write is None:
        raise AuthError(f"Entries of kind {kind!r} are written by the server alone.", status=403)
    return needs.write


def shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a token's document without its hash."""
    return {name: "" if name == "hash" else value for name, value in entry.items()}
