"""A project in a temporary folder, applied without a command line: stores are real, the clock is the test's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from featurestore_registry.records import Change

from featurestore.definitions import Definition
from featurestore.project.loader import collect
from featurestore.project.settings import make_settings
from featurestore.registered.records import to_record
from featurestore.workspace import Workspace
from support.clock import ManualClock


def make_workspace(
    tmp_path: Path,
    definitions: Iterable[Definition],
    *,
    online_url: str | Mapping[str, object] | None = None,
    now_us: datetime | str | int,
    project: str = "shop",
) -> Workspace:
    """Return a workspace in ``tmp_path`` with the definitions applied (parts included, schemas declared).

    Paths of sources are relative to ``tmp_path``; the online store is LMDB there without ``online_url``, which may be
    a mapping of the URL and options. Called again with the same folder it applies on top of what is there.
    ``workspace.clock`` is a `ManualClock`.
    """
    settings = {"project": project, "online_store": online_url or "lmdb:///data/online"}
    known = collect(definitions)
    workspace = Workspace(tmp_path, make_settings(settings), code=known, clock=ManualClock(now_us))
    apply_records(workspace, known)
    return workspace


def apply_records(workspace: Workspace, definitions: Iterable[Definition], *, generation: int = 1) -> None:
    """Put the definitions' records into the registry as they are, without a plan."""
    records = [to_record(workspace.project, found, generation=generation) for found in definitions]
    changes = [Change("put", record.kind, record.name, record) for record in records]
    definitions = workspace.registry.definitions
    head = definitions.chain(workspace.project).head
    definitions.apply(workspace.project, head, changes, author="test", message="", commit="")
