"""fs doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.exits import EXIT_FAILED
from featurestore.cli.output import Output, repo_command
from featurestore.maintenance.doctor import examine
from featurestore.store import FeatureStore

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command("doctor")
@repo_command
def command(store: FeatureStore, output: Output) -> Any:
    """Check settings, feature repo, registry, sources, stores, versions and clock. Exits with 1 if one fails."""
    checks = examine(store.workspace)

    def render(console: Console) -> None:
        from rich.text import Text

        for check in checks:
            line = Text.assemble((f"{check.state:<8}", _STYLES[check.state]), f"{check.name}: {check.message}")
            console.print(line)
            if check.hint:
                console.print(f"        {check.hint}", markup=False)

    output.emit(checks, render)
    return EXIT_FAILED if any(check.state == "failed" for check in checks) else 0
