"""fs catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featurestore.cli.numbers import WholeNumber
from featurestore.cli.shared import given, shared_options


@click.command("catalog")
@shared_options("repo", "debug")
@click.option("--port", type=WholeNumber(0, 65535), default=6571, show_default=True, help="Port to bind (0: any free).")
@click.option("--no-browser", is_flag=True, help="Print the address alone.")
def command(port: int, no_browser: bool, **_: Any) -> None:
    """Show the catalog in a browser until interrupted: what there is, what it looks like, whether it is fresh.

    It shows the registry that the settings name, wherever that is, and only to this machine. It changes nothing. A
    registry served to a team shows the same pages at its own address.
    """
    from featurestore.server.run import serve_catalog

    serve_catalog(given("repo") or Path(), port=port, opens=not no_browser, debug=bool(given("debug")))
