"""fs policy."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click
from featurestore_registry.records import Document

from featurestore.cli.commands.approve import governance_of
from featurestore.cli.commands.token import logins_of, tokens_of
from featurestore.cli.output import Output, repo_command
from featurestore.cli.shared import shared_options
from featurestore.errors import AuthError
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
    for about, value in _told(policy).items():
        output.say(f"{about}: {value}")


def _told(policy: Document) -> dict[str, str]:
    told = {"refused": policy["refuse"], "wants a second person": policy["approve"]}
    groups = {
        f"what {owner!r} owns is changed by": members or ["nobody"] for owner, members in policy["groups"].items()
    }
    return {about: ", ".join(names) or "nothing" for about, names in {**told, **groups}.items()}


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
@click.option("--clear", is_flag=True, help="Allow first what the policy has so far.")
@repo_command
def set_policy(
    store: FeatureStore,
    output: Output,
    refuse: tuple[str, ...],
    approve: tuple[str, ...],
    groups: dict[str, list[str]],
    clear: bool,
) -> None:
    """Change what is named of the policy; the rest stays, without --clear. Needs a token with the role admin."""
    governance = governance_of(store)
    before = governance.policy(store.project)
    kept = {"refuse": [], "approve": [], "groups": {}} if clear else before
    policy = {
        "refuse": list(refuse) or kept["refuse"],
        "approve": list(approve) or kept["approve"],
        "groups": {**kept["groups"], **groups},
    }
    governance.set_policy(store.project, policy)
    output.emit(policy)
    old, new = _told(before), _told(policy)
    for about in (about for about in {**old, **new} if old.get(about) != new.get(about)):
        output.say(f"{about}: {old.get(about, 'anybody')} -> {new.get(about, 'anybody')}")
    output.say(f"The policy of {store.project} is set.")
    with suppress(AuthError):
        known = {each.name or each.id for each in tokens_of(store, None)} | {each.name for each in logins_of(store)}
        for name in sorted({name for members in groups.values() for name in members} - known):
            output.note(f"No token or login has the name {name!r} so far.")
