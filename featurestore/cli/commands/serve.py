"""fs serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.numbers import WholeNumber
from featurestore.cli.shared import given, shared_options

if TYPE_CHECKING:
    from featurestore.server.watch.logs import Format


@click.command("serve")
@shared_options("repo", "debug")
@click.option("--host", help="Address to bind (default: server.host, 127.0.0.1).")
@click.option("--port", type=WholeNumber(0, 65535), help="Port to bind (default: server.port, 6566; 0: any free).")
@click.option("--workers", type=WholeNumber(1, 256), help="Processes (default: server.workers, 1).")
@click.option(
    "--open",
    "reopen",
    is_flag=True,
    help="Serve without tokens again, even if this repo's servers were closed. On loopback only.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Logs on standard error as lines for people, or as one JSON object a line.",
)
def command(
    host: str | None,
    port: int | None,
    workers: int | None,
    reopen: bool,
    log_format: Format,
    **_: Any,
) -> None:
    """Serve features over HTTP until interrupted.

    Beyond loopback a token is needed: make one with fs token create, or set FS_SERVER_TOKEN (32 characters or more).
    Every request then carries it: Authorization: Bearer <token>. A server that has seen a token, or whose setting
    server.auth is required, is closed on loopback too, and stays so until fs serve --open.
    """
    from featurestore.server.run import serve

    repo, debug = given("repo") or Path(), bool(given("debug"))
    serve(repo, host=host, port=port, workers=workers, reopen=reopen, debug=debug, log_format=log_format)
