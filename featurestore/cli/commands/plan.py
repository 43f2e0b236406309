"""fs plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featurestore.cli.exits import EXIT_PENDING
from featurestore.cli.output import Output, repo_command
from featurestore.cli.plans import plan_document, render_plan
from featurestore.store import FeatureStore


@click.command("plan")
@click.option("--check", is_flag=True, help="Exit with 3 when changes are pending (for CI).")
@click.option("--markdown", metavar="FILE", type=click.Path(dir_okay=False), help="Write it for a pull request, too.")
@click.option("--refresh-schema", is_flag=True, help="Take in columns that sources have gained.")
@click.option("--prepare", is_flag=True, help="Fill new views and generations before they are served.")
@repo_command
def command(
    store: FeatureStore, output: Output, check: bool, markdown: str | None, refresh_schema: bool, prepare: bool
) -> Any:
    """Show what `fs apply` would change, how deep each change goes, and what would be lost."""
    plan = store.plan(refresh_schema=refresh_schema, prepare=prepare)
    output.emit(plan_document(plan))
    render_plan(output, plan)
    if markdown is not None:
        from featurestore.cli.markdown import plan_markdown

        try:
            Path(markdown).write_text(plan_markdown(plan), "utf-8")
        except OSError as error:
            raise click.FileError(markdown, error.strerror or str(error)) from None
    return EXIT_PENDING if check and plan.steps else 0
