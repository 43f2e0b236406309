"""fs registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.backends import copy_registry, upgrade_registry
from featurestore.cli.numbers import WholeNumber
from featurestore.cli.output import Output, repo_command
from featurestore.cli.shared import given, shared_options
from featurestore.store import FeatureStore

if TYPE_CHECKING:
    from featurestore.server.watch.logs import Format


@click.group("registry")
@shared_options()
def command(**_: Any) -> None:
    """Look after the registry that the settings name."""


@command.command("serve")
@shared_options("repo", "debug")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--port", type=WholeNumber(0, 65535), default=6570, show_default=True, help="Port to bind (0: any free).")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Logs on standard error as lines for people, or as one JSON object a line.",
)
def serve(host: str, port: int, log_format: Format, **_: Any) -> None:
    """Serve the registry over HTTP until interrupted, to all who have a token.

    The first token is made where the registry is: fs token create --role admin --all-projects. Clients set registry to
    this server's URL, and FS_REGISTRY_TOKEN. Beyond this machine put TLS before it.
    """
    from featurestore.server.run import serve_registry

    repo, debug = given("repo") or Path(), bool(given("debug"))
    serve_registry(repo, host=host, port=port, debug=debug, log_format=log_format)


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


@command.command("copy")
@click.argument("url")
@repo_command
def copy(store: FeatureStore, output: Output, url: str) -> None:
    """Copy the registry that the settings name to URL: another database, or a new SQLite file.

    Everything is copied as it is: revisions keep their hashes, runs, tokens and the journal their order. Writers wait
    meanwhile. URL must hold no registry yet; a password in it is better in PGPASSWORD or ~/.pgpass.
    """
    counts = copy_registry(store.settings.registry, url, store.root)
    output.emit({"rows": counts})
    output.table(("copied", "number"), [(said, f"{counts[f'registry_{name}']:,}") for name, said in _COPIED.items()])
    output.say("Set `registry` to it now. What is written to the old one from now on is not in the copy.")


_COPIED = {"project": "projects", "revision": "revisions", "ledger": "ledger entries", "journal": "journal entries"}
