"""The definitions as they were when something was served, and what of them changed since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from featurestore.definitions import FeatureService
from featurestore.errors import FeatureStoreError
from featurestore.ledger.commits import REVISION
from featurestore.quality.past import RUN, Arrival
from featurestore.registered.snapshot import RegisteredView, Snapshot
from featurestore.request.features import FeatureRequest, OutputColumn, resolve
from featurestore.request.meaning import origin
from featurestore.served.shape import code_hash, named_outputs
from featurestore.workspace import Readers


@dataclass(frozen=True, slots=True)
class Change:
    """What is another one now than when something was served: a view's ttl alone, or what its values come from."""

    of: Literal["ttl", "definition"]
    before: RegisteredView


def comes_from(registered: RegisteredView, feature: str) -> tuple[Any, ...]:
    """Return what a feature's values come from, but the ttl: what is equal makes equal values of equal rows."""
    return registered.generation, origin(registered, feature)


class Before:
    """What a service was at earlier revisions."""

    def __init__(self, workspace: Readers, now: Snapshot, request: FeatureRequest, service: str) -> None:
        self._workspace, self._now, self._service = workspace, now, service
        self._code = code_hash(request)
        self._snapshots: dict[str, Snapshot | None] = {now.chain.head: now}
        self._served_as: dict[str, dict[str, tuple[Any, ...]] | None] = {now.chain.head: _ways(request)}
        self._changes: dict[tuple[str, str, str], Change | None] = {}
        self._remade: dict[tuple[str, str, int], bool] = {}

    def way(self, revision: str, output: str) -> tuple[Any, ...] | None:
        """Return how a feature was answered at a revision, to compare with now; None where that is unknown."""
        if revision not in self._served_as:
            self._served_as[revision] = self._ways_of(self._snapshot(revision))
        ways = self._served_as[revision]
        return None if ways is None else ways.get(output)

    def way_now(self, output: str) -> tuple[Any, ...]:
        """Return how a feature is answered now."""
        ways = self._served_as[self._now.chain.head]
        assert ways is not None
        return ways[output]

    def is_same_code(self, revision: str, code: str, output: str) -> bool:
        """Tell whether an on-demand feature was computed by what computes it now; ``code`` is that of the log."""
        before = self.way(revision, output)
        return code == self._code if before is None else before == self.way_now(output)

    def change(self, revision: str, now: RegisteredView, feature: str) -> Change | None:
        """Return what changed of a view since a revision, as far as a feature's values depend on it."""
        asked = revision, now.view.name, feature
        if asked not in self._changes:
            self._changes[asked] = self._change(revision, now, feature)
        return self._changes[asked]

    def remade(self, change: Change, now: RegisteredView, arrival: Arrival, feature: str) -> bool:
        """Tell whether a commit's rows were made by another definition than the one before a change."""
        commit = self._workspace.offline.find_commit(now.table, arrival.version)
        made_by = None if commit is None else commit.facts.get(REVISION)
        made = None if made_by is None else self._view(str(made_by), now.view.name)
        if made is None:
            return arrival.origin == RUN
        return comes_from(made, feature) != comes_from(change.before, feature)

    def _change(self, revision: str, now: RegisteredView, feature: str) -> Change | None:
        before = self._view(revision, now.view.name)
        if before is None or (before.view == now.view and before.generation == now.generation):
            return None
        if comes_from(before, feature) != comes_from(now, feature):
            return Change("definition", before)
        return Change("ttl", before) if before.view.ttl_us != now.view.ttl_us else None

    def _view(self, revision: str, view: str) -> RegisteredView | None:
        found = self._snapshot(revision)
        return None if found is None else found.views.get(view)

    def _snapshot(self, revision: str) -> Snapshot | None:
        if revision not in self._snapshots:
            hashes = self._now.chain.hashes
            definitions = self._workspace.registry.definitions
            is_known = revision in hashes
            read = definitions.read(self._now.project, hashes.index(revision) + 1) if is_known else None
            self._snapshots[revision] = None if read is None else Snapshot.of(read)
        return self._snapshots[revision]

    def _ways_of(self, snapshot: Snapshot | None) -> dict[str, tuple[Any, ...]] | None:
        if snapshot is None or self._service not in snapshot.services:
            return None
        try:
            service = snapshot.get(FeatureService, self._service)
            return _ways(resolve(snapshot, service, full_feature_names=True))
        except FeatureStoreError:  # only a newer release reads it
            return None


def _ways(request: FeatureRequest) -> dict[str, tuple[Any, ...]]:
    return {name: _way(request, output) for name, output in named_outputs(request).items()}


def _way(request: FeatureRequest, output: OutputColumn) -> tuple[Any, ...]:
    if output.read is not None:
        return _read(request, output.read)
    assert output.on_demand is not None
    computed = request.on_demand[output.on_demand]
    inputs = [
        (each.name, None if each.read is None else _read(request, each.read), str(each.field.type))
        for each in computed.inputs
    ]
    return computed.view.code_hash, computed.view.mode, str(output.field.type), inputs


def _read(request: FeatureRequest, place: int) -> tuple[Any, ...]:
    read = request.reads[place]
    return read.view.name, read.key_columns
