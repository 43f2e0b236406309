"""A server's word to the registry: which revision it serves, and which on-demand code it has."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from featurestore_registry.interface import Registry

import featurestore
from featurestore.definitions import OnDemandFeatureView
from featurestore.errors import AuthError, FeatureStoreError
from featurestore.ledger.serving import TOLD_EVERY_US, Server, tell
from featurestore.registered.snapshot import Snapshot
from featurestore.server.watch.metrics import DIRECTORY_VARIABLE
from featurestore.workspace import Readers

logger = logging.getLogger("featurestore.server")

RETRY_US = 60_000_000
"""How long to wait after a failure."""
FAREWELL_SECONDS = 2.0
"""A stop waits at most this long for the registry."""


class ServingReport:
    """Tells the registry after a start, with each new revision, and every five minutes, and that the server stops.

    In a thread of its own: a write may wait for half a minute, which neither requests nor new definitions do.
    """

    def __init__(self, workspace: Readers) -> None:
        self._workspace = workspace
        # The workers of one server share a folder for their metrics, and nothing else.
        group = Path(os.environ.get(DIRECTORY_VARIABLE, "")).name.rpartition("-")[2] or secrets.token_hex(4)
        self._host = socket.gethostname()
        self._instance = f"{self._host}-{group}"
        self._told: tuple[Snapshot, int] | None = None
        self._retry_us = 0
        self._has_warned = False
        self._asked: SimpleQueue[tuple[Registry, Snapshot] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, registry: Registry, snapshot: Snapshot) -> None:
        """Let the thread look, and start it if there is none."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="featurestore-report", daemon=True)
            self._thread.start()
        if self._asked.empty():
            self._asked.put((registry, snapshot))

    def stop(self) -> None:
        """Tell that the server stops, if it ever said that it serves and the registry answers at once."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(FAREWELL_SECONDS)
            self._thread = None

    def _run(self) -> None:
        asked = None
        while (newest := self._asked.get()) is not None:
            asked = newest
            self.look(*asked)
        if asked is not None and self._told is not None:
            with suppress(Exception):  # a server that says nothing is forgotten soon
                tell(asked[0].journal, asked[1].project, self._server(self._told[0]), is_stopping=True)
            self._told = None

    def look(self, registry: Registry, snapshot: Snapshot) -> None:
        """Tell what is served if it is time to; a failure costs one warning and is tried again later."""
        now_us = self._workspace.clock()
        if self._told is not None and self._told[0] is snapshot and abs(now_us - self._told[1]) < TOLD_EVERY_US:
            return
        if abs(now_us - self._retry_us) < RETRY_US:
            return
        try:
            tell(registry.journal, snapshot.project, self._server(snapshot))
        except FeatureStoreError as error:
            self._retry_us = now_us
            if not self._has_warned:
                hint = " Give it a token of `fs token create --role reader --server`."
                logger.warning(
                    "the registry does not learn what is served here, so `fs status` and `fs promote` do not know of "
                    "this server: %s%s",
                    error.message,
                    hint if isinstance(error, AuthError) else "",
                )
            self._has_warned = True
        except Exception:
            self._retry_us = now_us
            logger.exception("the registry could not be told what is served")
        else:
            self._told, self._has_warned = (snapshot, now_us), False

    def _server(self, snapshot: Snapshot) -> Server:
        views = (found for found in self._workspace.code if isinstance(found, OnDemandFeatureView))
        code = {view.name: view.code_hash for view in views if view.function is not None}
        version = featurestore.__version__
        return Server(self._instance, os.getpid(), self._host, version, snapshot.revision, snapshot.chain.head, code)
