"""fs consumer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from featurestore.cli.output import Output, repo_command
from featurestore.cli.shared import shared_options
from featurestore.definitions import FeatureService
from featurestore.definitions.base import check_object_name
from featurestore.ledger.consumers import Consumer, add_consumer, list_consumers, remove_consumer
from featurestore.store import FeatureStore


@click.group("consumer")
@shared_options()
def command(**_: Any) -> None:
    """Say which models and programs read which services, so that plans show whom a change would break."""


def _name(ctx: click.Context, _: click.Parameter, name: str) -> str:
    try:
        return check_object_name(name)
    except ValueError as error:
        raise click.BadParameter(f"{name!r}: {error}.") from None


@command.command("add")
@click.argument("name", callback=_name)
@click.option("--service", "services", multiple=True, required=True, help="A service that it reads; repeatable.")
@click.option("--owner", default="", help="Whom to ask before its features change.")
@click.option("--description", default="", help="What it does.")
@repo_command
def add(
    store: FeatureStore, output: Output, name: str, services: tuple[str, ...], owner: str, description: str
) -> None:
    """Note a consumer; one of the same name is replaced."""
    snapshot = store.workspace.known_snapshot()
    for service in services:
        snapshot.get(FeatureService, service)
    consumer = Consumer(name, services, owner, description)
    add_consumer(store.workspace.ledger, store.project, consumer)
    output.emit(asdict(consumer))
    output.say(f"{consumer} reads {', '.join(services)}: plans say so from now on.")


@command.command("models")
@click.argument("models", nargs=-1)
@click.option("--owner", default="", help="Whom to ask before their features change.")
@repo_command
def models(store: FeatureStore, output: Output, models: tuple[str, ...], owner: str) -> None:
    """Note models of MLflow as consumers: models:/NAME@ALIAS or models:/NAME/VERSION, by default all with an alias.

    Each reads the services that it was trained with. MLFLOW_TRACKING_URI says where MLflow is.
    """
    found = [store.register_model(each, owner=owner) for each in models] if models else store.register_models()
    output.emit([asdict(consumer) for consumer in found])
    for consumer in found:
        output.say(f"{consumer} reads {', '.join(consumer.services)}: plans say so from now on.")
    if not found:
        output.say("MLflow has no model with an alias that was trained with a logged set of this project.")


@command.command("list")
@repo_command
def list_all(store: FeatureStore, output: Output) -> None:
    """List the consumers."""
    found = list_consumers(store.workspace.ledger, store.project)
    output.emit([asdict(consumer) for consumer in found])
    if not found:
        output.say("No consumer is known. `fs consumer add --help` says how to note one.")
        return
    rows = [(each.name, ", ".join(each.services), each.owner, each.description) for each in found]
    output.table(("consumer", "reads", "owner", "about"), rows)


@command.command("remove")
@click.argument("name")
@repo_command
def remove(store: FeatureStore, output: Output, name: str) -> None:
    """Forget a consumer."""
    remove_consumer(store.workspace.ledger, store.project, name)
    output.emit({"removed": name})
    output.say(f"{name} is forgotten.")
