"""fs logout."""

from __future__ import annotations

import click

from featurestore.cli.commands.login import log_out
from featurestore.cli.output import Output, repo_command
from featurestore.store import FeatureStore


@click.command("logout")
@click.argument("registry_url", metavar="[URL]", required=False)
@repo_command
def command(store: FeatureStore, output: Output, registry_url: str | None) -> None:
    """End what `fs login` began at the registry at URL, by default the repo's, and forget its token."""
    log_out(store, output, registry_url)
