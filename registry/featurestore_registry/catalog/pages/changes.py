"""Who changed what: all applies, one of them, two revisions compared, and the history of one definition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from featurestore_registry.catalog.asking import Ask, NotThere
from featurestore_registry.catalog.diffs import Difference, differences
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.history import Touch
from featurestore_registry.catalog.words import kind_name
from featurestore_registry.records import Record

PER_PAGE = 20
MOST_CHANGED = 60
"""At most so many definitions are compared on a page; the others are named."""
MOST_TEXT = 40_000
"""About so many characters of differences are on a page; what comes after them is only named."""
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


class Room:
    """How much text a page still takes."""

    def __init__(self) -> None:
        self.left = MOST_TEXT

    def take(self, found: list[Difference]) -> list[Difference]:
        """Return the differences that there is room for."""
        taken = []
        for each in found:
            if self.left > 0:
                taken.append(each)
                self.left -= sum(len(line.text) + 40 for line in each.lines) or 80 + len(each.before or "")
                self.left -= 0 if each.lines else len(each.after or "")
        return taken


def changed(room: Room, kind: str, name: str, what: str, before: Record | None, after: Record | None) -> Changed:
    """Return the differences; of a definition that came or went only that it did."""
    if what != "changed" or before is None or after is None:
        return Changed(kind, name, what)
    found = differences(before, after)
    taken = room.take(found[:MOST_DIFFERENCES])
    return Changed(kind, name, what, taken, len(found) - len(taken))


def changed_by(touches: Iterable[Touch]) -> list[tuple[Touch, Changed]]:
    """Return what applies did to definitions, with the differences."""
    room = Room()
    return [(touch, changed(room, touch.kind, touch.name, touch.what, touch.before, touch.after)) for touch in touches]


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
    old, new = _records(ask, before), _records(ask, after)
    found = []
    for key in sorted({*old, *new}):
        one, other = old.get(key), new.get(key)
        record = other or one
        if record is not None and one != other:
            what = "created" if one is None else "deleted" if other is None else "changed"
            found.append((record, what, one, other))
    room, first = Room(), found[:MOST_CHANGED]
    made = [changed(room, record.kind, record.name, what, one, other) for record, what, one, other in first]
    return Page(
        "compare.html",
        {
            "before": int(before),
            "after": int(after),
            "changed": made,
            "others": [Changed(record.kind, record.name, what) for record, what, _, _ in found[MOST_CHANGED:]],
        },
    )


def _records(ask: Ask, number: str) -> Mapping[str, Record]:
    is_number = number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS
    if not is_number or int(number) > ask.project.number:
        raise _no_revision(ask, number)
    if int(number) in (0, ask.project.number):
        return ask.project.records if int(number) else {}
    return ask.site.past(ask.project, int(number)).records


def _no_revision(ask: Ask, number: str) -> NotThere:
    if number in map(str, range(2, ask.project.number + 1)):
        before = str(int(number) - 1)
        link, hint = ask.at("compare", before, number), "It is older than the applies that are kept at hand."
        return NotThere("page of revision", number, [], (link, f"Compare it with revision {before}"), hint)
    known = f"revisions 1 to {ask.project.number}"
    return NotThere("revision", number, [], (ask.at("revisions"), f"All {known}"))
