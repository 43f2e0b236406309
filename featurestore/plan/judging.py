"""The class of each change of an apply, from the records alone: for a registry that believes no request."""

from __future__ import annotations

from collections.abc import Sequence

from featurestore_registry.records import Change, Revision

from featurestore.plan.classes import ChangeClass, deletion_class, differences
from featurestore.registered.records import from_records


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
    if not with_classes:
        return {}
    stored = {record.key: record for record in before.records}
    old = from_records(stored.values())
    classes: dict[str, str] = {}
    for change in changes:
        name, key = (change.kind, change.name), f"{change.kind}:{change.name}"
        found = [ChangeClass.COMPATIBLE]
        if name in old and name in new:
            found = [each.change_class for each in differences(old[name], new[name])] or [ChangeClass.METADATA]
            assert change.record is not None
            if change.record.document.get("generation", 1) < stored[key].document.get("generation", 1):
                found.append(ChangeClass.BREAKING)  # names never reuse storage
        elif name in old:
            found = [deletion_class(old[name])]
        classes[key] = max(found).name.lower()
    return classes
