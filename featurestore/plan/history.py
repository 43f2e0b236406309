"""What was applied, revision by revision, and what differs between two revisions. Everything here only reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from featurestore_registry.interface import DefinitionsReader
from featurestore_registry.records import Chain, Change, Record, RevisionInfo

from featurestore.definitions import Definition
from featurestore.errors import InputError, NotFoundError, RegistryFormatError
from featurestore.ledger.consumers import Consumer, readers_of
from featurestore.plan.changes import Line, Step, count_steps, explain_step, to_html, to_text
from featurestore.plan.classes import ChangeClass, Difference, deletion_class, differences
from featurestore.registered.records import KINDS, from_records, with_dependencies
from featurestore.registered.snapshot import Snapshot

SHOWN_HASH = 12
"""So many characters of a hash are shown."""
LEAST_HASH = 4
"""A shorter beginning of a hash names nothing: a mistyped number would often be one."""

_WORDS = {"create": "created", "update": "changed", "delete": "deleted"}


@dataclass(frozen=True, slots=True)
class RevisionDiff:
    """What differs between the definitions of two revisions, as steps of a plan from one to the other."""

    project: str
    before: int
    after: int
    steps: tuple[Step, ...]

    @property
    def worst(self) -> ChangeClass | None:
        """The greatest class among the steps, None where nothing differs."""
        return max((step.change_class for step in self.steps), default=None)

    def __str__(self) -> str:
        return to_text(explain_diff(self))

    def _repr_html_(self) -> str:
        return to_html(explain_diff(self))


@dataclass(frozen=True)
class AppliedRevision:
    """One apply: who, when, why, from which commit of the feature repo, and what it changed."""

    info: RevisionInfo
    parent: Snapshot
    """The definitions before it."""
    snapshot: Snapshot
    """The definitions that it made."""

    @cached_property
    def diff(self) -> RevisionDiff:
        """What it changed, compared with the revision before it."""
        return compare(self.parent, self.snapshot)

    @property
    def signs(self) -> list[str]:
        """Each change as ``kind:name`` behind a sign: + new, ~ changed, - deleted."""
        known = {record.key for record in self.parent.records}
        changes = [(change.action, f"{change.kind}:{change.name}") for change in self.info.changes]
        return [f"{'-' if action == 'delete' else '~' if key in known else '+'}{key}" for action, key in changes]

    def __repr__(self) -> str:
        return f"AppliedRevision({self.info.number} by {self.info.author}: {', '.join(self.signs)})"

    def __str__(self) -> str:
        return to_text(explain_applied(self))

    def _repr_html_(self) -> str:
        return to_html(explain_applied(self))


def explain_diff(diff: RevisionDiff) -> list[Line]:
    """Return what differs, line by line."""
    return [Line(0, f"{diff.project}: revision {diff.before} -> {diff.after}"), Line(0, ""), *_explain_steps(diff)]


def _explain_steps(diff: RevisionDiff) -> list[Line]:
    worst = diff.worst
    if worst is None:
        return [Line(0, "The definitions are the same.")]
    made = [line for step in diff.steps for line in explain_step(step)]
    summary = f"{count_steps(diff.steps, _WORDS)}; the worst change is {worst.name.lower()}."
    return [*made, Line(0, ""), Line(0, summary)]


def explain_applied(applied: AppliedRevision) -> list[Line]:
    """Return who made a revision, when, why and from which commit, and its diff line by line."""
    info = applied.info
    at = info.applied_at.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    head = f"revision {info.number} ({info.hash[:SHOWN_HASH]}), applied {at} UTC by {info.author or 'nobody named'}"
    more = [("git commit", info.commit), ("message", info.message)]
    said = [Line(1, f"{label}: {line}") for label, text in more for line in text.splitlines()]
    return [Line(0, head), *said, Line(0, ""), *_explain_steps(applied.diff)]


def find_revision(project: str, chain: Chain, given: int | str) -> int:
    """Return the number of a revision that is given by its number or by the beginning of its hash.

    Raises NotFoundError where there is none, InputError where several hashes begin so.
    """
    text = str(given).strip().lower()
    if text.isdecimal() and text.isascii() and len(text) < 19 and int(text) <= chain.number:
        return int(text)
    hashes = enumerate(chain.hashes, start=1)
    found = [number for number, known in hashes if len(text) >= LEAST_HASH and known.startswith(text)]
    if isinstance(given, int) or not found:
        raise NotFoundError(
            f"Project {project!r} has no revision {given!r}; its newest is {chain.number}.",
            hint=f"Name a revision by its number, or by {LEAST_HASH} or more characters that its hash begins with: "
            "`fs log --diff` shows both.",
            revision=str(given),
        )
    if len(found) > 1:
        raise InputError(
            f"The hashes of {len(found)} revisions begin with {given!r}: {', '.join(map(str, found[:5]))}"
            f"{', …' if len(found) > 5 else ''}.",
            hint="Write more of the hash, or the number.",
        )
    return found[0]


def snapshot_at(definitions: DefinitionsReader, project: str, given: int | str | None) -> Snapshot:
    """Return the definitions of a revision (see `find_revision`), of the newest for None."""
    number = None if given is None else find_revision(project, definitions.chain(project), given)
    return Snapshot.of(definitions.read(project, number))


def read_history(definitions: DefinitionsReader, project: str, *, limit: int) -> list[AppliedRevision]:
    """Return the newest applies, newest first, at most ``limit``."""
    infos = sorted(definitions.history(project, limit=limit), key=lambda info: info.number)
    if not infos:
        return []
    before = Snapshot.of(definitions.read(project, infos[0].number - 1))
    found = []
    for info in infos:
        chain = Chain((*before.chain.hashes, info.hash))
        after = Snapshot(project, info.number, _changed(before, info.changes), chain=chain)
        found.append(AppliedRevision(info, before, after))
        before = after
    return found[::-1]


def compare(before: Snapshot, after: Snapshot) -> RevisionDiff:
    """Return what differs between two revisions of a project; each may be the older one."""
    old, new = ({record.key: record for record in snapshot.records} for snapshot in (before, after))
    return _diff(before, after, [key for key in {**old, **new} if _mark(old.get(key)) != _mark(new.get(key))])


def proposed(before: Snapshot, changes: Sequence[Change], consumers: Sequence[Consumer]) -> RevisionDiff:
    """Return what an apply would change that waits for a second person, and who reads it.

    Its changes may come from a request made by hand: no fingerprint of theirs is believed.
    """
    after = Snapshot(before.project, before.revision + 1, _changed(before, changes), chain=before.chain)
    diff = _diff(before, after, [f"{change.kind}:{change.name}" for change in changes])
    touched = [(key, *before.users_of(key)) for key in (f"{step.kind}:{step.name}" for step in diff.steps)]
    steps = [replace(step, consumers=readers_of(consumers, of)) for step, of in zip(diff.steps, touched, strict=True)]
    return replace(diff, steps=tuple(steps))


def _changed(before: Snapshot, changes: Iterable[Change]) -> tuple[Record, ...]:
    records = {record.key: record for record in before.records}
    for change in changes:
        key = f"{change.kind}:{change.name}"
        if change.record is None:
            del records[key]
        else:
            records[key] = change.record
    return tuple(records.values())


def _diff(before: Snapshot, after: Snapshot, keys: Sequence[str]) -> RevisionDiff:
    old, new = ({record.key: record for record in snapshot.records} for snapshot in (before, after))
    known = [_readable(keys, records) for records in (old, new)]
    order = {kind: position for position, kind in enumerate(KINDS)}

    def place(key: str) -> tuple[int, str]:
        return order.get(key.partition(":")[0], len(order)), key

    gone = sorted((key for key in keys if key not in new), key=place, reverse=True)
    put = sorted((key for key in keys if key in new), key=place)
    steps = [_step(before, after, old.get(key), new.get(key), *(side.get(key) for side in known)) for key in gone + put]
    return RevisionDiff(after.project, before.revision, after.revision, tuple(steps))


def _mark(record: Record | None) -> str | None:
    return None if record is None else record.fingerprint


def _readable(keys: Iterable[str], records: Mapping[str, Record]) -> Mapping[str, Definition]:
    """Return the definitions of some records, none where another version wrote something that this one cannot read."""
    try:
        made = from_records(with_dependencies(keys, records))
    except RegistryFormatError:
        return {}
    return {found.key: found for found in made.values()}


def _step(
    before: Snapshot,
    after: Snapshot,
    old: Record | None,
    new: Record | None,
    was: Definition | None,
    becomes: Definition | None,
) -> Step:
    record = new or old
    assert record is not None
    found: Sequence[Difference] = ()
    notices: tuple[str, ...] = ()
    change_class = ChangeClass.COMPATIBLE
    if old is not None and new is not None:
        if was is None or becomes is None:
            found, notices = _documents(old, new), ("this version cannot read both: compared part by part",)
        else:
            # What had to be run then says nothing about now.
            found = [replace(each, is_held=False) for each in differences(was, becomes)] + _generations(old, new)
            found = found or _documents(old, new)
        change_class = max((each.change_class for each in found), default=ChangeClass.METADATA)
    elif new is None:
        change_class = ChangeClass.BREAKING if was is None else deletion_class(was)
    kind = KINDS.get(record.kind)
    return Step(
        action="create" if old is None else "delete" if new is None else "update",
        kind=record.kind,
        title=record.kind if kind is None else kind.title,
        name=record.name,
        change_class=change_class,
        differences=tuple(found),
        affects=() if old is None else before.users_of(record.key) if new is None else after.users_of(record.key),
        record=new,
        generation=None if new is None else new.document.get("generation"),
        notices=notices,
    )


def _generations(old: Record, new: Record) -> list[Difference]:
    before, after = (record.document.get("generation") for record in (old, new))
    return [] if before == after else [Difference("generation", before, after, ChangeClass.COMPATIBLE)]


def _documents(old: Record, new: Record) -> Sequence[Difference]:
    """Return the parts of two documents that differ, as they are written."""
    sides = [
        {**record.document, "description": record.description, "owner": record.owner, "tags": record.tags}
        for record in (old, new)
    ]
    return [
        Difference(part, sides[0].get(part), sides[1].get(part), ChangeClass.BREAKING)
        for part in {**sides[0], **sides[1]}
        if sides[0].get(part) != sides[1].get(part)
    ]
