"""fs logout."""

from __future__ import annotations

import click

from featurestore.cli.commands.login import log_out
from featurestore.cli.output import Output, repo_command
from featurestore.store import FeatureStore


@click.command("logout")
@repo_command
def command(store: FeatureStore, output: Output) -> None:
    """Forget the token that `fs login` kept for the repo's registry."""
    log_out(store, output)
