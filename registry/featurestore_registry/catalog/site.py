"""What the pages of one registry are made from: its reader, and what of it is kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from featurestore_registry.catalog.activity import ViewActivity, activity_of
from featurestore_registry.catalog.findings import Finding, Findings, Past, read_finding, read_findings, read_past
from featurestore_registry.catalog.history import History, read_history
from featurestore_registry.catalog.named import Named, read_named
from featurestore_registry.catalog.project import Project
from featurestore_registry.catalog.search import Index, entries_of
from featurestore_registry.catalog.statistics import Figures, Shares, figures_of
from featurestore_registry.catalog.words import to_us
from featurestore_registry.findings import MonitorDocument
from featurestore_registry.interface import RegistryReader
from featurestore_registry.lineage.graph import Graph
from featurestore_registry.records import State

MOST_PROJECTS = 16
"""Projects whose definitions stay in memory; 500 views are about 15 MB."""

MOST_SUMMARIES = 256
MOST_PASTS = 64
"""Monitors whose last states stay in memory."""

Kept = TypeVar("Kept")


class Newest(Generic[Kept]):
    """The last thing that was made for each project, until it is made for another state; safe for threads."""

    def __init__(self, most: int = MOST_PROJECTS) -> None:
        self._most = most
        self._kept: OrderedDict[str, tuple[object, Kept]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, project: str, state: object, make: Callable[[Kept | None], Kept]) -> Kept:
        """Return what was made for a state; ``make`` gets what was made for the one before."""
        with self._lock:
            before = self._kept.get(project)
            if before is None or before[0] != state:
                self._kept[project] = (state, make(None if before is None else before[1]))
            self._kept.move_to_end(project)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return self._kept[project][1]


class Summary(NamedTuple):
    """One project in the list of all."""

    kinds: Mapping[str, int]
    by: str = ""
    message: str = ""
    applied_us: int | None = None


class Site:
    """A registry as the catalog reads it. Nothing here can write."""

    def __init__(self, registry: RegistryReader) -> None:
        self.registry = registry
        self._projects = Newest[Project]()
        self._past = Newest[Project](most=4)
        self._indexes = Newest[Index]()
        self._histories = Newest[History]()
        self._activities = Newest[Mapping[str, ViewActivity]]()
        self._named = Newest[Named](most=4)
        self._lineages = Newest[Graph](most=4)
        self._figures = Newest[Figures](most=4)
        self._findings = Newest[Findings](most=4)
        self._documents = Newest[MonitorDocument | None](most=4)
        self._pasts = Newest[Sequence[Past]](most=MOST_PASTS)
        self._summaries = Newest[Summary](most=MOST_SUMMARIES)

    def summary(self, name: str) -> tuple[Summary, State] | None:
        """Return what a project holds, without keeping more of it; None where nothing was ever applied."""
        state = self.registry.state(name)
        if not state.head:
            return None

        def make(_: Summary | None) -> Summary:
            latest = self.registry.definitions.history(name, limit=1)
            kinds = Project(self.registry.definitions.read(name)).kinds
            return Summary(kinds, *(latest[0].author, latest[0].message, to_us(latest[0].applied_at)) if latest else ())

        return self._summaries.get(name, state.head, make), state

    def project(self, name: str) -> tuple[Project, State] | None:
        """Return a project's definitions and how far it is; None where nothing was ever applied."""
        try:
            state = self.registry.state(name)
        except ValueError:  # no registry keeps such a name
            return None
        if not state.head:
            return None
        made = self._projects.get(name, state.head, lambda _: Project(self.registry.definitions.read(name)))
        return made, state

    def past(self, project: Project, number: int) -> Project:
        """Return an earlier revision of a project: the last few that were asked for stay in memory."""
        make = partial(self.registry.definitions.read, project.name, number)
        return self._past.get(f"{number}.{project.name}", project.chain.hashes[number - 1], lambda _: Project(make()))

    def index(self, project: Project) -> Index:
        """Return what a search looks through."""
        return self._indexes.get(project.name, project.head, lambda _: Index(entries_of(project)))

    def history(self, project: Project) -> History:
        """Return the project's history."""
        return self._histories.get(
            project.name,
            project.head,
            lambda known: read_history(self.registry.definitions, project.name, project.chain.hashes, known),
        )

    def activity(self, project: Project, state: State) -> Mapping[str, ViewActivity]:
        """Return how each view is, by name."""
        return self._activities.get(
            project.name,
            (project.head, state.ledger),
            lambda _: activity_of(self.registry.ledger, project),
        )

    def named(self, project: Project, state: State) -> Named:
        """Return the saved training sets and the consumers."""
        return self._named.get(project.name, state.ledger, lambda _: read_named(self.registry.ledger, project.name))

    def findings(self, project: Project, state: State) -> Findings:
        """Return what monitors found last."""
        name, ledger = project.name, self.registry.ledger

        def keep(monitor: str, version: int, document: MonitorDocument | None) -> None:
            self._documents.get(_monitor_key(name, monitor), version, lambda _: document)

        return self._findings.get(name, state.ledger, lambda known: read_findings(ledger, name, known, keep))

    def finding(self, project: Project, monitor: str, version: int) -> MonitorDocument | None:
        """Return the whole of what a monitor found last, as of a version: the last few stay in memory."""
        make = partial(read_finding, self.registry.ledger, project.name, monitor)
        return self._documents.get(_monitor_key(project.name, monitor), version, lambda _: make())

    def past_findings(self, project: Project, monitor: str, finding: Finding) -> Sequence[Past]:
        """Return the states that a monitor was in, oldest first."""
        name, ledger = project.name, self.registry.ledger

        def make(known: Sequence[Past] | None) -> Sequence[Past]:
            return read_past(ledger, name, monitor, finding, known)

        return self._pasts.get(_monitor_key(name, monitor), finding.version, make)

    def lineage(self, project: Project, state: State) -> Graph:
        """Return what everything comes from, and who uses it."""

        def make(_: Graph | None) -> Graph:
            named = self.named(project, state)
            return Graph(
                project.records.values(),
                training_sets={found.name: found.document.references for found in named.sets},
                consumers={consumer.name: consumer.services for consumer in named.consumers},
            )

        return self._lineages.get(project.name, (project.head, state.ledger), make)

    def shares(self, project: Project, state: State) -> Mapping[tuple[str, str], Shares]:
        """Return the figures of all features, for who may read statistics."""
        name, ledger = project.name, self.registry.ledger
        return self._figures.get(name, state.ledger, lambda known: figures_of(ledger, name, known)).shares


def _monitor_key(project: str, monitor: str) -> str:
    return f"{len(project)}.{project}.{monitor}"
