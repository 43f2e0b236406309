"""fs promote."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.applying import allowing_options, apply_shown
from featurestore.cli.exits import EXIT_PENDING
from featurestore.cli.output import Output, repo_command
from featurestore.cli.plans import plan_document, render_plan
from featurestore.store import FeatureStore


@click.command("promote")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--from", "source", required=True, metavar="PROJECT", help="The project that has the definitions.")
@click.option("--to", "target", metavar="PROJECT", help="The project that gets them (default: the repo's).")
@click.option("--at", metavar="REVISION", help="Take them from this revision (default: the newest).")
@click.option("--source", "paths", multiple=True, metavar="NAME=PATH", help="What a source reads in the target.")
@click.option("--no-servers", is_flag=True, help="No server serves the target yet: nobody has to have on-demand code.")
@click.option("--check", is_flag=True, help="Show the plan alone; exit with 3 when changes are pending.")
@allowing_options
@click.option("--prepare", is_flag=True, help="Fill new views and generations before they are served.")
@click.option("--message", "-m", default="", help="Why; kept in the history.")
@repo_command
def command(
    store: FeatureStore,
    output: Output,
    names: tuple[str, ...],
    source: str,
    target: str | None,
    at: str | None,
    paths: tuple[str, ...],
    no_servers: bool,
    check: bool,
    yes: bool,
    prepare: bool,
    message: str,
    **allowed: bool,
) -> Any:
    """Bring definitions (views, services, anything with a name) from one project of a registry to another.

    They come as the project has them stored, with all that they depend on; what is not named stays as it is. A source
    that the target has keeps its path. Data does not travel: the plan says what to materialize. Code does not either:
    while servers of the target lack the code of an on-demand view that changes, nothing is applied.
    """
    wrong = next((each for each in paths if not all(each.partition("=")[::2])), None)
    if wrong is not None:
        raise click.UsageError(f"--source {wrong!r} is not NAME=PATH.")
    with store.in_project(target or store.project) as to:
        plan = to.plan_promotion(
            names,
            source,
            at=at,
            paths=dict(each.split("=", 1) for each in paths),
            has_servers=not no_servers,
            prepare=prepare,
        )
        if not check:
            apply_shown(to, output, plan, yes=yes, message=message, **allowed)
            return 0
        output.emit(plan_document(plan))
        render_plan(output, plan)
        return EXIT_PENDING if plan.steps else 0
