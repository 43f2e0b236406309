"""What a project allows its editors: classes of change that are refused or need a second person, and whose is what.

The class of each change is computed here again, from what is stored: a request could claim any. Policy, proposals and
approvals are entries of the ledger that only the server writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from featurestore_registry.auth import Token
from featurestore_registry.errors import ApprovalNeededError, AuthError, RecordNotFoundError, RegistryFormatError
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, Document, Revision, fingerprint

POLICY, PROPOSAL, APPROVAL = "policy", "proposal", "approval"
"""Kinds of the ledger's entries. The key of a policy is ``apply``, of the others a plan's id."""
APPLY = "apply"


class Judge(Protocol):
    """What computes how much a change demands."""

    def __call__(self, before: Revision, changes: Sequence[Change], *, with_classes: bool) -> Mapping[str, str]:
        """Return the class of each change by ``kind:name``, nothing without ``with_classes``.

        Raises RegistryFormatError for what nobody could read back.
        """


def name_of(token: Token) -> str:
    """Return how a token's owner is called."""
    return token.name or token.id


def plan_id(project: str, expected: str, changes: Sequence[Change], classes: Mapping[str, str]) -> str:
    """Return what tells plans apart: the same changes on the same revision are one, whatever generations they begin.

    A generation that nothing calls for makes the class another one.
    """
    content = [
        [change.action, change.kind, change.name, None if change.record is None else _content(change.record.document)]
        + ([] if change.record is None else [change.record.owner, dict(change.record.tags), change.record.description])
        for change in changes
    ]
    return fingerprint([project, expected, content, dict(classes)])[:16]


def _content(document: Document) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "generation"}


class Policy:
    """The policies of a registry's projects, and what waits for a second person."""

    def __init__(self, registry: Registry, judge: Judge) -> None:
        self._registry = registry
        self._judge = judge

    def of(self, project: str) -> Document:
        """Return a project's policy: ``refuse`` and ``approve`` are classes of change, ``groups`` members by owner."""
        entry = self._registry.ledger.latest(project, POLICY, APPLY)
        return {"refuse": [], "approve": [], "groups": {}} if entry is None else entry.document

    def set(self, project: str, document: Document) -> None:
        """Set a project's policy."""
        self._registry.ledger.append(project, POLICY, APPLY, document)

    def check(self, token: Token, project: str, expected: str, changes: Sequence[Change], message: str) -> None:
        """Raise where a project does not allow an apply.

        AuthError (403) for a class that it refuses, and for a record whose stored owner is a group that the token's
        owner is not in; ApprovalNeededError for one that waits for a second person, who finds it among `proposals`;
        ValueError for a document that nobody could read back.
        """
        before = self._registry.definitions.read(project)
        if before.chain.head != expected:
            return  # the apply is refused for that reason
        policy = self.of(project)
        try:
            classes = self._judge(before, changes, with_classes=bool(policy["refuse"] or policy["approve"]))
        except RegistryFormatError as error:
            told = [str(error.details[name]) for name in ("what", "reason") if name in error.details]
            said = ": ".join(told or [error.message])
            raise ValueError(f"nobody could read back what this apply writes: {said}") from error
        stored = {record.key: record for record in before.records}
        for key in (f"{change.kind}:{change.name}" for change in changes):
            group = stored[key].owner if key in stored else ""
            if group in policy["groups"] and name_of(token) not in policy["groups"][group]:
                members = ", ".join(policy["groups"][group])
                raise AuthError(
                    f"{key} belongs to {group!r}, and {name_of(token)!r} is not of that group.",
                    status=403,
                    hint=f"Ask one of: {members}.",
                )
        refused = [key for key, found in classes.items() if found in policy["refuse"]]
        if refused:
            raise AuthError(
                f"The policy of project {project!r} refuses {classes[refused[0]]} changes: {', '.join(refused)}.",
                status=403,
                hint="Make a new object beside the old one, or ask an admin of the project.",
            )
        waiting = [key for key, found in classes.items() if found in policy["approve"]]
        if not waiting:
            return
        plan = plan_id(project, expected, changes, classes)
        if self._registry.ledger.latest(project, APPROVAL, plan) is not None:
            return
        self._propose(token, project, plan, classes, changes, message)
        raise ApprovalNeededError(
            f"The policy of project {project!r} wants a second person for {classes[waiting[0]]} changes: "
            f"{', '.join(waiting)}.",
            hint=f"Ask another one to run `fs approve {plan}`, then the same command again.",
            plan=plan,
        )

    def proposals(self, project: str) -> list[dict[str, Any]]:
        """Return what waits for a second person and can still be applied, newest first."""
        ledger, head = self._registry.ledger, self._registry.definitions.chain(project).head
        approved = {entry.key for entry in ledger.scan(project, APPROVAL)}
        found = [{"plan": entry.key, **entry.document} for entry in ledger.scan(project, PROPOSAL)]
        return [each for each in found if each["expected"] == head and each["plan"] not in approved]

    def approve(self, token: Token, project: str, plan: str) -> dict[str, Any]:
        """Approve a proposal as a second person, and return it.

        Raises RecordNotFoundError where there is none, AuthError (403) for the one who made it.
        """
        found = (
            next((each for each in self.proposals(project) if each["plan"].startswith(plan)), None) if plan else None
        )
        if found is None:
            raise RecordNotFoundError(
                f"Nothing of project {project!r} waits under {plan!r}.",
                hint="`fs approve` lists what waits. A plan on an older revision has to be made again.",
                project=project,
                plan=plan,
            )
        if token.id == found["token"] or name_of(token) == found["by"]:
            raise AuthError("Who proposes an apply does not approve it.", status=403, hint="Ask another editor.")
        approval = {"by": name_of(token), "token": token.id}
        self._registry.ledger.append(project, APPROVAL, found["plan"], approval)
        return found

    def _propose(
        self,
        token: Token,
        project: str,
        plan: str,
        classes: Mapping[str, str],
        changes: Sequence[Change],
        message: str,
    ) -> None:
        ledger = self._registry.ledger
        if ledger.latest(project, PROPOSAL, plan) is None:
            document = {
                "by": name_of(token),
                "token": token.id,
                "message": message,
                "expected": self._registry.definitions.chain(project).head,
                "changes": [f"{change.action} {change.kind}:{change.name}" for change in changes],
                "classes": dict(classes),
                "writes": [asdict(change) for change in changes],
            }
            ledger.append(project, PROPOSAL, plan, document)
