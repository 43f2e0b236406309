"""Models as consumers of services: plans and monitors name them."""

from __future__ import annotations

from contextlib import suppress

from featurestore.definitions import FeatureService
from featurestore.errors import InputError, ModelError, NotFoundError
from featurestore.ledger.consumers import Consumer, add_consumer, list_consumers
from featurestore.models.trained import trained
from featurestore.tracking.mlflow import aliased_models
from featurestore.workspace import Workspace

PREFIX = "mlflow/"
_SHOWN = 12
"""So many digits of a set's id are shown."""


def register_model(workspace: Workspace, uri: str, *, owner: str = "") -> Consumer:
    """Note a registered model as a consumer; see `FeatureStore.register_model`."""
    found = trained(workspace, uri)
    if not found.run.name:
        raise InputError(
            f"{uri!r} is no registered model.",
            hint="Log the model with registered_model_name=, and pass models:/NAME@ALIAS or models:/NAME/VERSION.",
        )
    if not found.services:
        raise ModelError(
            f"{found.run.told} was trained with a list of features: it is no reader of any service.",
            hint="Declare a FeatureService with these features, and train with it.",
            model=uri,
        )
    snapshot = workspace.known_snapshot()
    for service in found.services:
        snapshot.get(FeatureService, service)
    # Names of lineage have no colon and no dot; a model's name has no colon and no slash.
    name = PREFIX + uri.removeprefix("models:/").replace(".", "/")
    known = {each.name: each for each in list_consumers(workspace.ledger, workspace.project)}.get(name)
    at = f"version {found.run.version}" if "@" in uri else "a model"
    consumer = Consumer(
        name,
        found.services,
        owner or ("" if known is None else known.owner),
        f"{at} in MLflow, trained at revision {found.revision} with set {found.training_set[:_SHOWN]}",
    )
    if consumer != known:  # what is noted already needs no new entry
        add_consumer(workspace.ledger, workspace.project, consumer)
    return consumer


def register_models(workspace: Workspace) -> list[Consumer]:
    """Note every model that an alias names; see `FeatureStore.register_models`."""
    found = []
    for uri in aliased_models():
        # Not of ours, or moved or deleted a moment ago.
        with suppress(ModelError, NotFoundError, InputError):
            found.append(register_model(workspace, uri))
    return found
