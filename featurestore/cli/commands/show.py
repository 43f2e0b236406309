"""fs show."""

from __future__ import annotations

import textwrap
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click
from featurestore_registry.records import Record

from featurestore.cli.output import Output, described, repo_command
from featurestore.definitions import FeatureView
from featurestore.errors import OnlineStoreError
from featurestore.maintenance.sizes import Sizes, sizes_of
from featurestore.plan import keys_named, snapshot_at
from featurestore.registered.records import aggregation_from, rules_told
from featurestore.store import FeatureStore
from featurestore.types.times import duration_text

_ELSEWHERE = frozenset({"schema", "join_keys", "features", "inputs", "entities", "sources", "aggregations", "expect"})
"""Parts of a definition that are shown as tables, or as what it depends on."""


@click.command("show")
@click.argument("name")
@click.option("--at", metavar="REVISION", help="As it was at a revision: its number, or the beginning of its hash.")
@repo_command
def command(store: FeatureStore, output: Output, name: str, at: str | None) -> None:
    """Show everything registered under NAME (write kind:name where several kinds share it)."""
    workspace = store.workspace
    snapshot = workspace.snapshot()
    if at is not None:
        snapshot = snapshot_at(workspace.registry.definitions, workspace.project, at)
    keys = keys_named([snapshot], name)
    records = [record for record in snapshot.records if record.key in keys]
    users = {record.key: [r.key for r in snapshot.records if record.key in r.depends_on] for record in records}
    sizes = {record.key: _sizes(store, record) for record in records if at is None}
    documents = [_document(record, users[record.key], sizes.get(record.key)) for record in records]
    output.emit(documents)
    if at is not None:
        output.say(f"At revision {snapshot.revision}:")
    for document in documents:
        _show(output, document)


def _sizes(store: FeatureStore, record: Record) -> Sizes | None:
    """Return how large the online records of a view with windows are, if there are any and their store answers."""
    registered = store.workspace.snapshot().views.get(record.name) if record.kind == FeatureView.kind else None
    if registered is None or not (registered.view.aggregations and registered.view.online):
        return None
    with suppress(OnlineStoreError):
        return sizes_of(store.workspace, registered)
    return None


def _document(record: Record, used_by: list[str], sizes: Sizes | None) -> dict[str, Any]:
    schema = record.document.get("schema") or ()
    deprecated = {field["name"]: field.get("deprecated", "") for field in schema}
    expected = {field["name"]: rules_told(field.get("expect", ()), field["type"]) for field in schema}
    return {
        "kind": record.kind,
        "name": record.name,
        "description": record.description,
        "owner": record.owner,
        "tags": dict(record.tags),
        "fields": [
            {
                "name": f.name,
                "type": f.type,
                "description": f.description,
                "deprecated": deprecated.get(f.name, ""),
                "inputs": list(f.inputs),
                "expect": expected.get(f.name, []),
            }
            for f in record.fields
        ],
        "expect": rules_told(record.document.get("expect", ())),
        "depends_on": list(record.depends_on),
        "used_by": used_by,
        "fingerprint": record.fingerprint,
        "definition": dict(record.document),
        "online_records": None if sizes is None else asdict(sizes),
    }


def _show(output: Output, document: dict[str, Any]) -> None:
    output.say(f"{document['kind'].replace('_', ' ')} {document['name']}", style="bold")
    for key in ("description", "owner"):
        if document[key]:
            output.say(f"  {key}: {document[key]}")
    if document["tags"]:
        output.say("  tags: " + ", ".join(f"{k}={v}" for k, v in document["tags"].items()))
    for key, value in document["definition"].items():
        if key not in _ELSEWHERE and value is not None:
            value = duration_text(value) if key.endswith("_us") else value
            first, *code = _lines(value)
            output.say(f"  {key.removesuffix('_us').replace('_', ' ')}: {first}".rstrip())
            for line in code:
                output.say(f"    {line}".rstrip())
    for key in ("depends_on", "used_by"):
        if document[key]:
            output.say(f"  {key.replace('_', ' ')}: {', '.join(document[key])}")
    if document["fields"]:
        rows = [
            (f["name"], f["type"], described(f["description"], f["deprecated"]), ", ".join(f["inputs"]))
            for f in document["fields"]
        ]
        output.table(("column", "type", "description", "from"), rows)
    rules = [f"{field['name']}: {rule}" for field in document["fields"] for rule in field["expect"]]
    for rule in (*rules, *document["expect"]):
        output.say(f"  expects {rule}")
    if "aggregations" in document["definition"]:
        _show_windows(output, document["definition"]["aggregations"])
    if (sizes := document["online_records"]) is not None:
        names = "tiles", "bytes", "newest_events"
        told = [(name.replace("_", " "), f"{sizes[name][0]:,}", f"{sizes[name][1]:,}") for name in names]
        output.table((f"of {sizes['records']:,} records", "median", "greatest"), told, right=("median", "greatest"))


def _show_windows(output: Output, aggregations: list[dict[str, Any]]) -> None:
    """Show how the windows move: each one's step, and of how many tiles the online store makes it at most."""
    rows = []
    for window in (each for found in aggregations for each in aggregation_from(found).features):
        is_all = window.length_us is None
        tiles = 1 if window.length_us is None else window.length_us // window.resolution_us + 1
        rows.append((window.name, "" if is_all else duration_text(window.resolution_us), f"{tiles:,}"))
    output.table(("window", "resolution", "tiles at most"), rows)


def _lines(value: Any) -> list[str]:
    """Return a value as a person reads it; code and SQL stand on lines of their own."""
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if "\n" not in text.strip():
        return [text.strip()]
    return ["", *textwrap.dedent(text.strip("\n").expandtabs()).rstrip().split("\n")]
