"""Whether a project's feature servers have the code of the on-demand views that a plan brings: it never travels."""

from __future__ import annotations

from collections.abc import Mapping

from featurestore.definitions import OnDemandFeatureView
from featurestore.errors import PlanError
from featurestore.ledger.serving import FORGOTTEN_AFTER, Server, servers_of
from featurestore.plan.changes import Plan
from featurestore.plan.history import SHOWN_HASH
from featurestore.registered.snapshot import Snapshot
from featurestore.workspace import Readers


def code_of(plan: Plan, snapshot: Snapshot) -> dict[str, str]:
    """Return the hash of each on-demand function that a plan brings or changes, by its view."""
    records = [step.record for step in plan.steps if step.kind == OnDemandFeatureView.kind]
    brought = {record.name: record.document["code_hash"] for record in records if record is not None}
    had = {name: view.code_hash for name, view in snapshot.on_demand.items()}
    return {name: code for name, code in brought.items() if had.get(name) != code}


def lack_of_code(workspace: Readers, code: Mapping[str, str]) -> str:
    """Return which servers lack some code, in a sentence; an empty text where none is known to."""
    found = servers_of(workspace.registry, workspace.project) if code else []
    lacking = [server for server in found if _lacks(server, code)]
    if not lacking:
        return ""
    told = "; ".join(f"{server.instance} ({server.process}) has {_held(server, code)}" for server in lacking)
    names = ", ".join(code)
    return f"{len(lacking)} of {len(found)} server processes of {workspace.project} lack the code of {names}: {told}."


def check_code(workspace: Readers, plan: Plan) -> None:
    """Raise PlanError unless the servers of a plan's project all have the code that it needs there.

    Where no server says anything, too, unless the plan knows that none serves the project yet.
    """
    if not plan.code:
        return
    said, minutes = lack_of_code(workspace, plan.code), int(FORGOTTEN_AFTER.total_seconds() // 60)
    way = f"One that was killed is forgotten after {minutes} minutes."
    found = servers_of(workspace.registry, plan.project)
    if not said:
        if found or not plan.has_servers:
            return
        said = f"No server of {plan.project} says that it has the code of {', '.join(plan.code)}."
        way = "Where no server serves the project yet, pass --no-servers."
    wanted = ", ".join(f"{name} {code[:SHOWN_HASH]}" for name, code in plan.code.items())
    raise PlanError(
        f"{said} Wanted: {wanted}.",
        hint=f"Code does not travel through the registry: bring the feature repo with it to every server of "
        f"{plan.project}, restart them, and promote again (`fs status --servers` shows what they have). {way}",
        servers={f"{server.instance}-{server.process}": dict(server.code) for server in found},
        code=dict(plan.code),
    )


def _lacks(server: Server, code: Mapping[str, str]) -> bool:
    return any(server.code.get(name) != wanted for name, wanted in code.items())


def _held(server: Server, code: Mapping[str, str]) -> str:
    held = {name: server.code.get(name) for name, wanted in code.items() if server.code.get(name) != wanted}
    return ", ".join(f"{name} {'nowhere' if found is None else found[:SHOWN_HASH]}" for name, found in held.items())
