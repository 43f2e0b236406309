"""What use cases receive: one project's settings, stores, definitions and clock, to read or to write."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from featurestore_registry.forks import ForkLock
from featurestore_registry.interface import Ledger, LedgerReader, Registry, RegistryReader

from featurestore.backends import check_stores, open_engine, open_offline, open_online, open_registry
from featurestore.definitions import Definition
from featurestore.errors import FeatureStoreError, NotFoundError, RegistryUnavailableError
from featurestore.project.settings import Settings
from featurestore.registered.snapshot import Snapshot
from featurestore.types.times import Clock, system_clock

if TYPE_CHECKING:
    from featurestore.engine.interface import Engine
    from featurestore.offline.groups import GroupCommitter
    from featurestore.offline.interface import OfflineReader, OfflineStore, TableId
    from featurestore.online.interface import OnlineReader, OnlineStore

Opened = TypeVar("Opened")

logger = logging.getLogger("featurestore")


class _opened(cached_property[Opened]):  # noqa: N801 - as the decorator that it is
    """A cached property that is made once even if threads ask at the same time: LMDB must not open a file twice."""

    if not TYPE_CHECKING:  # the types stay those of a cached property

        def __get__(self, workspace, owner=None):
            if workspace is None:
                return self
            with workspace.lock:
                return super().__get__(workspace, owner)


class Readers(Protocol):
    """A workspace as what only reads receives it: the type checker finds a call that would write.

    The parts are the workspace's own, not wrapped: reading costs nothing more.
    """

    @property
    def project(self) -> str:
        """The project's name."""

    @property
    def root(self) -> Path:
        """The folder of the feature repo."""

    @property
    def settings(self) -> Settings:
        """Its settings."""

    @property
    def places(self) -> Mapping[str, Path]:
        """Where stores lie on this machine, by setting."""

    @property
    def clock(self) -> Clock:
        """The one source of "now"."""

    @property
    def registry(self) -> RegistryReader:
        """The registry."""

    @property
    def ledger(self) -> LedgerReader:
        """The registry's ledger."""

    @property
    def code(self) -> Sequence[Definition]:
        """The definitions whose functions this process may run."""

    @property
    def offline(self) -> OfflineReader:
        """The offline store."""

    @property
    def online(self) -> OnlineReader:
        """The online store."""

    @property
    def engine(self) -> Engine:
        """The engine of this thread's work; it changes no store."""

    def snapshot(self) -> Snapshot:
        """Return the newest revision's definitions."""

    def known_snapshot(self) -> Snapshot:
        """Return `snapshot`; raises NotFoundError where the registry does not know the project."""

    def recent_snapshot(self) -> Snapshot:
        """Return definitions that may be a little older, for reads of features."""


class Workspace:
    """One project, wired. Stores open at their first use and close together.

    ``code`` holds the feature repo's definitions, or loads them at their first use: on-demand functions come from
    there. ``clock`` is the one source of "now". Raises SettingsError for an unknown kind of store before it opens any.
    """

    def __init__(
        self,
        root: Path,
        settings: Settings,
        *,
        code: Sequence[Definition] | Callable[[], Sequence[Definition]] = (),
        clock: Clock = system_clock,
    ) -> None:
        self.places = check_stores(
            root, registry=settings.registry, offline_store=settings.offline_store, online_store=settings.online_store
        )
        """Where stores lie on this machine, by setting."""
        self.lock = ForkLock()
        """Held while something is opened or loaded."""
        self.committers: dict[tuple[int, TableId], GroupCommitter[Any]] = {}
        """What commits rows in groups, by process and table: a child after a fork has no thread of its parent's."""
        self.closed_before: dict[str, Any] = {}
        """What closes before the stores do, by name: it still wants to write."""
        self.root = root
        self.settings = settings
        self._code = code
        self.clock = clock
        self._snapshot: Snapshot | None = None
        self._stale_at_s = 0.0
        self._is_planned = False

    @property
    def project(self) -> str:
        """The project's name."""
        return self.settings.project

    @_opened
    def registry(self) -> Registry:
        """The registry; creates a missing file."""
        return open_registry(self.settings.registry, self.root, clock=self.clock)

    @_opened
    def code(self) -> tuple[Definition, ...]:
        """The definitions whose functions this process may run; empty, with a warning, when they do not load."""
        try:
            return tuple(self._code() if callable(self._code) else self._code)
        except FeatureStoreError as error:
            logger.warning("on-demand features are unavailable: %s", error)
            return ()

    def use_code(self, definitions: Sequence[Definition], *, partial: bool = True) -> None:
        """Run the functions of these definitions from now on; with ``partial`` in addition to the known ones."""
        kept = {(found.kind, found.name): found for found in (*(self.code if partial else ()), *definitions)}
        self.code = tuple(kept.values())
        self._snapshot = None

    @property
    def ledger(self) -> Ledger:
        """The registry's ledger."""
        return self.registry.ledger

    @_opened
    def offline(self) -> OfflineStore:
        """The offline store."""
        return open_offline(self.settings.offline_store, self.root, clock=self.clock)

    @_opened
    def online(self) -> OnlineStore:
        """The online store."""
        return open_online(self.settings.online_store, self.root, clock=self.clock)

    @_opened
    def engine(self) -> Engine:
        """The engine of this thread's work."""
        return open_engine(self.root, **self.settings.engine.model_dump())

    def open(self, *parts: Literal["registry", "offline", "online", "engine"]) -> None:
        """Open now what else opens at its first use, so that a bad URL is reported before any work is done."""
        for part in parts:
            getattr(self, part)

    def as_if(self, planned: Snapshot) -> Workspace:
        """Return a workspace that takes these definitions as applied; it shares this one's stores."""
        self.open("registry", "offline", "online", "engine")  # opened, and closed, by this one alone
        other = copy(self)
        other._snapshot, other._is_planned = planned, True
        return other

    def lease_name(self, view: str, generation: int) -> str:
        """Return the lease's name for a view: filling a future generation must not stop runs of the served one."""
        return f"{view}.{generation}" if self._is_planned else view

    def snapshot(self) -> Snapshot:
        """Return the newest revision's definitions; the same object while the revision stays."""
        if self._is_planned:
            assert self._snapshot is not None
            return self._snapshot
        chain = self.registry.definitions.chain(self.project)
        # Compared by hash: a restored registry uses the same numbers again.
        if self._snapshot is None or self._snapshot.chain != chain:
            snapshot = Snapshot.of(self.registry.definitions.read(self.project))
            # Stored features are served even where the feature repo does not load.
            self._snapshot = snapshot.with_code(self.code) if snapshot.on_demand else snapshot
        return self._snapshot

    def known_snapshot(self) -> Snapshot:
        """Return `snapshot`; raises NotFoundError where the registry does not know the project.

        For commands that work on the project's data: with a mistyped registry they would do nothing, or delete it all.
        """
        snapshot = self.snapshot()
        if not snapshot.revision:
            raise NotFoundError(
                f"The registry does not know project {self.project!r}. Nothing was changed.",
                hint="Run `fs apply` for a new project; else check `project` and `registry` in the settings, and "
                "FS_REGISTRY.",
                project=self.project,
            )
        return snapshot

    def recent_snapshot(self) -> Snapshot:
        """Return definitions at most ``server.refresh`` old, and older ones while the registry is down.

        For reads of features: they must not query the registry each time, nor fail with it.
        """
        now_s = time.monotonic()
        if self._snapshot is None or now_s >= self._stale_at_s:
            try:
                self.snapshot()
            except RegistryUnavailableError as error:
                if self._snapshot is None:
                    raise
                logger.warning("serving revision %d: %s", self._snapshot.revision, error)
            self._stale_at_s = now_s + self.settings.server.refresh.total_seconds()
        assert self._snapshot is not None
        return self._snapshot

    def close(self) -> None:
        """Close what was opened; calling it twice is allowed."""
        while self.closed_before:
            self.closed_before.popitem()[1].close()
        for name in ("registry", "online"):
            opened = self.__dict__.pop(name, None)
            if opened is not None:
                opened.close()
