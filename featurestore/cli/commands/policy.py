"""fs policy."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.commands.approve import governance_of
from featurestore.cli.output import Output, repo_command
from featurestore.cli.shared import shared_options
from featurestore.plan import ChangeClass
from featurestore.store import FeatureStore

_CLASSES = click.Choice([each.name.lower() for each in ChangeClass])


@click.group("policy")
@shared_options()
def command(**_: Any) -> None:
    """Say what editors of the project may apply; the registry's server holds them to it."""


@command.command("show")
@repo_command
def show(store: FeatureStore, output: Output) -> None:
    """Show the project's policy."""
    policy = governance_of(store).policy(store.project)
    output.emit(policy)
    for name, told in (("refuse", "refused"), ("approve", "wants a second person")):
        output.say(f"{told}: {', '.join(policy[name]) or 'nothing'}")
    for owner, members in policy["groups"].items():
        output.say(f"what {owner!r} owns is changed by: {', '.join(members) or 'nobody'}")


def _groups(ctx: click.Context, _: click.Parameter, given: tuple[str, ...]) -> dict[str, list[str]]:
    groups = {}
    for text in given:
        owner, sign, members = text.partition("=")
        if not owner or not sign or owner in groups:
            raise click.BadParameter(f"{text!r}: write OWNER=NAME,NAME, each owner once.")
        groups[owner] = [name.strip() for name in members.split(",") if name.strip()]
    return groups


@command.command("set")
@click.option("--refuse", multiple=True, type=_CLASSES, help="A class of change that nobody may apply; repeatable.")
@click.option("--approve", multiple=True, type=_CLASSES, help="One that a second person approves; repeatable.")
@click.option(
    "--group",
    "groups",
    multiple=True,
    callback=_groups,
    metavar="OWNER=NAME,…",
    help="The names of the tokens that may change what this owner owns; repeatable.",
)
@repo_command
def set_policy(
    store: FeatureStore, output: Output, refuse: tuple[str, ...], approve: tuple[str, ...], groups: dict[str, list[str]]
) -> None:
    """Set the whole policy; what is left out is allowed. Needs a token with the role admin."""
    policy = {"refuse": list(refuse), "approve": list(approve), "groups": groups}
    governance_of(store).set_policy(store.project, policy)
    output.emit(policy)
    output.say(f"The policy of {store.project} is set.")
