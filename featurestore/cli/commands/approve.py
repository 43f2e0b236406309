"""fs approve."""

from __future__ import annotations

from dataclasses import replace

import click
from featurestore_registry.interface import Governance
from featurestore_registry.records import Document

from featurestore.cli.output import Output, confirmed, repo_command
from featurestore.cli.plans import diff_document, render_lines
from featurestore.errors import InputError
from featurestore.ledger.consumers import list_consumers
from featurestore.plan import ChangeClass, RevisionDiff, proposed
from featurestore.plan.changes import explain_step
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
        output.emit([_document(store, each) for each in waiting])
        for each in waiting:
            _show(store, output, each)
        if not waiting:
            output.say("Nothing waits for an approval.")
        return
    found = [each for each in waiting if each["plan"].startswith(plan)]
    if found and not yes:
        _show(store, output, found[0])
        confirmed("Approve?", "There is no terminal to ask on: pass --yes to approve.")
    done = governance.approve(store.project, found[0]["plan"] if found else plan)
    output.emit(done)
    output.say(f"Approved {done['plan']}: {done['by']} may run the same command again now.")


def _diff(store: FeatureStore, proposal: Document) -> RevisionDiff:
    workspace = store.workspace
    consumers = list_consumers(workspace.ledger, workspace.project)
    diff = proposed(workspace.snapshot(), proposal["writes"], consumers)
    classes = {key: ChangeClass[name.upper()] for key, name in proposal["classes"].items()}
    steps = [replace(step, change_class=classes[f"{step.kind}:{step.name}"]) for step in diff.steps]
    return replace(diff, steps=tuple(steps))


def _document(store: FeatureStore, proposal: Document) -> Document:
    kept = {name: value for name, value in proposal.items() if name != "writes"}
    return {**kept, "diff": diff_document(_diff(store, proposal))}


def _show(store: FeatureStore, output: Output, proposal: Document) -> None:
    why = f": {proposal['message']}" if proposal["message"] else ""
    output.say(f"{proposal['plan']} by {proposal['by']}{why}")
    if proposal["writes"]:
        render_lines(output, [line for step in _diff(store, proposal).steps for line in explain_step(step)])
        return
    output.say("  An earlier server took it and did not keep what it writes:")
    width = max(map(len, proposal["changes"]))
    for change in proposal["changes"]:
        key = change.partition(" ")[2]
        output.say(f"  {change:{width}}  {proposal['classes'][key]}")
