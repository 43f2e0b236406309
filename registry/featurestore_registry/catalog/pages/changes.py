"""Who changed what: all applies, one of them, two revisions compared, and the history of one definition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from featurestore_registry.catalog.asking import Ask, NotThere
from featurestore_registry.catalog.diffs import Difference, differences
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.history import Touch
from featurestore_registry.catalog.words import kind_name
from featurestore_registry.records import Record, Revision

PER_PAGE = 50
MOST_CHANGED = 40
"""At most so many definitions are compared on a page; the others are named."""
MOST_DIFFERENCES = 40
"""Differences of one definition that are shown."""
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Changed:
    """What two versions of one definition differ in."""

    kind: str
    name: str
    what: str
    differences: list[Difference] = field(default_factory=list)
    left_out: int = 0


def changed(kind: str, name: str, what: str, before: Record | None, after: Record | None) -> Changed:
    """Return the differences; of a definition that came or went only that it did."""
    if what != "changed" or before is None or after is None:
        return Changed(kind, name, what)
    found = differences(before, after)
    return Changed(kind, name, what, found[:MOST_DIFFERENCES], max(len(found) - MOST_DIFFERENCES, 0))


def changed_by(touches: Iterable[Touch]) -> list[tuple[Touch, Changed]]:
    """Return what applies did to definitions, with the differences."""
    return [(touch, changed(touch.kind, touch.name, touch.what, touch.before, touch.after)) for touch in touches]


def history(ask: Ask, kind: str, name: str) -> Page:
    """Return the history of one definition."""
    touches = ask.history.of(f"{kind}:{name}")
    if not touches:
        raise NotThere(kind_name(kind), name, [each.name for each in ask.project.of_kind(kind)], (ask.at(), "Home"))
    page = ask.page_number()
    shown = touches[(page - 1) * PER_PAGE : page * PER_PAGE]
    return Page(
        "history.html",
        {
            "kind": kind,
            "name": name,
            "record": ask.project.find(kind, name),
            "touches": changed_by(shown),
            "page": page,
            "pages": -(-len(touches) // PER_PAGE),
            "is_whole": ask.history.is_whole,
        },
    )


def revisions(ask: Ask) -> Page:
    """Return the list of applies."""
    page, applies = ask.page_number(), ask.history.applies
    return Page(
        "revisions.html",
        {
            "applies": applies[(page - 1) * PER_PAGE : page * PER_PAGE],
            "page": page,
            "pages": -(-len(applies) // PER_PAGE),
            "is_whole": ask.history.is_whole,
        },
    )


def revision(ask: Ask, number: str) -> Page:
    """Return what one apply did."""
    info = next((each for each in ask.history.applies if str(each.number) == number), None)
    if info is None:
        raise _no_revision(ask, number)
    touched = {(touch.kind, touch.name): touch for touch in ask.history.touches() if touch.apply is info}
    found = changed_by(touched.values())
    return Page(
        "revision.html",
        {
            "info": info,
            "changed": [each for _, each in found][:MOST_CHANGED],
            "others": [each for _, each in found][MOST_CHANGED:],
        },
    )


def compared(ask: Ask, before: str, after: str) -> Page:
    """Return what differs between two revisions."""
    old, new = (_records(ask, _read(ask, number)) for number in (before, after))
    found = []
    for key in sorted({*old, *new}):
        one, other = old.get(key), new.get(key)
        record = other or one
        if record is not None and one != other:
            what = "created" if one is None else "deleted" if other is None else "changed"
            found.append((record, what, one, other))
    made = [changed(record.kind, record.name, what, one, other) for record, what, one, other in found[:MOST_CHANGED]]
    return Page(
        "compare.html",
        {
            "before": int(before),
            "after": int(after),
            "changed": made,
            "others": [Changed(record.kind, record.name, what) for record, what, _, _ in found[MOST_CHANGED:]],
        },
    )


def _records(ask: Ask, revision: Revision) -> dict[str, Record]:
    return {record.key: record for record in revision.records}


def _read(ask: Ask, number: str) -> Revision:
    is_number = number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS
    if not is_number or int(number) > ask.project.number:
        raise _no_revision(ask, number)
    if int(number) == 0:
        return Revision(ask.project.name, 0, ())
    return ask.site.registry.definitions.read(ask.project.name, int(number))


def _no_revision(ask: Ask, number: str) -> NotThere:
    known = f"revisions 1 to {ask.project.number}"
    return NotThere("revision", number, [], (ask.at("revisions"), f"All {known}"))
