"""fs apply."""

from __future__ import annotations

from dataclasses import replace

import click

from featurestore.cli.output import Output, confirmed, repo_command
from featurestore.cli.plans import plan_document, render_plan
from featurestore.plan import check_allowed
from featurestore.store import FeatureStore


@click.command("apply")
@click.option("--yes", "-y", is_flag=True, help="Do not ask (metadata, compatible and rebuild changes).")
@click.option("--allow-breaking", is_flag=True, help="Allow changes that break readers.")
@click.option("--allow-destroy", is_flag=True, help="Allow changes that delete data.")
@click.option("--refresh-schema", is_flag=True, help="Take in columns that sources have gained.")
@click.option("--prepare", is_flag=True, help="Fill new views and generations before they are served.")
@click.option("--message", "-m", default="", help="Why; kept in the history.")
@repo_command
def command(
    store: FeatureStore,
    output: Output,
    yes: bool,
    allow_breaking: bool,
    allow_destroy: bool,
    refresh_schema: bool,
    prepare: bool,
    message: str,
) -> None:
    """Register the repo's definitions, after showing what changes.

    Definitions that the repo no longer holds are deleted; where that deletes data, pass --allow-destroy.
    """
    plan = store.plan(refresh_schema=refresh_schema, prepare=prepare)
    render_plan(output, plan)
    check_allowed(plan, allow_breaking=allow_breaking, allow_destroy=allow_destroy)
    if plan.steps and not yes:
        assert plan.worst is not None
        question = f"Apply? The worst change is {plan.worst.name.lower()}"
        confirmed(question, "There is no terminal to ask on: pass --yes to apply.")
    if plan.steps:
        plan = store.apply_plan(plan, allow_breaking=allow_breaking, allow_destroy=allow_destroy, message=message)
    plan = replace(plan, applied=plan.revision) if plan.applied is None else plan
    output.emit(plan_document(plan))
    output.say(f"{plan.project} is at revision {plan.applied}.")
    for step in plan.steps:
        if step.loss is not None and step.loss.deleted:
            rows = f"{step.loss.offline_rows:,} offline rows and {step.loss.online_rows:,} online rows"
            output.say(f"Deleted with {step.name}: {rows}.")
    for line in dict.fromkeys(line for step in plan.steps for line in step.commands):
        output.say(f"Now run: {line}", soft_wrap=True)
