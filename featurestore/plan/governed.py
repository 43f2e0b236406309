"""What a project's policy says about a plan, before anybody applies it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from featurestore_registry.interface import Governance
from featurestore_registry.records import Document, Revision

from featurestore.errors import AuthError, NotFoundError
from featurestore.plan.changes import Plan
from featurestore.plan.judging import judge
from featurestore.registered.snapshot import Snapshot


def governed(governance: Governance | None, snapshot: Snapshot, plan: Plan) -> Plan:
    """Return a plan with what the policy refuses, wants a second person for, or keeps to a group's members.

    It is the server that judges, at the apply; whoever may not read the policy is told nothing.
    """
    if governance is None or not plan.steps or snapshot.chain.head != plan.base:
        return plan
    with suppress(AuthError, NotFoundError):
        policy = governance.policy(plan.project)
        changes = [step.change for step in plan.steps]
        before = Revision(plan.project, snapshot.revision, tuple(snapshot.records), snapshot.chain)
        classes = judge(before, changes, with_classes=bool(policy["refuse"] or policy["approve"]))
        refused = tuple(_told(plan, classes, policy["refuse"], "refuses"))
        waiting = _told(plan, classes, policy["approve"], "wants a second person for")
        notices = (*plan.notices, *refused, *waiting, *_groups(snapshot, plan, policy))
        return replace(plan, notices=notices, is_refused=bool(refused))
    return plan


def _told(plan: Plan, classes: dict[str, str], named: list[str], does: str) -> Iterator[str]:
    if found := [key for key, name in classes.items() if name in named]:
        names = ", ".join(dict.fromkeys(classes[key] for key in found))
        yield f"The policy of project {plan.project!r} {does} {names} changes: {', '.join(found)}."


def _groups(snapshot: Snapshot, plan: Plan, policy: Document) -> Iterator[str]:
    owners = {record.key: record.owner for record in snapshot.records}
    for key in (f"{step.kind}:{step.name}" for step in plan.steps):
        if (owner := owners.get(key)) in policy["groups"]:
            members = ", ".join(policy["groups"][owner]) or "nobody"
            yield f"{key} belongs to {owner!r}: it is changed by {members} alone."
