"""A real server of a registry, on a free loopback port."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from featurestore_registry.http.access import Access
from featurestore_registry.http.oidc import IdentityProvider
from featurestore_registry.http.policy import Judge
from featurestore_registry.http.server import create_app
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, Revision

from featurestore.server.run import bind, url_of
from support.serving import until


def all_compatible(before: Revision, changes: Sequence[Change], *, with_classes: bool) -> dict[str, str]:
    return {f"{change.kind}:{change.name}": "compatible" for change in changes}


@contextmanager
def serving_registry(
    registry: Registry, judge: Judge | None = None, provider: IdentityProvider | None = None, **more: Any
) -> Iterator[str]:
    """Serve a registry in a thread of this process, and give its URL. Without a judge its records may be anything."""
    with bind("127.0.0.1", 0) as listening:
        url = url_of(listening)
        access = Access(registry, provider=provider, **{"public_url": url, **more})
        app = create_app(registry, access, judge=judge or all_compatible)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until(lambda: server.started)
            yield url
        finally:
            server.should_exit = True
            thread.join()


def asking(url: str, token: str) -> httpx.Client:
    """Return a client that asks by hand."""
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"})
