"""fs apply."""

from __future__ import annotations

import click

from featurestore.cli.applying import allowing_options, apply_shown
from featurestore.cli.output import Output, repo_command
from featurestore.store import FeatureStore


@click.command("apply")
@allowing_options
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
    apply_shown(
        store,
        output,
        plan,
        yes=yes,
        allow_breaking=allow_breaking,
        allow_destroy=allow_destroy,
        message=message,
    )
