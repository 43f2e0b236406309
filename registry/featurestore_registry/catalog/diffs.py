"""What differs between two versions of a definition, as a person reads it. It knows documents, not kinds."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featurestore_registry.catalog.words import brief, duration, instant, kind_name
from featurestore_registry.records import Record

MOST_LINES, MOST_LENGTH = 120, 500
"""Lines of a text's difference that are shown, and characters of a value."""
_OF_NAMES = {
    "schema": "feature",
    "features": "reads",
    "inputs": "input",
    "aggregations": "aggregation",
    "fields": "field",
    "join_keys": "join key",
    "tags": "tag",
    "checks": "check",
}
"""Parts whose own parts have names that people gave, and what one of them is called."""
_INSTANTS = ("start_us", "end_us")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a text's difference: ``+``, ``-``, a space, or ``@`` where lines are left out."""

    sign: str
    text: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One part that differs."""

    what: str
    before: str | None
    """None: it was not there."""
    after: str | None
    lines: tuple[Line, ...] = ()
    """In place of both, where they are texts of several lines."""


def differences(before: Record | None, after: Record | None) -> list[Difference]:
    """Return what differs; one without a record on the other side has all of its parts."""
    return list(_compare("", _told(before), _told(after)))


def _told(record: Record | None) -> Mapping[str, Any]:
    if record is None:
        return {}
    told = {"description": record.description, "owner": record.owner, "tags": dict(record.tags), **record.document}
    if not told.keys() & {"schema", "features", "join_keys"}:
        told["fields"] = [asdict(field) for field in record.fields]
    return {name: value for name, value in told.items() if value not in (None, "", [], {}, ())}


def _compare(what: str, before: Any, after: Any, name: str = "") -> Iterator[Difference]:
    """Yield what differs between two values of a part, of which ``name`` is what its document calls it."""
    if before == after:
        return
    old, new = _parts(before), _parts(after)
    if old is not None and new is not None:
        for part in dict.fromkeys([*new, *old]):
            said = part if name in _OF_NAMES else _said(part)
            yield from _compare(_joined(what, name, said), old.get(part, _MISSING), new.get(part, _MISSING), part)
        return
    one, other = (None if side is _MISSING else _text(name, side) for side in (before, after))
    is_long = "\n" in (one or "") + (other or "")
    lines = tuple(_lines(one or "", other or "")) if is_long else ()
    yield Difference(what, one and brief(one, MOST_LENGTH), other and brief(other, MOST_LENGTH), lines)


def _parts(value: Any) -> Mapping[str, Any] | None:
    """Return an object's parts, or a list's by the names of its members; None for what is compared whole."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
        names = [_name_of(each) for each in value]
        if len(set(names)) == len(names):
            return dict(zip(names, value, strict=True))
    return None


def _name_of(part: Mapping[str, Any]) -> str:
    """Return what tells a part from its neighbours: its name, or its kind and what it is for."""
    if not part.get("name") and isinstance(kind := part.get("kind") or part.get("rule"), str):
        return " ".join([kind, _text("", part.get("features") or ())]).replace("_", " ").strip()
    return str(part.get("name") or next(iter(part.values()), ""))


def _said(part: str) -> str:
    return part.removesuffix("_us").replace("_", " ")


def _joined(what: str, name: str, part: str) -> str:
    """Return what a part of a part is called: ``feature rating``, ``feature rating type``."""
    return f"{_OF_NAMES[name]} {part}" if name in _OF_NAMES else f"{what} {part}".strip()


def _text(name: str, value: Any) -> str:
    if name in _INSTANTS and isinstance(value, int):
        return f"{instant(value)} UTC"
    if name == "target" and isinstance(value, list | tuple) and len(value) == 2:
        return f"{kind_name(str(value[0]))} {value[1]}"
    if name.endswith(("_us", "windows_us")):
        values = value if isinstance(value, list | tuple) else [value]
        if all(each is None or isinstance(each, int) for each in values):
            return ", ".join("all" if each is None and len(values) > 1 else duration(each) for each in values)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        parts = {part: _text(part, told) for part, told in value.items() if told not in (None, "", {}, [])}
        parts.pop("name", None)  # it is in what the part is called
        first = [parts.pop("type")] if "type" in parts else []
        return ", ".join([*first, *(f"{_said(part)} {told}" for part, told in parts.items())])
    if isinstance(value, list | tuple):
        return ", ".join(_text("", part) for part in value)
    return "none" if value is None else str(value)


def _lines(before: str, after: str) -> Iterator[Line]:
    old, new = (side.expandtabs(4).strip("\n").split("\n") if side else [] for side in (before, after))
    made = difflib.unified_diff(old, new, n=2, lineterm="")
    for number, line in enumerate(made):
        if number < 2:  # the names of files
            continue
        if number > MOST_LINES:
            yield Line("@", "…")
            return
        yield Line("@", "…") if line.startswith("@@") else Line(line[0], brief(line[1:], MOST_LENGTH))
