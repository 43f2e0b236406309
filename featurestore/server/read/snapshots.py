"""A server's definitions: from the registry, refreshed in the background, saved on disk for when it is down.

A request takes `SnapshotKeeper.current` once and uses nothing else, so that a swap never mixes two revisions in it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from random import SystemRandom

from featurestore_registry.auth import Token, known_tokens
from featurestore_registry.interface import Registry
from featurestore_registry.records import Revision

from featurestore.backends import open_registry
from featurestore.consistency.clocks import newest_written_us
from featurestore.errors import AuthError, FeatureStoreError, RegistryError
from featurestore.ledger.progress import Progress, read_progress
from featurestore.registered.snapshot import Snapshot
from featurestore.registered.snapshot_file import (
    FILE_NAME,
    SavedSnapshot,
    confirm_snapshot,
    read_snapshot,
    save_snapshot,
)
from featurestore.server.http.door import Door
from featurestore.server.read.templates import Served, Templates
from featurestore.server.watch.serving import ServingReport
from featurestore.types.times import MIN_INSTANT, to_rfc3339
from featurestore.workspace import Readers

logger = logging.getLogger("featurestore.server")

WARN_EVERY_US = 60_000_000
"""Log a missing registry at most this often, even if the refresh interval is shorter."""

STOP_SECONDS = 2.0
"""How long an end waits for the registry: whoever stops a server kills it after some seconds."""


class SnapshotKeeper:
    """Keeps `current` as new as the registry allows. Calls ``on_refresh`` with the outcome of every refresh."""

    def __init__(self, workspace: Readers, door: Door | None = None) -> None:
        self._workspace = workspace
        self._door = Door(workspace.root) if door is None else door
        self._path = workspace.root / FILE_NAME
        self._interval: timedelta = workspace.settings.server.refresh
        self._stop = threading.Event()
        self._refreshing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._registry: Registry | None = None
        self._report = ServingReport(workspace)
        self._ledger = -1
        """How far the project's ledger was when it was read last."""
        self._written_us = MIN_INSTANT
        self._warned: tuple[str, int] | None = None
        self._saved: SavedSnapshot | None = None
        self._templates: Templates | None = None
        self.progress: Mapping[str, Progress] = {}
        """How far each view's rows had come at the last refresh."""
        self.registry_ahead_us = 0
        """How far the registry's newest entry was in this host's future at the last refresh."""
        self.on_refresh: Callable[[str], None] | None = None
        self.served: Served | None = None
        """How answers are kept, of definitions that are taken from now on."""

    @property
    def current(self) -> Templates:
        """What is served now, of one revision: a newer one is another object. Call `load` first."""
        assert self._templates is not None
        return self._templates

    def age_us(self) -> int:
        """Return how long ago the registry last confirmed the served definitions, in microseconds."""
        assert self._saved is not None
        return max(0, self._workspace.clock() - self._saved.seen_us)

    def tokens(self) -> tuple[Token, ...]:
        """Return the current tokens."""
        assert self._saved is not None
        return self._saved.tokens

    def load(self) -> None:
        """Read the registry, or, while it is down, the definitions that were saved last.

        Raises the registry's error when nothing was ever saved, RegistryFormatError when the saved file is damaged.
        """
        project = self._workspace.project
        if self._door.is_open():  # an older version's snapshot may know tokens that the registry has lost
            with suppress(RegistryError):
                self._kept()
        try:
            found = self._ask()
            if found.revision.number == 0:
                kept = self._kept()
                if kept is not None and kept.revision.number > 0:
                    self._take(kept)
                    self._warn(f"The registry does not know project {project!r}.")
                    return
            self._take(found)
        except RegistryError as error:
            kept = self._kept()
            if kept is None:
                raise
            self._take(kept)
            self._warn(_why(error))
        else:
            self._save(found)

    def refresh(self) -> str:
        """Read the registry once; return ``same``, ``changed``, ``refused`` or ``failed``. Never raises."""
        try:
            with self._refreshing:
                outcome = self._look()
        except FeatureStoreError as error:
            self._warn(_why(error))
            outcome = "refused" if isinstance(error, AuthError) else "failed"
        except Exception:
            # The thread must go on: the definitions that are served stay valid.
            logger.exception("refreshing the definitions failed")
            outcome = "failed"
        if self.on_refresh is not None:
            self.on_refresh(outcome)
        return outcome

    def start(self) -> None:
        """Refresh in the background, every interval plus or minus a tenth, so that workers do not ask all at once."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="featurestore-refresh", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the background thread and close the registry; waits for a refresh that is under way, if it ends soon."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
            if self._thread.is_alive():  # a registry that hangs; the process ends without it
                return
            self._thread = None
        if self._registry is not None:
            self._report.stop()
            self._registry.close()
            self._registry = None

    def _run(self) -> None:
        seconds = self._interval.total_seconds()
        jitter = SystemRandom()
        self._tell()
        while not self._stop.wait(seconds * jitter.uniform(0.9, 1.1)):
            if self.refresh() != "failed":
                self._tell()

    def _tell(self) -> None:
        if self._registry is not None:
            self._report.ask(self._registry, self.current.snapshot)

    def _ask(self, known: SavedSnapshot | None = None) -> SavedSnapshot:
        """Return the registry's current state; reads the records only when the revision is not the known one."""
        workspace = self._workspace
        project = workspace.project
        if self._registry is None:
            # Never create it here: an empty registry in place of a lost one would end all serving.
            self._registry = open_registry(
                workspace.settings.registry, workspace.root, create=False, clock=workspace.clock
            )
        registry = self._registry
        seen_us, state = workspace.clock(), registry.state(project)
        is_same = known is not None and (state.head, state.ledger) == (known.revision.chain.head, self._ledger)
        if not is_same:
            self._written_us = newest_written_us(registry, project)
        self.registry_ahead_us = max(0, self._written_us - seen_us)
        if known is not None and is_same:
            return SavedSnapshot(known.revision, known.tokens, seen_us)
        found = self._door.take(*known_tokens(registry.ledger, project))
        if self._templates is not None:
            self.progress = read_progress(registry.ledger, self._templates.snapshot)
        self._ledger = state.ledger
        if known is not None and registry.definitions.chain(project) == known.revision.chain:
            unchanged = found == known.tokens
            return SavedSnapshot(known.revision, known.tokens if unchanged else found, seen_us)
        return SavedSnapshot(registry.definitions.read(project), found, seen_us)

    def _kept(self) -> SavedSnapshot | None:
        """Return the saved state, without tokens that were seen revoked since."""
        kept = read_snapshot(self._path, self._workspace.project)
        return None if kept is None else replace(kept, tokens=self._door.take(kept.tokens, {}))

    def _look(self) -> str:
        known = self._saved
        assert known is not None
        found = self._ask(known)
        if found.revision.number == 0 and known.revision.number > 0:
            self._warn(f"The registry does not know project {self._workspace.project!r}.")
            return "failed"
        self._warned = None
        if found.revision is known.revision and found.tokens is known.tokens:
            self._saved = found
            self._confirm(found)
            return "same"
        _tell_of_another_history(known.revision, found.revision)
        if known.tokens and not found.tokens:
            logger.warning(
                "no token of the registry passes any more: requests without FS_SERVER_TOKEN are answered 401. "
                "Make one with `fs token create --role reader`"
            )
        self._take(found)
        self._save(found)
        return "changed"

    def _take(self, found: SavedSnapshot) -> None:
        templates = before = self._templates
        if templates is None or templates.snapshot.chain != found.revision.chain:
            snapshot = Snapshot.of(found.revision)
            snapshot.build()  # now, not in the first request
            whole = snapshot.with_code(self._workspace.code) if snapshot.on_demand else snapshot
            templates = Templates(whole, before, self.served)
            if before is not None:
                templates.prepare(before.in_use())
            logger.info("serving revision %d of project %r", found.revision.number, found.revision.project)
        self._saved, self._templates = found, templates

    def _save(self, found: SavedSnapshot) -> None:
        try:
            save_snapshot(self._path, found)
        except FeatureStoreError as error:
            logger.warning("the definitions could not be saved for a start without the registry: %s", error)

    def _confirm(self, found: SavedSnapshot) -> None:
        try:
            confirm_snapshot(self._path, found.seen_us)
        except FeatureStoreError:
            self._save(found)

    def _warn(self, what: str) -> None:
        assert self._saved is not None
        now_us = self._workspace.clock()
        if self._warned is not None and self._warned[0] == what and now_us - self._warned[1] < WARN_EVERY_US:
            return
        self._warned = (what, now_us)
        logger.warning(
            "%s Serving revision %d as it was confirmed at %s.",
            what,
            self._saved.revision.number,
            to_rfc3339(self._saved.seen_us),
        )


def _why(error: FeatureStoreError) -> str:
    if isinstance(error, AuthError):
        return f"This server may not read the registry any more ({error}). Its own token: {error.hint}"
    return f"The registry is away ({error})."


def _tell_of_another_history(known: Revision, found: Revision) -> None:
    """Warn when the registry does not continue the served history: it was restored, or is another one."""
    if known.chain.number and found.chain.identity != known.chain.identity:
        logger.warning(
            "the registry is of another project %r than the one served: it was made again, or its URL leads elsewhere",
            found.project,
        )
    elif found.number < known.number:
        logger.warning("the registry went back from revision %d to %d", known.number, found.number)
    elif known.chain.head not in found.chain and known.chain.number:
        logger.warning("the registry was restored: revision %d is not the one that was served", known.number)
