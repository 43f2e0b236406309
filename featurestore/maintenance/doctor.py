"""Checking a deployment: settings, feature repo, registry, sources, stores, versions, clock."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from featurestore_registry.auth import tokens

from featurestore.consistency.belonging import compare_all
from featurestore.consistency.clocks import (
    AHEAD,
    ONLINE_STORE,
    REGISTRY,
    SYNCHRONISE,
    clock_problem,
    covered_ahead,
    online_ahead_us,
    registry_ahead_us,
)
from featurestore.consistency.eviction import NO_EVICTION, evicted, lack_of_room, windows_at_risk
from featurestore.errors import FeatureStoreError, OfflineStoreError, OnlineStoreError, RegistryError
from featurestore.following.lag import least_mark
from featurestore.online.interface import READ_ONLY, UNTOUCHED, eviction_of
from featurestore.project.access import FILE_NAME as ACCESS_FILE
from featurestore.project.access import read_access
from featurestore.project.loader import load_definitions
from featurestore.quarantine.held import noted_held
from featurestore.quarantine.listing import lost_rows
from featurestore.served.shape import SECRET_HINT, lack_of_secret
from featurestore.types.times import to_rfc3339
from featurestore.workspace import Readers

LOW_DISK_BYTES = 1 << 30
SCRIPT_FLAWS = "CVE-2025-49844, CVE-2025-46817, CVE-2025-46818, CVE-2025-46819"
SOUND_SCRIPTS: dict[str, dict[tuple[int, int], int]] = {
    "redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
    "valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}
"""The first sound patch of each line of versions. Lines in between were never mended; all later lines are sound."""
PACKAGES = ("featurestore", "duckdb", "deltalake", "pyarrow", "lmdb", "redis", "fastapi", "sqlalchemy")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    state: Literal["ok", "warning", "failed"]
    message: str
    hint: str = ""


def examine(workspace: Readers) -> list[Check]:
    """Check everything that can be checked without changing anything. Never raises because of what it finds."""
    checks: list[Check] = []
    left: list[str] = []
    is_registry_known = True
    for name, look, needs_registry in (
        ("versions", _versions, False),
        ("feature repo", _feature_repo, False),
        ("registry", _registry, True),
        ("clock", _clock, True),
        ("sources", _sources, True),
        ("offline store", _offline, False),
        ("online store", _online, False),
        ("identities", _identities, True),
        ("windows", _windows, True),
        ("write access", _write_access, False),
        ("file modes", _file_modes, False),
        ("access", _access, True),
        ("served log", _served_log, True),
        ("quarantine", _quarantine, True),
    ):
        if needs_registry and not is_registry_known:
            left.append(name)  # each would wait for it, and fail alike
            continue
        try:
            for check in look(workspace):
                checks.append(check)  # those before a failure count
        except FeatureStoreError as error:
            checks.append(Check(name, "failed", error.message, error.hint))
            is_registry_known = is_registry_known and name != "registry"
    if left:
        checks.append(Check("not checked", "warning", f"{', '.join(left)}: only the registry tells what to look at"))
    return checks


def _versions(workspace: Readers) -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    yield Check("versions", "ok", f"Python {python}, SQLite {sqlite3.sqlite_version}, {packages}")


def _feature_repo(workspace: Readers) -> Iterator[Check]:
    yield Check("feature repo", "ok", f"{len(load_definitions(workspace.root))} definitions in {workspace.root}")


def _registry(workspace: Readers) -> Iterator[Check]:
    snapshot = workspace.snapshot()
    if snapshot.revision == 0 and workspace.offline.tables(workspace.project):
        message = f"the registry does not know project {snapshot.project}, whose tables the offline store holds"
        yield Check("registry", "failed", message, "Check `registry` and `project` in the settings, and FS_REGISTRY.")
    elif snapshot.revision == 0:
        yield Check("registry", "warning", f"project {snapshot.project} was never applied", "Run `fs apply`.")
    else:
        where = "" if "registry" in workspace.places else f", in {workspace.settings.registry.url}"
        yield Check("registry", "ok", f"project {snapshot.project} is at revision {snapshot.revision}{where}")
    mismatched = [name for name in snapshot.on_demand if snapshot.function(name) is None]
    if mismatched:
        yield Check(
            "on-demand code",
            "failed",
            f"the code of {', '.join(mismatched)} here is not what was applied",
            "Run `fs plan`, then `fs apply`, or check out the applied version.",
        )


def _served_log(workspace: Readers) -> Iterator[Check]:
    services = workspace.snapshot().services
    kept = [name for name, each in sorted(services.items()) if each.log is not None]
    if told := lack_of_secret(workspace, services.values()):
        yield Check("served log", "failed", f"{told} A server does not start so.", SECRET_HINT)
    elif kept:
        yield Check("served log", "ok", f"kept of {', '.join(kept)}")


def _quarantine(workspace: Readers) -> Iterator[Check]:
    found = lost_rows(workspace)
    for told in found.values():
        missing, _, todo = told.partition(". ")
        yield Check("quarantine", "failed", f"{missing}.", todo)
    if not found and (held := sum(each.held for each in noted_held(workspace.ledger, workspace.project).values())):
        yield Check("quarantine", "ok", f"{held:,} rows are set aside")


def _clock(workspace: Readers) -> Iterator[Check]:
    now_us = workspace.clock()
    ahead_us = registry_ahead_us(workspace.registry, workspace.project, now_us)
    if told := clock_problem(REGISTRY, ahead_us):
        yield Check("clock", "failed", f"{told} Here it is {to_rfc3339(now_us)}.", SYNCHRONISE)
    else:
        yield Check("clock", "ok", to_rfc3339(now_us))


def _sources(workspace: Readers) -> Iterator[Check]:
    from featurestore.engine.schema import check_columns

    for view in (registered.view for registered in workspace.snapshot().views.values()):
        try:
            check_columns(view, workspace.engine.sources.columns(view))
        except FeatureStoreError as error:
            yield Check(f"source of {view.name}", "failed", error.message, error.hint)
        else:
            names = ", ".join(source.path for source in view.batch_sources)
            yield Check(f"source of {view.name}", "ok", names)


def _offline(workspace: Readers) -> Iterator[Check]:
    folder = workspace.places["offline_store"]
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


def _online(workspace: Readers) -> Iterator[Check]:
    facts = workspace.online.facts()
    found = ", ".join(f"{name} {value}" for name, value in facts.items())
    yield Check("online store", "ok", f"{found}: {UNTOUCHED}" if workspace.online.is_untouched() else found)
    if told := clock_problem(ONLINE_STORE, online_ahead_us(facts)):
        yield Check("clock of the online store", "failed", told, SYNCHRONISE)
    if facts.get("role") == READ_ONLY:
        hint = "Let online_store name the primary wherever features are materialized, pushed or deleted."
        yield Check("role of the online store", "warning", f"role {READ_ONLY}", hint)
    yield from script_flaws(facts.get("server", ""))
    if told := eviction_of(facts):
        at_risk: str | None = None
        with suppress(RegistryError):  # its own check reports it
            at_risk = windows_at_risk(workspace.snapshot().views.values(), facts)
        yield Check("eviction", "failed" if at_risk else "warning", at_risk or told, NO_EVICTION)
    if room := lack_of_room(facts):
        yield Check("memory of the online store", *room)
    if gone := evicted(facts):
        yield Check("evicted", "warning", *gone)
    alone = int(facts.get("primaries_without_replica", 0))
    if alone:
        count = "1 primary has" if alone == 1 else f"{alone} primaries have"
        yield Check(
            "replicas",
            "warning",
            f"{count} no replica: when such a node is gone, so are its slots, and their reads and writes fail",
            "Add a replica for each with `CLUSTER REPLICATE`. The online store's line tells which have none.",
        )


def script_flaws(servers: str) -> Iterator[Check]:
    """Warn of servers whose script engine has known flaws that let scripts run code in the server."""
    found = []
    for server in servers.split(", "):
        name, _, number = server.partition(" ")
        match = re.match(r"(\d+)\.(\d+)\.(\d+)", number)
        if (sound := SOUND_SCRIPTS.get(name)) is None or match is None:
            continue
        major, minor, patch = map(int, match.groups())
        if (major, minor) <= max(sound) and patch < sound.get((major, minor), patch + 1):  # not in it: never fixed
            found.append(server)
    if found:
        lines = sorted({server.partition(" ")[0] for server in found})
        newer = " or ".join(
            f"{name} {', '.join(f'{major}.{minor}.{patch}' for (major, minor), patch in SOUND_SCRIPTS[name].items())}"
            for name in lines
        )
        yield Check(
            "scripts of the online store",
            "warning",
            f"{', '.join(found)}: anyone who may run scripts there can run code in the server ({SCRIPT_FLAWS})",
            f"Upgrade to {newer} or later, unless your distribution fixed it in this version. Until then let nobody "
            "else run scripts: docs/how-to/deploy.md has the ACL.",
        )


def _identities(workspace: Readers) -> Iterator[Check]:
    found, failure = compare_all(workspace)
    if failure is not None:
        yield Check("identities", "warning", "the online store could not say whose its records are", failure.hint)
    for mismatch in found:
        if mismatch.kind == "unreadable":
            continue  # the table's own check reports it
        yield Check(mismatch.view, "warning" if mismatch.heals else "failed", mismatch.message, mismatch.hint)
    if not found and failure is None and (identity := workspace.snapshot().chain.identity):
        yield Check("identities", "ok", f"registry and stores belong to project {workspace.project} ({identity[:12]})")


def _windows(workspace: Readers) -> Iterator[Check]:
    for name, registered in workspace.snapshot().views.items():
        if not (registered.view.aggregations and registered.view.online):
            continue
        with suppress(OfflineStoreError, OnlineStoreError):  # their own checks report them
            version = workspace.offline.current(registered.table)
            mark = None if version is None else least_mark(workspace, registered, version)
            told = None if mark is None else covered_ahead(name, mark.covered_us, workspace.clock())
            if told is not None:
                yield Check(f"windows of {name}", "warning", told, AHEAD)


def _write_access(workspace: Readers) -> Iterator[Check]:
    for setting, place in workspace.places.items():
        found = _existing(place.parent if setting == "registry" else place)  # SQLite writes a journal beside its file
        if not os.access(found, os.W_OK | os.X_OK):
            yield Check(
                f"{setting.removesuffix('_store')} folder",
                "warning",
                f"{found} is not writable for this user: commands that change something fail here",
                f"Run them as the user that owns it, or let this user write: `chown` or `chmod` {found}.",
            )


def _file_modes(workspace: Readers) -> Iterator[Check]:
    """Report private files that an earlier version, or a copy, left readable for everybody."""
    places = workspace.places
    found = [*(workspace.root / ACCESS_FILE.parent).glob("*")]
    if (registry := places.get("registry")) is not None:
        found += [registry, registry.with_name(f"{registry.name}-journal")]
    if (online := places.get("online_store")) is not None:
        found += [online / "data.mdb", online / "lock.mdb"]
    if files := [str(path) for path in found if path.is_file() and path.stat().st_mode & stat.S_IRWXO]:
        hint = f"Close them: `chmod o= {' '.join(map(shlex.quote, files))}`."
        yield Check("file modes", "warning", f"every user of this machine can read {', '.join(files)}", hint)


def _access(workspace: Readers) -> Iterator[Check]:
    """Tell whether `fs serve` here needs a token on loopback too; only the server knows FS_SERVER_TOKEN."""
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
        hint = "A server writes the file again when it starts, and stays closed." if is_damaged else ""
        if not hint and not any(token.id not in kept.revoked for token in held):
            hint = "No token of the registry passes: make one with `fs token create`, unless FS_SERVER_TOKEN is set."
        yield Check("access", "warning" if hint else "ok", f"servers are closed: {why}", hint)
