"""fs show."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click
from featurestore_registry.records import Record

from featurestore.cli.output import Output, repo_command
from featurestore.cli.tables import table
from featurestore.errors import NotFoundError, did_you_mean
from featurestore.registered.records import kind_named
from featurestore.store import FeatureStore
from featurestore.types.times import duration_text

if TYPE_CHECKING:
    from rich.console import Console


@click.command("show")
@click.argument("name")
@repo_command
def command(store: FeatureStore, output: Output, name: str) -> None:
    """Show everything registered under NAME (write kind:name where several kinds share it)."""
    snapshot = store.workspace.snapshot()
    kind, _, bare = name.rpartition(":")
    wanted = kind_named(kind) if kind else None
    records = [r for r in snapshot.records if r.name == bare and wanted in (None, r.kind)]
    if not records:
        known = [record.name for record in snapshot.records]
        raise NotFoundError(f"Nothing called {name!r} is registered.", hint=did_you_mean(bare, known), name=name)
    users = {record.key: [r.key for r in snapshot.records if record.key in r.depends_on] for record in records}
    documents = [_document(record, users[record.key]) for record in records]

    def render(console: Console) -> None:
        for document in documents:
            _render(console, document)

    output.emit(documents, render)


def _document(record: Record, used_by: list[str]) -> dict[str, Any]:
    return {
        "kind": record.kind,
        "name": record.name,
        "description": record.description,
        "owner": record.owner,
        "tags": dict(record.tags),
        "fields": [
            {"name": f.name, "type": f.type, "description": f.description, "inputs": list(f.inputs)}
            for f in record.fields
        ],
        "depends_on": list(record.depends_on),
        "used_by": used_by,
        "fingerprint": record.fingerprint,
        "definition": dict(record.document),
    }


def _render(console: Console, document: dict[str, Any]) -> None:
    from rich.markup import escape

    console.print(f"[bold]{document['kind'].replace('_', ' ')} {document['name']}[/bold]")
    for key in ("description", "owner"):
        if document[key]:
            console.print(f"  {key}: {escape(document[key])}")
    if document["tags"]:
        console.print("  tags: " + escape(", ".join(f"{k}={v}" for k, v in document["tags"].items())))
    for key, value in document["definition"].items():
        if key not in ("schema", "join_keys", "features", "inputs", "entities", "sources") and value is not None:
            value = duration_text(value) if key.endswith("_us") else value
            console.print(f"  {key.removesuffix('_us').replace('_', ' ')}: {escape(_text(value))}")
    for key in ("depends_on", "used_by"):
        if document[key]:
            console.print(f"  {key.replace('_', ' ')}: {', '.join(document[key])}")
    if document["fields"]:
        rows = [(f["name"], f["type"], f["description"], ", ".join(f["inputs"])) for f in document["fields"]]
        table(console, ("column", "type", "description", "from"), rows)


def _text(value: Any) -> str:
    """Return a value as a person reads it; code and SQL stand on lines of their own, indented."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    if "\n" not in text.strip():
        return text.strip()
    return "\n" + textwrap.indent(textwrap.dedent(text.strip("\n")).rstrip(), "    ")
