"""fs teardown."""

from __future__ import annotations

import click

from featurestore.cli.output import Output, repo_command
from featurestore.cli.plans import plan_document, render_plan
from featurestore.errors import ChangesNotAllowedError
from featurestore.maintenance.teardown import left_behind
from featurestore.store import FeatureStore


@click.command("teardown")
@click.option("--allow-destroy", is_flag=True, help="Yes, delete the project's definitions and data.")
@repo_command
def command(store: FeatureStore, output: Output, allow_destroy: bool) -> None:
    """Delete the project: its definitions, offline tables and online records. Neighbours are never touched."""
    plan = store.plan_teardown()
    if not allow_destroy:
        left = left_behind(store.workspace)
        if not plan.steps and not left:
            output.emit(plan_document(plan))
            output.say(f"Project {store.project} holds nothing.")
            return
        if plan.steps:
            render_plan(output, plan, is_teardown=True)
        else:
            output.say(f"Project {store.project} has no definitions (revision {plan.revision}), but data.")
        for what in left:
            output.say(f"would be deleted, too: {what}" if plan.steps else f"would be deleted: {what}")
        raise ChangesNotAllowedError(
            f"Tearing down {store.project!r} deletes everything it holds, and nothing was deleted.",
            hint="If that is what you want, run `fs teardown --allow-destroy`.",
        )
    output.emit(plan_document(store.teardown(plan)))
    output.say(f"Project {store.project} is gone: its definitions, offline tables and online records.")
