"""What only reads receives readers, and a reader has no way to write. The type checker does the rest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from featurestore_registry.interface import (
    Definitions,
    DefinitionsReader,
    Journal,
    JournalReader,
    Ledger,
    LedgerReader,
    RegistryReader,
)

import featurestore
from featurestore.offline.interface import BlobReader, Blobs, OfflineReader, OfflineStore
from featurestore.online.interface import OnlineReader, OnlineStore
from featurestore.workspace import Readers

PACKAGE = Path(featurestore.__file__).parent
READING = [
    *(
        "plan/changes",
        "plan/classes",
        "plan/notices",
        "plan/planning",
        "plan/promoting",
        "plan/remedies",
        "plan/schemas",
    ),
    *("consistency/clocks", "consistency/online_rows", "consistency/ownership", "consistency/remains"),
    *("ledger/progress", "training/coverage", "training/frames", "training/joins", "training/outputs"),
    *("maintenance/doctor", "maintenance/peek", "maintenance/sampling", "maintenance/status"),
    *("maintenance/superseded", "maintenance/verify", "request/features", "request/on_demand"),
    *("serving/compiled", "serving/read", "serving/views", "server/watch/clocks", "server/watch/parts"),
    *("server/read/endpoints", "server/read/templates", "cli/commands/status", "cli/commands/show"),
    *("maintenance/sampling_windows", "maintenance/sizes", "following/lag", "following/mark", "server/watch/windows"),
]
"""Modules in which nothing writes."""
WRITERS = {"Workspace", "Registry", "Definitions", "Ledger", "OfflineStore", "Blobs", "OnlineStore", "PartMarkers"}


@pytest.mark.uncounted
@pytest.mark.parametrize("module", READING)
def test_what_only_reads_receives_nothing_that_writes(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    assert {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & WRITERS == set()


@pytest.mark.parametrize(
    ("reader", "writer", "reads"),
    [
        (DefinitionsReader, Definitions, {"head", "chain", "read", "history", "projects"}),
        (LedgerReader, Ledger, {"latest", "scan"}),
        (JournalReader, Journal, {"exists", "scan", "newest"}),
        (BlobReader, Blobs, {"get", "list"}),
        (
            OfflineReader,
            OfflineStore,
            {"current", "version", "changes", "tables", "verify", "open", "find_commit", "owner", "last_generation"}
            | {"blobs", "blob_kinds"},
        ),
        (
            OnlineReader,
            OnlineStore,
            {"mget", "get", "scan", "facts", "is_untouched", "reader", "marker_tags", "mark_buckets"},
        ),
    ],
)
def test_a_reader_only_reads(reader: type, writer: type, reads: set[str]) -> None:
    assert public(reader) == reads
    assert issubclass(writer, reader)
    assert public(writer) > reads


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_parts_of_readers_are_readers() -> None:
    parts = {part.fget.__annotations__["return"] for part in vars(Readers).values() if isinstance(part, property)}
    assert parts & WRITERS == set()
    assert {"RegistryReader", "LedgerReader", "OfflineReader", "OnlineReader"} <= parts
    assert RegistryReader.__annotations__ == {
        "definitions": "DefinitionsReader",
        "ledger": "LedgerReader",
        "journal": "JournalReader",
    }
