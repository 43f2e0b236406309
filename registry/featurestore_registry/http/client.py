"""A registry behind HTTP, as a registry: one pool of connections, and a second try that never does a thing twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import httpx
from typing_extensions import override

from featurestore_registry.auth.sessions import KIND as SESSION
from featurestore_registry.auth.tokens import KIND as TOKEN
from featurestore_registry.auth.tokens import is_bearer
from featurestore_registry.errors import (
    AuthError,
    FeatureStoreError,
    LedgerConflictError,
    RecordNotFoundError,
    RegistryFormatError,
    RegistryUnavailableError,
    RevisionConflictError,
)
from featurestore_registry.forks import ForkLock
from featurestore_registry.http import wire
from featurestore_registry.http.urls import PREFIX, is_private, tls_of
from featurestore_registry.interface import Definitions, Governance, Journal, Ledger, Registry
from featurestore_registry.records import (
    Chain,
    Change,
    Document,
    JournalEntry,
    LedgerEntry,
    Revision,
    RevisionInfo,
    State,
    canonical_json,
    check_changes,
    check_storable,
    record_from,
)

TOKEN_VARIABLE = "FS_REGISTRY_TOKEN"  # noqa: S105 - its name, not its value
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 30.0
NOT_UNDERSTOOD = "nobody could read back what this apply writes"
"""So begins what a server answers that does not understand a document."""
KEPT_REVISIONS = 8
"""How many revisions are kept in memory: they never change."""

Query = Mapping[str, str | int | None]


class Connection:
    """Requests to one server; each process has connections of its own."""

    def __init__(self, url: str, token: str | None) -> None:
        parsed = httpx.URL(url)
        self.name = str(parsed.copy_with(userinfo=None, query=None, fragment=None)).rstrip("/")
        """The server in messages, without credentials."""
        self._headers = {"accept": "application/json"} | ({} if token is None else {"authorization": f"Bearer {token}"})
        self._lock = ForkLock()
        self._client: httpx.Client | None = None
        self._pid = 0

    def get(self, path: str, query: Query, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Return an answer; asks again where a connection was cut, which for a read does no harm."""
        try:
            return self._ask("GET", path, query, headers=headers)
        except RegistryUnavailableError as error:
            if not error.details.get("was_cut"):
                raise
            return self._ask("GET", path, query, headers=headers)

    def send(self, method: str, path: str, query: Query, body: Any = None) -> Any:
        """Return what a request that changes something is answered; it is sent once.

        A RegistryUnavailableError whose detail ``was_cut`` is true leaves open whether it was done.
        """
        text = None if body is None else canonical_json(body).encode()
        return self._ask(method, path, query, text).json()

    def _ask(
        self,
        method: str,
        path: str,
        query: Query,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        parameters = {name: str(value) for name, value in query.items() if value is not None}
        more = {**(headers or {}), **({} if body is None else {"content-type": "application/json"})}
        try:
            answer = self._opened().request(method, f"{PREFIX}{path}", params=parameters, content=body, headers=more)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            raise self._unavailable(str(error) or type(error).__name__, was_cut=False) from error
        except httpx.TransportError as error:
            raise self._unavailable(str(error) or type(error).__name__, was_cut=True) from error
        if answer.is_success or answer.status_code == 304:
            return answer
        raise self._error(answer)

    def _error(self, answer: httpx.Response) -> FeatureStoreError | ValueError:
        try:
            document = answer.json()
        except ValueError:
            document = None
        found = wire.error_from(document)
        if found is None and answer.status_code in (401, 403):
            told = document.get("error", {}) if isinstance(document, dict) else {}
            said = str(told.get("message", ""))
            return AuthError(
                f"The registry {self.name} refuses the request: {said}".rstrip(": "),
                status=answer.status_code,
                hint=str(told.get("hint") or _what_to_do(answer.status_code, said)),
            )
        if found is not None:
            return found
        why = f"it answers {answer.status_code} {answer.reason_phrase}"
        if isinstance(document, dict) and isinstance(document.get("error"), dict):
            why = f"{why}: {document['error'].get('message')}"
        return self._unavailable(why, was_cut=answer.status_code >= 500, status=answer.status_code)

    def _unavailable(self, why: str, *, was_cut: bool, status: int = 0) -> RegistryUnavailableError:
        return RegistryUnavailableError(
            f"The registry {self.name} cannot be used: {why}.",
            hint="Check that it runs and that `registry` names it.",
            was_cut=was_cut,
            status=status,
        )

    def _opened(self) -> httpx.Client:
        with self._lock:
            if self._client is None or self._pid != os.getpid():
                timeouts = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
                self._client = httpx.Client(
                    base_url=self.name, headers=self._headers, timeout=timeouts, verify=tls_of(self.name)
                )
                self._pid = os.getpid()
            return self._client

    def close(self) -> None:
        """Release connections; calling it twice is allowed."""
        with self._lock:
            if self._client is not None and self._pid == os.getpid():
                self._client.close()
            self._client = None


def _what_to_do(status: int, said: str) -> str:
    if "has no entries of kind" in said:
        return "Its server may be of an earlier version than this program: upgrade it first."
    if status == 403:
        return "Use a token, or a login, with the role that this needs in this project: an admin of it gives roles."
    if os.environ.get(TOKEN_VARIABLE):
        return (
            f"What {TOKEN_VARIABLE} holds is unknown, revoked or expired, and wins over `fs login`: put another token "
            "into it, or unset it."
        )
    return f"Run `fs login`, or set {TOKEN_VARIABLE} to a token."


class HttpDefinitions(Definitions):
    """See `Definitions`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._chains: dict[str, Chain] = {}
        self._revisions: dict[tuple[str, str], str] = {}
        """Bodies by project and hash; read anew each time, so that no caller changes what the next one gets."""

    @override
    def head(self, project: str) -> int:
        return self.chain(project).number

    @override
    def chain(self, project: str) -> Chain:
        check_storable(project)
        known = self._chains.get(project, Chain())
        query: Query = {"project": project, "after": known.number, "at": known.head}
        found = self._connection.get("/chain", query).json()
        chain = self._chains[project] = Chain((*known.hashes[: found["after"]], *found["hashes"]))
        return chain

    @override
    def projects(self) -> list[str]:
        return [str(name) for name in self._connection.get("/projects", {}).json()]

    @override
    def read(self, project: str, revision: int | None = None) -> Revision:
        chain = self.chain(project)
        number = chain.number if revision is None else revision
        if not 0 <= number <= chain.number:
            raise RecordNotFoundError(
                f"Project {project!r} has no revision {number}; its newest is {chain.number}.",
                hint="See `fs log` for the revisions there are.",
                project=project,
                revision=number,
                head=chain.number,
            )
        if number == 0:
            return Revision(project, 0, ())
        part = Chain(chain.hashes[:number])
        body = self._revisions.get((project, part.head))
        if body is None:
            body = self._connection.get(f"/revisions/{part.head}", {"project": project}).text
            while len(self._revisions) >= KEPT_REVISIONS:
                self._revisions.pop(next(iter(self._revisions)), None)
            self._revisions[project, part.head] = body
        return Revision(project, number, tuple(record_from(each) for each in json.loads(body)["records"]), part)

    @override
    def history(self, project: str, *, limit: int = 50) -> list[RevisionInfo]:
        check_storable(project)
        _check_limit(limit)
        most = min(limit, wire.MOST_ENTRIES)
        found = self._connection.get("/history", {"project": project, "limit": most}).json()
        return [wire.made_from(RevisionInfo, each) for each in found]

    @override
    def apply(
        self,
        project: str,
        expected: str,
        changes: Sequence[Change],
        *,
        author: str,
        message: str,
        commit: str,
    ) -> Chain:
        check_storable(project, author, message, commit)
        check_changes(project, changes)
        told = {"expected": expected, "author": author, "message": message, "commit": commit}
        body = {**told, "changes": [wire.plain(change) for change in changes]}
        try:
            made = self._connection.send("POST", "/apply", {"project": project}, body)
        except RegistryUnavailableError as error:
            if not error.details.get("was_cut"):
                raise
            done = self._applied(project, expected, changes, message, commit)
            if done is None:
                raise
            return done
        except ValueError as error:
            if not str(error).startswith(NOT_UNDERSTOOD):
                raise
            raise self._of_earlier_version(str(error)) from error
        chain = self._chains[project] = Chain(tuple(made["hashes"]))
        return chain

    def _of_earlier_version(self, said: str) -> RegistryFormatError:
        """Return the error for a server that cannot read back what this program could."""
        name, why = self._connection.name, said.removeprefix(NOT_UNDERSTOOD).lstrip(": ")
        return RegistryFormatError(
            f"The server of the registry {name} does not know a part of these definitions: {why}. Nothing was applied.",
            hint="It is of an earlier version than this program: upgrade it first, or leave that part out.",
        )

    def _applied(
        self, project: str, expected: str, changes: Sequence[Change], message: str, commit: str
    ) -> Chain | None:
        """Return the chain up to what was sent before the connection was cut; None where nothing was applied."""
        chain = self.chain(project)
        if chain.head == expected:
            return None
        place = chain.hashes.index(expected) + 1 if expected else 0
        mine = (tuple(changes), message, commit)
        for info in self.history(project, limit=chain.number - place):
            if info.number == place + 1 and (info.changes, info.message, info.commit) == mine:
                return Chain(chain.hashes[: info.number])
        raise RevisionConflictError(
            f"The connection to {self._connection.name} was cut, and another apply came first.",
            hint="Plan again and apply what it shows.",
            project=project,
            head=chain.number,
            expected=expected,
        )


class HttpLedger(Ledger):
    """See `Ledger`. Tokens and sessions have routes of their own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @override
    def append(self, project: str, kind: str, key: str, document: Document, *, if_version: int | None = None) -> int:
        check_storable(project, kind, key, canonical_json(document))
        body = {"key": key, "document": document, "if_version": if_version}
        try:
            return int(self._connection.send("POST", *_ledger(project, kind), body)["version"])
        except RegistryUnavailableError as error:
            if not error.details.get("was_cut"):
                raise
            lost = error
        entries = self.scan(project, kind, key=key, limit=50)
        # Without an expected version only the newest entry counts: an older one may say the same and be overruled.
        for entry in entries[:1] if if_version is None else entries:
            if (if_version is None or entry.version == if_version + 1) and dict(entry.document) == dict(document):
                return entry.version
        if if_version is not None and (entries[0].version if entries else 0) != if_version:
            raise LedgerConflictError(
                f"The connection to {self._connection.name} was cut, and another writer came first.",
                hint="Read its newest entry and try again.",
                project=project,
                kind=kind,
                key=key,
                newest=entries[0].version if entries else 0,
                expected=if_version,
            ) from lost
        raise lost

    @override
    def scan(self, project: str, kind: str, *, key: str | None = None, limit: int | None = None) -> list[LedgerEntry]:
        check_storable(project, kind, key or "")
        _check_limit(limit)
        path, query = _ledger(project, kind)
        most = None if limit is None else min(limit, wire.MOST_ENTRIES)
        found = self._connection.get(path, {**query, "key": key, "limit": most}).json()
        return [wire.made_from(LedgerEntry, entry, project=project, kind=kind) for entry in found]


class HttpJournal(Journal):
    """See `Journal`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @override
    def append(self, project: str, kind: str, entries: Sequence[tuple[str, Document]]) -> list[int]:
        check_storable(project, kind, *(text for key, of in entries for text in (key, canonical_json(of))))
        if not entries:
            return []
        query = {"project": project, "kind": kind}
        body = [{"key": key, "document": document} for key, document in entries]
        try:
            return [int(cursor) for cursor in self._connection.send("POST", "/journal", query, body)["cursors"]]
        except RegistryUnavailableError as error:
            if not error.details.get("was_cut"):
                raise
            newest = self.newest(project, kind, limit=len(entries))[::-1]
            if [(entry.key, dict(entry.document)) for entry in newest] != [(key, dict(of)) for key, of in entries]:
                raise
            return [entry.cursor for entry in newest]

    @override
    def scan(
        self,
        project: str,
        kind: str,
        *,
        key: str | None = None,
        after: int = 0,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 1_000,
    ) -> list[JournalEntry]:
        span = {"since": _instant(since), "until": _instant(until)}
        return self._found("/journal", project, kind, {"key": key, "after": after, **span}, limit)

    @override
    def newest(self, project: str, kind: str, *, key: str | None = None, limit: int = 50) -> list[JournalEntry]:
        return self._found("/journal/newest", project, kind, {"key": key}, limit)

    @override
    def forget(self, project: str, kind: str, before: datetime) -> int:
        check_storable(project, kind)
        query = {"project": project, "kind": kind, "before": _instant(before)}
        return int(self._connection.send("DELETE", "/journal", query)["count"])

    def _found(self, path: str, project: str, kind: str, query: Query, limit: int) -> list[JournalEntry]:
        check_storable(project, kind, str(query["key"] or ""))
        _check_limit(limit)
        asked = {"project": project, "kind": kind, **query, "limit": min(limit, wire.MOST_ENTRIES)}
        found = self._connection.get(path, asked).json()
        return [wire.made_from(JournalEntry, entry, project=project, kind=kind) for entry in found]


class HttpGovernance(Governance):
    """See `Governance`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @override
    def policy(self, project: str) -> Document:
        found: Document = self._connection.get("/policy", {"project": project}).json()
        return found

    @override
    def set_policy(self, project: str, document: Document) -> None:
        self._connection.send("PUT", "/policy", {"project": project}, document)

    @override
    def proposals(self, project: str) -> list[Document]:
        found: list[Document] = self._connection.get("/proposals", {"project": project}).json()
        return [{**each, "writes": [wire.change_from(change) for change in each.get("writes", ())]} for each in found]

    @override
    def approve(self, project: str, plan: str) -> Document:
        found: Document = self._connection.send("POST", "/approve", {"project": project}, {"plan": plan})
        return found


class HttpRegistry(Registry):
    """A registry whose server is at a URL. Threads share it; a forked child opens connections of its own."""

    def __init__(self, url: str, *, token: str | None) -> None:
        self._connection = Connection(url, token)
        self.definitions = HttpDefinitions(self._connection)
        self.ledger = HttpLedger(self._connection)
        self.journal = HttpJournal(self._connection)
        self.governance = HttpGovernance(self._connection)
        self._states: dict[str, tuple[str, State]] = {}
        """By project the newest state, and its ETag."""

    @override
    def state(self, project: str) -> State:
        check_storable(project)
        tag, known = self._states.get(project, ("", None))
        answer = self._connection.get("/state", {"project": project}, {"if-none-match": tag} if tag else None)
        if answer.status_code == 304 and known is not None:
            return State(known.head, known.number, known.ledger, datetime.fromisoformat(answer.headers["x-now"]))
        state = wire.made_from(State, answer.json())
        self._states[project] = answer.headers["etag"], state
        return state

    def login_offer(self) -> Document | None:
        """Return the provider's ``issuer``, and ``client_id`` and ``scopes``; None where people paste tokens."""
        try:
            found: Document = self._connection.get("/login", {}).json()
        except (RecordNotFoundError, AuthError):  # a server of an earlier version wants a token for every route
            return None
        except RegistryUnavailableError as error:
            if error.details.get("status") == 404:  # and with one it has no such route
                return None
            raise
        return found

    def begin_session(self, verifier: str) -> Document:
        """Begin a session for whom the identity provider's token vouches, and return its ``token``, ``name``, …"""
        found: Document = self._connection.send("POST", "/session", {}, {"nonce_verifier": verifier})
        return found

    def end_session(self) -> None:
        """End the session whose text is the token of this client."""
        self._connection.send("DELETE", "/session", {})

    @override
    def close(self) -> None:
        self._connection.close()


def _ledger(project: str, kind: str) -> tuple[str, dict[str, str | int | None]]:
    if kind in (TOKEN, SESSION):
        return f"/{kind}s", {"project": project}
    return "/ledger", {"project": project, "kind": kind}


def _instant(at: datetime | None) -> str | None:
    if at is not None and at.tzinfo is None:
        raise ValueError(f"{at} has no time zone")
    return None if at is None else at.isoformat()


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be 0 or more, not {limit}")


def open_registry(url: str, *, token: str | None, plain: frozenset[str] = frozenset()) -> HttpRegistry:
    """Return the registry at ``https://HOST[:PORT][/PATH]``; nothing is asked yet.

    Raises RegistryUnavailableError for a URL with anything else in it, above all a token, which logs would show, and
    for one without TLS that leads away from this machine, to a host that ``plain`` does not name.
    """
    try:
        parsed = httpx.URL(url)
        is_right = bool(parsed.host) and not (parsed.userinfo or parsed.query or parsed.fragment)
    except (httpx.InvalidURL, ValueError):
        is_right = False
    if not is_right:
        raise RegistryUnavailableError(  # the URL may hold a token
            "The registry's URL holds more than a host, a port and a path, or less.",
            hint="Write https://registry.example, and put the token into FS_REGISTRY_TOKEN.",
        )
    if not is_private(url) and parsed.host not in plain:
        raise RegistryUnavailableError(
            f"The registry at {parsed.host} is not behind TLS: everyone on the way could read the token.",
            hint=f"Write https://{parsed.host}; http is for this machine, and for hosts in FS_REGISTRY_PLAIN_HTTP.",
        )
    if token is not None and not is_bearer(token):
        raise AuthError(  # the driver's own error would show it
            f"The token for the registry at {parsed.host} is none: it holds more than letters, digits and -._~+/.",
            status=401,
            hint="Give what `fs token create` showed in FS_REGISTRY_TOKEN (FS_REGISTRY_TOKEN_FROM), or at the prompt.",
        )
    return HttpRegistry(url, token=token)
