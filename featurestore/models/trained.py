"""What a model says about what it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.errors import ModelError
from featurestore.tracking.mlflow import SET, TrackedRun, read_document, read_run
from featurestore.training.facts import PREFIX, SCHEMA
from featurestore.workspace import Readers


@dataclass(frozen=True, slots=True)
class Trained:
    """The run of a model, and the facts of the set that it was trained with."""

    run: TrackedRun
    facts: Mapping[str, str]
    """By name, without the prefix; as texts."""

    @property
    def services(self) -> tuple[str, ...]:
        """The services that the set was asked for by; none of a list of features."""
        return tuple(filter(None, self.facts.get("service", "").split(", ")))

    @property
    def training_set(self) -> str:
        """The set's id."""
        return self.facts["training_set"]

    @property
    def revision(self) -> int:
        """The revision at which the set was made; 0 where the run does not say it."""
        text = self.facts.get("revision", "")
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0

    def schema(self) -> Mapping[str, Any]:
        """Return the set's columns, and what was asked for; raises NotFoundError, TrackerError."""
        return read_document(self.run.run_id, SCHEMA)


def trained(workspace: Readers, uri: str) -> Trained:
    """Return what a model was trained with.

    Raises InputError for a text that names no model, NotFoundError, TrackerError, and ModelError for a model that was
    trained without a logged set, or with one of another project.
    """
    run = read_run(uri)
    facts = {name.removeprefix(PREFIX): text for name, text in run.tags.items() if name.startswith(PREFIX)}
    if SET not in run.tags:
        raise ModelError(
            f"{run.told} was not trained with a logged training set: its run {run.run_id} names none.",
            hint="Call training.log_to_mlflow() in the run that logs the model, and train it again.",
            model=uri,
            run_id=run.run_id,
        )
    identity = workspace.registry.definitions.chain(workspace.project).identity
    if facts.get("project_id") != identity:
        name = facts.get("project", "")
        same = "of that name, but of another registry" if name == workspace.project else f"{name!r}"
        raise ModelError(
            f"{run.told} was trained with features of another project: {same}, not of {workspace.project!r} here.",
            hint="Open the store of that project, or train the model with the features of this one.",
            model=uri,
            project=name,
        )
    return Trained(run, facts)
