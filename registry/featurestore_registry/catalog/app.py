"""The catalog as an ASGI app: addresses to pages, mistakes to pages that say what to do, and headers that bind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qs, quote, unquote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from featurestore_registry.auth import Token
from featurestore_registry.catalog.addresses import address, project_address
from featurestore_registry.catalog.asking import Ask, NotThere
from featurestore_registry.catalog.frame import HEADERS, Page, message, render, static_files
from featurestore_registry.catalog.pages.projects import projects
from featurestore_registry.catalog.routes import find, page_of
from featurestore_registry.catalog.site import Site
from featurestore_registry.catalog.visitor import Visitor
from featurestore_registry.errors import AuthError, RegistryError
from featurestore_registry.interface import RegistryReader
from featurestore_registry.records import is_storable

logger = logging.getLogger("featurestore.registry")

_FOREVER = "public, max-age=31536000, immutable"
_MOST_PATH = 4_000
MOST_FIELDS = 50
"""A query with more fields is read as empty."""
_NOBODY: Mapping[str, object] = {"visitor": Visitor(), "nav": None, "here": ()}


class Catalog:
    """Answers GET and HEAD of ``/``, ``/static/…`` and ``/p/…``.

    Behind a gate the token of a request is in ``scope["state"]["token"]``, None where nobody is known: then pages say
    how to log in, by browser if ``logs_in`` tells so. With ``is_local`` no token is asked for: whoever reaches this
    port may read what the registry lets the process read. Only those programs reach it that name the host as one of
    ``hosts``: another site's page, whose name leads to this machine for a moment, does not (DNS rebinding).
    """

    def __init__(
        self,
        registry: RegistryReader,
        *,
        is_local: bool = False,
        hosts: Sequence[str] = (),
        logs_in: Callable[[], bool] = lambda: False,
    ) -> None:
        self._site = Site(registry)
        self._is_local = is_local
        self._hosts = frozenset(hosts)
        self._logs_in = logs_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            response = await run_in_threadpool(self._response, scope)
            response.headers.update(_as_typed(scope))
            await response(scope, receive, send)

    def _response(self, scope: Scope) -> Response:
        if self._is_local and self._host(scope) not in self._hosts:
            return Response("This server answers under its own address alone.", 421, HEADERS, "text/plain")
        if scope["method"] not in ("GET", "HEAD"):
            return Response("The catalog is only read.", 405, {**HEADERS, "allow": "GET, HEAD"}, "text/plain")
        path = _path(scope)
        segments = tuple(unquote(part, errors="replace") for part in path.strip("/").split("/") if part)
        if len(path) > _MOST_PATH:
            segments = ("",)
        if segments[:1] == ("static",):
            return _static(segments)
        token = scope.get("state", {}).get("token")
        try:
            query: bytes = scope["query_string"]
            here = f"{path}{'?' if query else ''}{query.decode('ascii', 'replace')}"
            return self._answer(segments, query, token if isinstance(token, Token) else None, here)
        except Exception:
            logger.exception("the catalog's page %s could not be made", path)
            told = "This page could not be made. The server's log tells more."
            return said("Something went wrong", told, link=("/", "All projects"), status=500)

    def _host(self, scope: Scope) -> str:
        found = [value for name, value in scope["headers"] if name == b"host"]
        return found[0].decode("latin-1").lower() if len(found) == 1 else ""

    def _answer(self, segments: tuple[str, ...], query: bytes, token: Token | None, here: str) -> Response:
        visitor = Visitor(token)
        more = {**_NOBODY, "visitor": visitor, "here": segments}
        if token is None and not self._is_local:
            return _html(self._who_are_you(here), more)
        try:
            page = self._page(segments, query, visitor, more)
        except NotThere as error:
            page = message(str(error), error.hint, link=error.link, status=404)
        except AuthError as error:
            page = message("This page is not for you", error.message, error.hint, status=error.status)
        except RegistryError as error:
            logger.warning("the catalog cannot read the registry: %s", error)
            told = (error.message, error.hint) if self._is_local else ("The log of the registry's server tells more.",)
            page = message("The registry cannot be read", *told, status=503)
        if isinstance(page, Response):
            return page
        return _html(page, more)

    def _page(
        self, segments: tuple[str, ...], query: bytes, visitor: Visitor, more: dict[str, object]
    ) -> Page | Response:
        if not segments:
            seen = [name for name in self._site.registry.definitions.projects() if visitor.sees(name)]
            if len(seen) == 1:
                return RedirectResponse(project_address(seen[0]), 303, HEADERS)
            return projects(self._site, seen)
        found = None
        if segments[0] == "p" and len(segments) > 1 and is_storable(segments[1]) and visitor.sees(segments[1]):
            found = self._site.project(segments[1])
        if found is None:
            if segments[0] != "p":
                raise NotThere("page", address(*segments), link=("/", "All projects"))
            known = [name for name in self._site.registry.definitions.projects() if visitor.sees(name)]
            first = "Nothing was applied yet. In a feature repo, run `fs apply`, and load this page again."
            link = ("/", "All projects")
            raise NotThere("project", segments[1] if len(segments) > 1 else "", known, link, "" if known else first)
        ask = Ask(self._site, visitor, *found, segments[2:], _query(query))
        more["nav"] = ask
        route = find(segments[2:])
        if route is None:
            raise NotThere("page", address(*segments), link=(ask.at(), ask.project.name))
        return page_of(ask, *route)

    def _who_are_you(self, here: str) -> Page:
        if self._logs_in():
            return message(
                "Log in to see the catalog",
                "Nobody is logged in. This registry shows its catalog to people who are.",
                link=(address("login", next=here), "Log in"),
                status=200 if here == "/" else 401,
            )
        return message(
            "The catalog is closed",
            "Nobody is logged in, and this registry has no login for browsers: an admin sets "
            "registry_server.oidc_issuer and public_url for it.",
            "With a token of the registry, run `fs catalog` in a feature repo: it shows the same pages on your "
            "machine.",
            status=200 if here == "/" else 401,
        )


def _as_typed(scope: Scope) -> dict[str, str]:
    """Return what tells htmx the address of what it asked for: one step of the browser's history for each search."""
    sent = {name: value.decode("latin-1") for name, value in scope["headers"] if name.startswith(b"hx-")}
    if b"hx-request" not in sent:
        return {}
    path, query = _path(scope), scope["query_string"].decode("ascii", "ignore")
    try:
        is_same = urlsplit(sent.get(b"hx-current-url", "")).path == path
    except ValueError:  # no address
        is_same = False
    return {"hx-replace-url" if is_same else "hx-push-url": f"{path}?{query}"}


def _path(scope: Scope) -> str:
    """Return the path as it was asked for, with its escapes: a name may hold a slash, and no header a line's end."""
    return str((scope.get("raw_path") or quote(scope["path"]).encode()).decode("ascii", "ignore").partition("?")[0])


def _query(text: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(text.decode("ascii", "replace"), max_num_fields=MOST_FIELDS)
    except ValueError:  # too many of them
        return {}


def said(title: str, *paragraphs: str, link: tuple[str, str] | None = None, status: int = 200) -> Response:
    """Return a page that only says something, to whomever."""
    return _html(message(title, *paragraphs, link=link, status=status), _NOBODY)


def _html(page: Page, more: Mapping[str, object]) -> Response:
    headers = {**HEADERS, **({"www-authenticate": "Bearer"} if page.status == 401 else {})}
    return Response(render(page, **more), page.status, headers, "text/html")


def _static(segments: tuple[str, ...]) -> Response:
    file = static_files().get(segments[1]) if len(segments) == 2 else None
    if file is None:
        return Response("There is no such file.", 404, HEADERS, "text/plain")
    return Response(file.content, 200, {**HEADERS, "cache-control": _FOREVER}, file.media_type)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
