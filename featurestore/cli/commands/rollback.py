"""fs rollback."""

from __future__ import annotations

import click

from featurestore.cli.applying import allowing_options, apply_shown
from featurestore.cli.output import Output, repo_command
from featurestore.store import FeatureStore


@click.command("rollback")
@click.argument("revision")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@allowing_options
@click.option("--prepare", is_flag=True, help="Fill new views and generations before they are served.")
@click.option("--message", "-m", default="", help="Why; kept in the history.")
@repo_command
def command(
    store: FeatureStore,
    output: Output,
    revision: str,
    names: tuple[str, ...],
    yes: bool,
    allow_breaking: bool,
    allow_destroy: bool,
    prepare: bool,
    message: str,
) -> None:
    """Bring back the definitions of REVISION (its number, or the beginning of its hash) as a new revision.

    With NAMEs only what they name goes back (kind:name where several kinds share one). The feature repo's files are not
    changed: the next `fs apply` would undo it.
    """
    plan = store.plan_rollback(revision, names or None, prepare=prepare)
    apply_shown(
        store,
        output,
        plan,
        yes=yes,
        allow_breaking=allow_breaking,
        allow_destroy=allow_destroy,
        message=message,
    )
