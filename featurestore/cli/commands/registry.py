"""fs registry."""

from __future__ import annotations

from typing import Any

import click

from featurestore.backends import upgrade_registry
from featurestore.cli.output import Output, repo_command
from featurestore.cli.shared import shared_options
from featurestore.store import FeatureStore


@click.group("registry")
@shared_options()
def command(**_: Any) -> None:
    """Look after the registry that the settings name."""


@command.command("upgrade")
@repo_command
def upgrade(store: FeatureStore, output: Output) -> None:
    """Bring the registry's tables to the schema of this version, in one transaction.

    A file is upgraded by whoever opens it. A database that machines share waits for this command: programs of earlier
    versions refuse it from then on, so upgrade them first, or right after. Back the database up before.
    """
    before, now = upgrade_registry(store.settings.registry, store.root)
    output.emit({"before": before, "now": now})
    if before == now:
        output.say(f"The registry has schema {now}: nothing to do.")
    else:
        output.say(f"The registry has schema {now} now{f', it had {before}' if before else ''}.")
