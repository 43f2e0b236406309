"""Showing a plan, asking about it, and applying it: the same for every command that changes definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from featurestore.cli.output import Output, confirmed
from featurestore.cli.plans import plan_document, render_plan
from featurestore.plan import Plan, check_allowed, check_code
from featurestore.store import FeatureStore


def allowing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--yes``, ``--allow-breaking`` and ``--allow-destroy``."""
    for option in (
        click.option("--allow-destroy", is_flag=True, help="Allow changes that delete data."),
        click.option("--allow-breaking", is_flag=True, help="Allow changes that break readers."),
        click.option("--yes", "-y", is_flag=True, help="Do not ask (metadata, compatible and rebuild changes)."),
    ):
        function = option(function)
    return function


def apply_shown(
    store: FeatureStore,
    output: Output,
    plan: Plan,
    *,
    yes: bool,
    allow_breaking: bool,
    allow_destroy: bool,
    message: str,
) -> None:
    """Print a plan, check its classes against the flags, ask unless ``yes``, and apply it."""
    render_plan(output, plan)
    check_allowed(plan, allow_breaking=allow_breaking, allow_destroy=allow_destroy)
    check_code(store.workspace, plan)
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
