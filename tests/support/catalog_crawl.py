"""What a browser would find in the catalog: its pages, followed by their links."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser

import httpx
from featurestore_registry.auth import Role, create_token
from featurestore_registry.interface import Registry

from support.registry_server import serving_registry


class Parsed(HTMLParser):
    """What a browser would find in a page: tags, attributes, texts."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def links(self) -> set[str]:
        return {str(given["href"]) for tag, given in self.tags if tag == "a"}


class Served:
    """A registry's server, and clients with a token of each kind."""

    def __init__(self, url: str, tokens: dict[tuple[Role, str | None], str]) -> None:
        self.url, self.tokens = url, tokens

    def ask(self, role: Role, project: str | None, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"authorization": f"Bearer {self.tokens[role, project]}"})


def crawl(client: httpx.Client, start: str) -> dict[str, httpx.Response]:
    """Return every page that can be reached from one by links, each address once."""
    found: dict[str, httpx.Response] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = client.get(path)
        if found[path].headers["content-type"].startswith("text/html"):
            links = {link.partition("#")[0] for link in Parsed(found[path].text).links()}
            # A lineage of more steps, or with columns, is another page for each number of steps.
            waiting += [link for link in links if link.startswith("/p/") and not re.search(r"/lineage\?.*&", link)]
    return found


@contextmanager
def serving_all_roles(registry: Registry, projects: Sequence[str]) -> Iterator[Served]:
    """Serve a registry to tokens of each role: of each project, and of all."""
    tokens = {
        (role, project): create_token(registry.ledger, project, role, expires_at_us=None, now_us=0)[0]
        for role in Role
        for project in (None, *projects)
    }
    with serving_registry(registry) as url:
        yield Served(url, tokens)
