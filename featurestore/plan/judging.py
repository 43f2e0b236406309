"""The class of each change of an apply, from the records alone: for a registry that believes no request."""

from __future__ import annotations

from collections.abc import Sequence

from featurestore_registry.records import Change, Record, Revision, fingerprint

from featurestore.definitions import Definition, FeatureView, PushSource
from featurestore.plan.classes import ChangeClass, deletion_class, differences
from featurestore.registered.records import from_records, to_record, understood


def judge(before: Revision, changes: Sequence[Change], *, with_classes: bool = True) -> dict[str, str]:
    """Return the class of each change by ``kind:name``, nothing without ``with_classes``.

    Raises RegistryFormatError for a document that nobody could read back: SQL, paths and conditions are checked as
    where they are declared.
    """
    records = {record.key: record for record in before.records}
    for change in changes:
        key = f"{change.kind}:{change.name}"
        if change.record is None:
            records.pop(key, None)
        else:
            records[key] = change.record
    new = from_records(records.values())
    for change in changes:
        if change.record is not None:
            _check_derived(change.record, new[change.kind, change.name])
    if not with_classes:
        return {}
    stored = {record.key: record for record in before.records}
    old = from_records(stored.values())
    classes: dict[str, str] = {}
    for change in changes:
        name, key = (change.kind, change.name), f"{change.kind}:{change.name}"
        found = [ChangeClass.COMPATIBLE]
        if name in old and name in new:
            found = [_class_of(old[name], new[name], stored[key], records[key])]
        elif name in old:
            found = [deletion_class(old[name])]
        classes[key] = max(found).name.lower()
    return classes


def _class_of(before: Definition, after: Definition, stored: Record, put: Record) -> ChangeClass:
    """Return the class of a change; a generation that nothing calls for sets rows aside, as a breaking change does."""
    found = differences(before, after)
    generations = [record.document.get("generation", 1) for record in (stored, put)]
    if generations[0] != generations[1]:
        takes_pushes = isinstance(after, FeatureView) and any(isinstance(each, PushSource) for each in after.sources)
        is_called_for = any(each.new_generation for each in found) or (
            any(each.needs_rebuild for each in found) and not takes_pushes
        )
        if generations[1] < generations[0] or not is_called_for:
            return ChangeClass.BREAKING
    return max((each.change_class for each in found), default=ChangeClass.METADATA)


def _check_derived(record: Record, definition: Definition) -> None:
    """Raise RegistryFormatError where what a record says besides its document is not what follows from it."""
    made = to_record(record.project, definition)
    described = {name: getattr(record, name) for name in ("document", "description", "owner", "tags")}
    columns = [[(field.name, field.type) for field in each.fields] for each in (record, made)]
    with understood(f"the {record.kind} {record.name!r} of project {record.project!r}"):
        if record.fingerprint != fingerprint(described):
            raise ValueError("its fingerprint is another document's")
        if set(record.depends_on) != set(made.depends_on) or columns[0] != columns[1]:
            raise ValueError("its fields or depends_on are not those of its document")
