"""What the online store keeps of a windowed view: which partial aggregates, of which events, in which steps.

A *group* is a column and a condition: the events with a value for which the condition is true. Its *partials* are what
the functions over it are made of. Counts, sums, extremes and the first value are kept for each *resolution*; the last
values and the distinct ones once for all windows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

from featurestore.definitions import FeatureView
from featurestore.definitions.aggregation import ALL_ROWS, PARTIALS, Window
from featurestore.errors import DefinitionError
from featurestore.types import Bytes, Float32, Float64, String, ValueType
from featurestore.types.values import parse_type

Kind = Literal["none", "float", "integer", "text"]
"""How a value is kept: not at all (only counted), as a double, as 64 bits, as bytes."""
TILED = ("count", "sum", "square", "min", "max", "first")
"""Partials that each resolution keeps, in the order of an entry."""


@dataclass(frozen=True, slots=True)
class Group:
    """A column and a condition."""

    column: int | None
    """The column's place in `Layout.columns`; None counts events."""
    condition: int | None
    """The condition's place in `Layout.conditions`."""
    kind: Kind
    last: int
    """How many of the last values are kept, 0 for none."""
    distinct: int
    """How many distinct values are kept, 0 for none."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Windows whose old end moves in steps of one length."""

    step_us: int
    """0: all of history."""
    longest_us: int | None
    """The longest window; None for all of history."""
    parts: tuple[tuple[int, tuple[str, ...]], ...]
    """The groups that it keeps something of, by their places, each with its partials in the order of `TILED`."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Where one feature is found."""

    function: str
    group: int
    resolution: int
    """The place of its resolution; of the lists too, which need its step only."""
    length_us: int | None
    n: int
    type: ValueType


@dataclass(frozen=True)
class Layout:
    """The partials of one view."""

    columns: tuple[tuple[str, ValueType], ...]
    """The raw columns of an event that groups take, without its times."""
    event_time: bool
    """Whether the last of them is the event time, which is not stored twice."""
    conditions: tuple[str, ...]
    groups: tuple[Group, ...]
    resolutions: tuple[Resolution, ...]

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """How a newest event keeps each column but the event time."""
        own = [{group.kind for group in self.groups if group.column == place} for place in range(len(self.columns))]
        kinds: list[Kind] = [next(iter(kinds - {"none"}), "none") for kinds in own]
        return tuple(kinds[:-1] if self.event_time else kinds)

    @cached_property
    def document(self) -> bytes:
        """The canonical JSON that says how to read a record: no blanks, UTF-8."""
        document = {
            "format": 2,
            "columns": [[name, str(kind)] for name, kind in self.columns],
            "event_time": self.event_time,
            "conditions": list(self.conditions),
            "groups": [[g.column, g.condition, g.kind, g.last, g.distinct] for g in self.groups],
            "resolutions": [
                [r.step_us, r.longest_us, [[group, list(partials)] for group, partials in r.parts]]
                for r in self.resolutions
            ],
        }
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

    @cached_property
    def id(self) -> bytes:
        """The first 8 bytes of BLAKE2b-256 of the document."""
        return blake2b(self.document, digest_size=32).digest()[:8]

    def __hash__(self) -> int:
        return hash(self.id)

    def key_of(self, group: Group) -> tuple[str | None, str | None]:
        """Return a group's column in lower case, and its condition."""
        column = None if group.column is None else self.columns[group.column][0].lower()
        return column, None if group.condition is None else self.conditions[group.condition]

    @property
    def reach_us(self) -> int | None:
        """How long after its event time an event can count at most; None for ever."""
        lengths = [r.longest_us for r in self.resolutions]
        steps = max((r.step_us for r in self.resolutions), default=0)
        return None if None in lengths else max(length for length in lengths if length is not None) + steps


def layout_of(view: FeatureView) -> tuple[Layout, dict[str, Asked]]:
    """Return the layout of a view with aggregations, and where each of its features is found.

    The order in which a view names things makes no other layout.
    """
    assert view.events is not None
    read = {each.column.lower() for each in view.aggregations}  # conditions are evaluated before
    stored = [(field.name, field.type) for field in view.stored if field.name.lower() in read]
    stored.sort(key=lambda column: column[0].lower())
    types = view.events.types(view.stored)
    names = [name.lower() for name, _ in stored]
    timestamp = view.timestamp_field.lower()
    has_time = any(each.column.lower() == timestamp for each in view.aggregations)
    columns = [*stored, *([(view.timestamp_field, types[timestamp])] if has_time else [])]
    names += [timestamp] if has_time else []
    conditions = sorted({each.where for each in view.aggregations if each.where is not None})
    keys = sorted({_group_key(window) for window in view.windows}, key=lambda key: (key[0] or "", key[1] or ""))
    steps = sorted({window.resolution_us for window in view.windows})
    groups = []
    for column, where in keys:
        own = [w for w in view.windows if _group_key(w) == (column, where)]
        groups.append(
            Group(
                None if column is None else names.index(column),
                None if where is None else conditions.index(where),
                _kind(None if column is None else types[column], own),
                max((w.aggregation.n or 1 for w in own if w.aggregation.function in ("last", "last_n")), default=0),
                max((w.aggregation.bound for w in own if w.aggregation.function == "count_distinct"), default=0),
            )
        )
    resolutions = [_resolution(step, view.windows, keys) for step in steps]
    by_name = {field.name: field.type for field in view.features}
    asked = {
        window.name: Asked(
            window.aggregation.function,
            keys.index(_group_key(window)),
            steps.index(window.resolution_us),
            window.length_us,
            window.aggregation.bound,
            by_name[window.name],
        )
        for window in view.windows
    }
    return Layout(tuple(columns), has_time, tuple(conditions), tuple(groups), tuple(resolutions)), asked


def layout_from(document: bytes) -> Layout:
    """Return the layout of a document (`Layout.document`); raises ValueError for one that cannot be read."""
    try:
        found = json.loads(document)
        columns = tuple((str(name), parse_type(kind)) for name, kind in found["columns"])
        groups = tuple(Group(*each) for each in found["groups"])
        resolutions = tuple(
            Resolution(step, longest, tuple((place, tuple(partials)) for place, partials in parts))
            for step, longest, parts in found["resolutions"]
        )
        made = Layout(columns, bool(found["event_time"]), tuple(found["conditions"]), groups, resolutions)
    except (TypeError, KeyError, DefinitionError) as error:
        raise ValueError(str(error)) from None
    if made.document != document:
        raise ValueError("another format")
    return made


def found_in(kept: Layout, own: Layout, asked: Asked) -> Asked | None:
    """Return where a feature of one layout is found in another; None where that does not hold all that it needs."""
    group = own.groups[asked.group]
    key = own.key_of(group)
    places = {kept.key_of(each): place for place, each in enumerate(kept.groups)}
    steps = {each.step_us: place for place, each in enumerate(kept.resolutions)}
    place, step = places.get(key), steps.get(own.resolutions[asked.resolution].step_us)
    if place is None or step is None:
        return None
    there, resolution = kept.groups[place], kept.resolutions[step]
    if there.kind != group.kind and asked.function != "count":
        return None
    longest = resolution.longest_us
    if longest is not None and (asked.length_us is None or asked.length_us > longest):
        return None
    needed, partials = PARTIALS[asked.function], dict(resolution.parts).get(place, ())
    if "last" in needed:
        is_held = there.last >= (asked.n if asked.function == "last_n" else 1)
    elif "distinct" in needed:
        is_held = there.distinct >= asked.n
    else:
        is_held = needed <= set(partials)
    return replace(asked, group=place, resolution=step) if is_held else None


def _group_key(window: Window) -> tuple[str | None, str | None]:
    of = window.aggregation
    return None if of.column == ALL_ROWS else of.column.lower(), of.where


def _kind(column: ValueType | None, windows: Sequence[Window]) -> Kind:
    if column is None or all(window.aggregation.function == "count" for window in windows):
        return "none"
    if column in (Float32, Float64):
        return "float"
    return "text" if column in (String, Bytes) else "integer"


def _resolution(step_us: int, windows: Sequence[Window], keys: list[Any]) -> Resolution:
    own = [window for window in windows if window.resolution_us == step_us]
    lengths = [window.length_us for window in own]
    parts = []
    for place, key in enumerate(keys):
        needed = {partial for w in own if _group_key(w) == key for partial in PARTIALS[w.aggregation.function]}
        if kept := tuple(partial for partial in TILED if partial in needed):
            parts.append((place, kept))
    longest = None if None in lengths else max(length for length in lengths if length is not None)
    return Resolution(step_us, longest, tuple(parts))
