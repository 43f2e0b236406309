"""fs training-sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from featurestore.cli.output import Output, confirmed, repo_command
from featurestore.ledger.saved_sets import SavedSet, lost_pins, read_set
from featurestore.store import FeatureStore


@click.command("training-sets")
@click.option("--delete", metavar="NAME", help="Delete this one; its name is free again.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@repo_command
def command(store: FeatureStore, output: Output, delete: str | None, yes: bool) -> None:
    """List the saved training sets, or delete one.

    Old table versions stay while a set is pinned to them. After it is deleted, fs optimize and fs gc remove them.
    """
    if delete is None:
        lost = {found.name: found.what for found in lost_pins(store.workspace, are_shown=True)}
        _show([_document(saved, lost.get(saved.name)) for saved in store.list_training_sets()], output)
        return
    saved = read_set(store.workspace.ledger, store.project, delete)
    if not yes:
        question = f"Delete training set {saved.name}? It can then not be built again"
        confirmed(question, "There is no terminal to ask on: pass --yes to delete.")
    store.delete_training_set(saved.name)
    output.emit({"name": saved.name, "deleted": True})
    output.say(f"Training set {saved.name} is deleted.")


def _show(documents: Sequence[dict[str, Any]], output: Output) -> None:
    output.emit(documents)
    if not documents:
        output.say("No training set is saved: `fs training-set` saves one with --save NAME.")
        return
    rows = [
        (
            each["name"],
            each["saved_at"][:19].replace("T", " "),
            f"{each['rows']:,}",
            each["features"],
            each["registry_revision"],
            ", ".join(f"{name} {'-' if v is None else v}" for name, v in each["table_versions"].items()),
        )
        for each in documents
    ]
    output.table(("name", "when", "rows", "features", "revision", "table versions"), rows)
    for each in documents:
        if each["lost"] is not None:
            output.say(f"{each['name']} cannot be built again: {each['lost']} is gone.", style="red")


def _document(saved: SavedSet, lost: str | None) -> dict[str, Any]:
    return {
        "name": saved.name,
        "rows": saved.certificate["rows"],
        "features": len(saved.certificate["features"]),
        "saved_at": saved.certificate["certified_at"],
        "registry_revision": saved.registry_revision,
        "lost": lost,
        "table_versions": {read.name: read.version for read in saved.reads},
    }
