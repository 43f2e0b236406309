"""A catalog as `fs catalog` serves it, in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from featurestore_registry.catalog.app import Catalog
from featurestore_registry.interface import RegistryReader

from featurestore.server.run import bind, url_of

from .serving import until


@contextmanager
def serving_catalog(registry: RegistryReader) -> Iterator[str]:
    """Serve a catalog as `fs catalog` does, and give its URL."""
    with bind("127.0.0.1", 0) as listening:
        url = url_of(listening)
        server = uvicorn.Server(
            uvicorn.Config(Catalog(registry, is_local=True, hosts=[url.removeprefix("http://")]), log_config=None)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until(lambda: server.started)
            yield url
        finally:
            server.should_exit = True
            thread.join()
