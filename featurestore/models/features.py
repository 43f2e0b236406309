"""The features that a model was trained with, served under their names and in their order, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.definitions import FeatureSelection
from featurestore.errors import FeatureStoreError, ModelError, NotFoundError
from featurestore.models.trained import Trained, trained
from featurestore.plan.texts import difference_lines
from featurestore.registered.selections import selection_from
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest, from_references
from featurestore.request.meaning import definition_hash, meanings
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    from featurestore.definitions import Label
    from featurestore.engine.interface import AsOf
    from featurestore.serving import OnlineResponse
    from featurestore.training import TrainingSet

_SHOWN = 5
"""At most so many changes are told."""


class ModelFeatures:
    """What a model was trained with, to be served to it: see `FeatureStore.features_for`.

    Threads may share it, as they may the store.
    """

    def __init__(self, workspace: Workspace, found: Trained) -> None:
        schema = found.schema()
        self._workspace, self._found = workspace, found
        try:
            self._references = [dict(each) for each in schema["references"]]
            self._full_names = bool(schema["full_feature_names"])
            self._names = tuple(str(each["name"]) for each in schema["columns"] if each["role"] == "feature")
            self._timestamp_column = str(schema["timestamp_column"])
        except (LookupError, TypeError, ValueError):
            raise ModelError(
                f"The run {found.run.run_id} of {found.run.told} has a schema that featurestore did not write.",
                hint="Train the model again, and log its set anew.",
            ) from None
        self._checked: tuple[Snapshot, list[Any]] | None = None
        self._served(workspace.snapshot())

    @property
    def model(self) -> str:
        """The model, as it was asked for."""
        return self._found.run.uri

    @property
    def version(self) -> str:
        """The version that the model's alias named when it was asked for; empty for a run."""
        return self._found.run.version

    @property
    def run_id(self) -> str:
        """The run in MLflow that logged it."""
        return self._found.run.run_id

    @property
    def training_set(self) -> str:
        """The id of the training set."""
        return self._found.training_set

    @property
    def services(self) -> tuple[str, ...]:
        """The feature services that the training set was asked for by; none of a list of features."""
        return self._found.services

    @property
    def revision(self) -> int:
        """The revision at which the training set was made."""
        return self._found.revision

    @property
    def names(self) -> tuple[str, ...]:
        """The feature columns of the training set, in their order."""
        return self._names

    def get_online_features(self, entity_rows: Any) -> OnlineResponse:
        """Return the newest values of some entities: as `FeatureStore.get_online_features`, for this model.

        Raises ModelError as soon as the features' definition is another one than at the training.
        """
        from featurestore.serving import get_online_features

        workspace = self._workspace
        while True:
            snapshot = workspace.recent_snapshot()
            served, failed, found = self._served(snapshot), None, None
            try:
                found = get_online_features(workspace, served, entity_rows, full_feature_names=self._full_names)
            except FeatureStoreError as error:  # also of what is another definition since a moment ago
                failed = error
            if workspace.recent_snapshot() is not snapshot:  # another one may have been served: it is checked, too
                continue
            if failed is not None:
                raise failed
            assert found is not None
            return found

    def get_historical_features(
        self,
        entity_df: Any,
        *,
        timestamp_column: str | None = None,
        as_of: AsOf | None = None,
        labels: Label | Sequence[Label] = (),
    ) -> TrainingSet:
        """Return a training set with the model's features: as `FeatureStore.get_historical_features`.

        ``timestamp_column`` is by default that of the model's training set. Raises as `get_online_features` does.
        """
        from featurestore.training import get_historical_features

        snapshot = self._workspace.snapshot()
        return get_historical_features(
            self._workspace,
            entity_df,
            self._served(snapshot),
            timestamp_column=timestamp_column or self._timestamp_column,
            full_feature_names=self._full_names,
            as_of=as_of,
            labels=labels,
            snapshot=snapshot,
        )

    def _served(self, snapshot: Snapshot) -> list[Any]:
        """Return the references as arguments, where they still mean what they meant; raises ModelError."""
        checked = self._checked
        if checked is None or checked[0] is not snapshot:
            self._checked = checked = snapshot, self._check(snapshot)
        return checked[1]

    def _check(self, snapshot: Snapshot) -> list[Any]:
        try:
            request = self._request(snapshot)
        except NotFoundError as error:
            raise self._refused([error.message]) from None
        if definition_hash(request) != self._found.facts.get("definition"):
            changes = [*self._changes(request)]
            if changes:
                raise self._refused(changes)
        return [*_arguments(snapshot, self._references)]

    def _request(self, snapshot: Snapshot) -> FeatureRequest:
        try:
            return from_references(snapshot, self._references, full_feature_names=self._full_names)
        except (LookupError, TypeError, ValueError) as error:
            raise ModelError(
                f"The schema of run {self.run_id} asks for features in a form that this version cannot read: {error}.",
                hint="Train the model again, and log its set anew.",
            ) from None

    def _changes(self, now: FeatureRequest) -> Iterator[str]:
        """Yield what of the features is another than at the training."""
        facts, definitions = self._found.facts, self._workspace.registry.definitions
        chain, revision = definitions.chain(now.project), facts.get("revision_hash", "")
        if "direct" in facts:
            yield "the set was made directly from its sources, by definitions that are not the applied ones"
            return
        if revision not in chain:
            yield f"this registry does not have the revision {revision[:12]} at which the set was made"
            return
        before = self._request(Snapshot.of(definitions.read(now.project, chain.hashes.index(revision) + 1)))
        old, new = meanings(before), meanings(now)
        for name in old:
            if name in new:
                yield from _differences(name, old[name], new[name])
            else:
                yield f"{name} is gone"

    def _refused(self, changes: Sequence[str]) -> ModelError:
        told, found = "; ".join(changes[:_SHOWN]), self._found
        more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        services = " and ".join(map(repr, found.services)) or "its features"
        return ModelError(
            f"{found.run.told} was trained with {services} at revision {found.revision}, which changed since: "
            f"{told}{more}.",
            hint="Train it again with what is applied now. Or take the change back (`fs rollback`), and make it under "
            "a name of its own, such as a new version of the service: then both models are served.",
            model=self.model,
            training_set=self.training_set,
        )

    def __repr__(self) -> str:
        return f"ModelFeatures({self._found.run.told}: {len(self._names)} features of revision {self.revision})"


def features_for(workspace: Workspace, uri: str) -> ModelFeatures:
    """Return what a model was trained with; see `FeatureStore.features_for`."""
    return ModelFeatures(workspace, trained(workspace, uri))


def _arguments(snapshot: Snapshot, references: Sequence[Mapping[str, Any]]) -> Iterator[str | FeatureSelection]:
    """Yield references as callers write them: objects, so that what is resolved is what was checked."""
    for each in references:
        if "on_demand" in each:
            yield from (f"{each['on_demand']}:{feature}" for feature in each["features"])
        else:
            yield selection_from(each, lambda _, name: snapshot.views[name].view)


def _differences(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for part in dict.fromkeys((*old, *new)):
        if old.get(part) != new.get(part):
            lines = difference_lines(old.get(part), new.get(part))
            yield f"{part} of {name}: {' '.join(filter(None, map(str.strip, lines)))}"
