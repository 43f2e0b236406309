"""Checking a deployment: settings, feature repo, registry, sources, stores, versions, clock."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from featurestore_registry.auth import tokens

from featurestore.backends import local_path
from featurestore.definitions import FeatureView
from featurestore.errors import FeatureStoreError, RepositoryError
from featurestore.metadata.access import FILE_NAME as ACCESS_FILE
from featurestore.metadata.access import read_access
from featurestore.metadata.belonging import compare_all
from featurestore.metadata.clocks import (
    ONLINE_STORE,
    REGISTRY,
    SYNCHRONISE,
    clock_problem,
    online_ahead_us,
    registry_ahead_us,
)
from featurestore.metadata.workspace import Workspace
from featurestore.online.interface import eviction_of
from featurestore.project.loader import load_definitions
from featurestore.types.times import to_rfc3339

LOW_DISK_BYTES = 1 << 30
PACKAGES = ("featurestore", "duckdb", "deltalake", "pyarrow", "lmdb", "redis", "fastapi", "sqlalchemy")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    state: Literal["ok", "warning", "failed"]
    message: str
    hint: str = ""


def examine(workspace: Workspace) -> list[Check]:
    """Check everything that can be checked without changing anything. Never raises for what it finds."""
    checks = [Check("versions", "ok", _versions())]
    for name, look in (
        ("feature repo", _feature_repo),
        ("registry", _registry),
        ("clock", _clock),
        ("sources", _sources),
        ("offline store", _offline),
        ("online store", _online),
        ("identities", _identities),
        ("write access", _write_access),
        ("access", _access),
    ):
        checks += _guarded(name, look, workspace)
    return checks


def _guarded(name: str, look: Callable[[Workspace], Iterator[Check]], workspace: Workspace) -> list[Check]:
    try:
        return list(look(workspace))
    except FeatureStoreError as error:
        return [Check(name, "failed", error.message, error.hint)]


def _versions() -> str:
    python = ".".join(map(str, sys.version_info[:3]))
    return f"Python {python}, SQLite {sqlite3.sqlite_version}, " + ", ".join(
        f"{package} {version(package)}" for package in PACKAGES
    )


def _feature_repo(workspace: Workspace) -> Iterator[Check]:
    try:
        definitions = load_definitions(workspace.root)
    except RepositoryError as error:
        yield Check("feature repo", "failed", error.message, error.hint)
        return
    yield Check("feature repo", "ok", f"{len(definitions)} definitions in {workspace.root}")


def _registry(workspace: Workspace) -> Iterator[Check]:
    snapshot = workspace.snapshot()
    if snapshot.revision == 0 and workspace.offline.tables(workspace.project):
        message = f"the registry does not know project {snapshot.project}, whose tables the offline store holds"
        yield Check("registry", "failed", message, "Check `registry` and `project` in the settings, and FS_REGISTRY.")
    elif snapshot.revision == 0:
        yield Check("registry", "warning", f"project {snapshot.project} was never applied", "Run `fs apply`.")
    else:
        yield Check("registry", "ok", f"project {snapshot.project} is at revision {snapshot.revision}")
    mismatched = [name for name in snapshot.on_demand if snapshot.function(name) is None]
    if mismatched:
        yield Check(
            "on-demand code",
            "failed",
            f"the code of {', '.join(mismatched)} here is not what was applied",
            "Run `fs plan`, then `fs apply`, or check out the applied version.",
        )


def _clock(workspace: Workspace) -> Iterator[Check]:
    now_us = workspace.clock()
    ahead_us = registry_ahead_us(workspace.registry, workspace.project, now_us)
    if told := clock_problem(REGISTRY, ahead_us):
        yield Check("clock", "failed", f"{told} Here it is {to_rfc3339(now_us)}.", SYNCHRONISE)
    else:
        yield Check("clock", "ok", to_rfc3339(now_us))


def _sources(workspace: Workspace) -> Iterator[Check]:
    from featurestore.engine.schema import check_columns

    views = [found for found in workspace.snapshot().list(FeatureView.kind) if isinstance(found, FeatureView)]
    for view in views:
        try:
            check_columns(view, workspace.engine.columns(view))
        except FeatureStoreError as error:
            yield Check(f"source of {view.name}", "failed", error.message, error.hint)
        else:
            names = ", ".join(source.path for source in view.batch_sources)
            yield Check(f"source of {view.name}", "ok", names)


def _offline(workspace: Workspace) -> Iterator[Check]:
    folder = local_path(workspace.settings.offline_store.url, workspace.root)
    tables = workspace.offline.tables(workspace.project)
    yield Check("offline store", "ok", f"{len(tables)} tables in {folder}")
    for table in tables:
        try:
            workspace.offline.current(table)
        except FeatureStoreError as error:
            yield Check(f"table {table}", "failed", error.message, error.hint)
    free = shutil.disk_usage(_existing(folder)).free
    state: Literal["ok", "warning"] = "ok" if free >= LOW_DISK_BYTES else "warning"
    hint = "" if state == "ok" else "Free some space: a run that finds the disk full changes nothing, but fails."
    yield Check("disk", state, f"{free / 1e9:,.1f} GB free below {folder}", hint)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _online(workspace: Workspace) -> Iterator[Check]:
    facts = workspace.online.facts()
    yield Check("online store", "ok", ", ".join(f"{name} {value}" for name, value in facts.items()))
    if told := clock_problem(ONLINE_STORE, online_ahead_us(facts)):
        yield Check("clock of the online store", "failed", told, SYNCHRONISE)
    if told := eviction_of(facts):
        yield Check("eviction", "warning", told, "Run `CONFIG SET maxmemory-policy noeviction`.")
    alone = int(facts.get("primaries_without_replica", 0))
    if alone:
        count = "1 primary has" if alone == 1 else f"{alone} primaries have"
        yield Check(
            "replicas",
            "warning",
            f"{count} no replica: when such a node is gone, so are its slots, and their reads and writes fail",
            "Add a replica for each with `CLUSTER REPLICATE`. The online store's line tells which have none.",
        )


def _identities(workspace: Workspace) -> Iterator[Check]:
    found, failure = compare_all(workspace)
    if failure is not None:
        yield Check("identities", "warning", "the online store could not be asked whose its records are", failure.hint)
    for mismatch in found:
        yield Check(mismatch.view, "warning" if mismatch.heals else "failed", mismatch.message, mismatch.hint)
    if not found and failure is None and (identity := workspace.snapshot().chain.identity):
        yield Check("identities", "ok", f"registry and stores belong to project {workspace.project} ({identity[:12]})")


def _write_access(workspace: Workspace) -> Iterator[Check]:
    for name, folder in _folders(workspace):
        found = _existing(folder)
        if not _is_writable(found):
            yield Check(
                f"{name} folder",
                "warning",
                f"{found} is not writable for this user: commands that change something fail here",
                f"Run them as the user that owns it, or let this user write: `chown` or `chmod` {found}.",
            )


def _access(workspace: Workspace) -> Iterator[Check]:
    """Tell whether `fs serve` here wants a token on loopback, too; FS_SERVER_TOKEN is known to the server alone."""
    kept = read_access(workspace.root / ACCESS_FILE)
    held = tokens(workspace.ledger, workspace.project)
    if workspace.settings.server.auth == "required":
        why: str | None = "server.auth is `required`"
    else:
        why = kept.closed or ("the registry holds tokens" if held else None)
    is_damaged = kept.closed is not None and not kept.is_whole
    if why is None:
        yield Check("access", "ok", "a server on loopback is open to all who reach it: no token is known here")
    else:
        hint = "A server makes the file anew when it starts, and stays closed." if is_damaged else ""
        if not hint and not any(token.id not in kept.revoked for token in held):
            hint = "No token of the registry passes: make one with `fs token create`, unless FS_SERVER_TOKEN is set."
        yield Check("access", "warning" if hint else "ok", f"servers are closed: {why}", hint)


def _folders(workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """Yield the folders that are written to here; a database in a file has others beside it."""
    settings, root = workspace.settings, workspace.root
    yield "registry", local_path(settings.registry.url, root).parent
    yield "offline", local_path(settings.offline_store.url, root)
    if settings.online_store.url.startswith("lmdb:"):
        yield "online", local_path(settings.online_store.url, root)


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
