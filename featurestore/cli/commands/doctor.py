"""fs doctor."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.exits import EXIT_FAILED
from featurestore.cli.output import Output, repo_command
from featurestore.maintenance.doctor import examine
from featurestore.store import FeatureStore

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command("doctor")
@repo_command
def command(store: FeatureStore, output: Output) -> Any:
    """Check settings, feature repo, registry, sources, stores, versions and clock. Exits with 1 if one fails."""
    checks = examine(store.workspace)
    output.emit(checks)
    for check in checks:
        output.say((f"{check.state:<8}", _STYLES[check.state]), f"{check.name}: {check.message}")
        if check.hint:
            output.say(f"        {check.hint}")
    return EXIT_FAILED if any(check.state == "failed" for check in checks) else 0
