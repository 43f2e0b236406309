"""fs approve."""

from __future__ import annotations

import click
from featurestore_registry.interface import Governance
from featurestore_registry.records import Document

from featurestore.cli.output import Output, confirmed, repo_command
from featurestore.errors import InputError
from featurestore.store import FeatureStore


def governance_of(store: FeatureStore) -> Governance:
    """Return the registry's governance; raises InputError where no server stands before the database."""
    found = store.workspace.registry.governance
    if found is None:
        raise InputError(
            "This registry has no policies: whoever can open it can do everything.",
            hint="Policies and approvals are those of a registry behind `fs registry serve`.",
        )
    return found


@click.command("approve")
@click.argument("plan", required=False)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@repo_command
def command(store: FeatureStore, output: Output, plan: str | None, yes: bool) -> None:
    """Approve an apply that somebody else proposed; without PLAN, list what waits.

    A project's policy may want a second person for some classes of change. The first `fs apply` proposes them; once
    they are approved, the same `fs apply` goes through, as long as nothing else was applied in between.
    """
    governance = governance_of(store)
    waiting = governance.proposals(store.project)
    if plan is None:
        output.emit(waiting)
        for each in waiting:
            _show(output, each)
        if not waiting:
            output.say("Nothing waits for an approval.")
        return
    found = [each for each in waiting if each["plan"].startswith(plan)]
    if found and not yes:
        _show(output, found[0])
        confirmed("Approve?", "There is no terminal to ask on: pass --yes to approve.")
    done = governance.approve(store.project, found[0]["plan"] if found else plan)
    output.emit(done)
    output.say(f"Approved {done['plan']}: {done['by']} may run `fs apply` now.")


def _show(output: Output, proposal: Document) -> None:
    why = f": {proposal['message']}" if proposal["message"] else ""
    output.say(f"{proposal['plan']} by {proposal['by']}{why}")
    width = max(map(len, proposal["changes"]))
    for change in proposal["changes"]:
        key = change.partition(" ")[2]
        output.say(f"  {change:{width}}  {proposal['classes'][key]}")
