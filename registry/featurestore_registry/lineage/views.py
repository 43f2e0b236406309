"""What records, training sets and consumers say of where their columns come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

from featurestore_registry.documents import CONSUMER, LABEL, TRAINING_SET
from featurestore_registry.lineage.columns import Origin, Traced, trace
from featurestore_registry.lineage.origins import ALL
from featurestore_registry.records import Record

EdgeKind = Literal["copied", "influences", "rows", "reads", "part"]
Column = tuple[str, str]
"""The key of an object, and a column in lower case; empty for the object itself."""
Reference = Mapping[str, Any]
"""Some features of a view, as services and training sets name them."""

VIEW, ON_DEMAND, SERVICE = "feature_view", "on_demand_feature_view", "feature_service"
SOURCE, PUSH, REQUEST = "source", "push_source", "request_source"
_SHORT = {"view": VIEW, "service": SERVICE, "on_demand_view": ON_DEMAND}
_UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)
"""What is raised where a document has another form than this version knows."""


class Made(NamedTuple):
    """A column, or an object, and one column that it comes from."""

    source: Column
    target: Column
    kind: EdgeKind
    is_sure: bool = True


class Definitions:
    """The objects of a project, by ``kind:name``."""

    def __init__(
        self,
        records: Iterable[Record],
        training_sets: Mapping[str, Sequence[Reference]],
        consumers: Mapping[str, Sequence[str]],
    ) -> None:
        self._spelled: dict[Column, str] = {}
        self._made: dict[str, tuple[Made, ...]] = {}
        self._records = {record.key: record for record in records}
        self._sets = {f"{TRAINING_SET}:{name}": references for name, references in training_sets.items()}
        self._consumers = {f"{CONSUMER}:{name}": services for name, services in consumers.items()}
        self._objects = {
            key: tuple(dict.fromkeys(self._needed(key)))
            for key in (*sorted(self._records), *sorted(self._sets), *sorted(self._consumers))
        }

    def _needed(self, key: str) -> Iterator[str]:
        if key in self._records:
            yield from self._records[key].depends_on
        elif key in self._consumers:
            yield from (f"{SERVICE}:{name}" for name in self._consumers[key])
        else:
            features = self._read_by([each for each in self._sets[key] if LABEL not in each])
            yield from (service for service, same in self._read_by_services.items() if same == features)
            yield from (owner for owner, _, _ in self._read_by(self._sets[key]))

    @cached_property
    def _read_by_services(self) -> dict[str, list[tuple[str, tuple[str, ...], str]]]:
        services = [record for record in self._records.values() if record.kind == SERVICE]
        return {service.key: self._read_by(service.document.get("features") or ()) for service in services}

    def _read_by(self, references: Sequence[Reference]) -> list[tuple[str, tuple[str, ...], str]]:
        """Return each view with the features that are read of it, and how it is called and keyed there."""
        found = []
        for reference in references:
            try:
                if "on_demand" in reference:
                    key, called = f"{ON_DEMAND}:{reference['on_demand']}", ""
                    features = reference.get("features") or self.columns(key)
                else:
                    key, features = f"{VIEW}:{reference['view']}", reference["features"]
                    keys = sorted(dict(reference.get("join_keys") or {}).items())
                    called = f"{reference.get('name', reference['view'])} {keys}"
                found.append((key, tuple(str(each).lower() for each in features), called))
            except _UNREADABLE:
                continue
        return found

    def needs(self, key: str) -> tuple[str, ...]:
        """Return the objects that one needs itself."""
        return tuple(other for other in self._objects.get(key, ()) if other in self._objects)

    @cached_property
    def _users(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key, needed in self._objects.items():
            for other in needed:
                found.setdefault(other, []).append(key)
        return found

    def users(self, key: str) -> Sequence[str]:
        """Return the objects that need one themselves."""
        return self._users.get(key, ())

    def is_view(self, key: str) -> bool:
        """Tell whether an object has features of its own."""
        return key.partition(":")[0] in (VIEW, ON_DEMAND)

    def columns(self, key: str) -> tuple[str, ...]:
        """Return the features of a view, or the columns of a source that something is known to read."""
        record = self._records.get(key)
        if record is None:
            return ()
        if record.kind in (VIEW, ON_DEMAND, REQUEST):
            return tuple(self._spell(key, field.name) for field in record.fields)
        if record.kind not in (SOURCE, PUSH):
            return ()
        read = (made.source for user in self.users(key) for made in self.made_of(user))
        return tuple(sorted({column for owner, column in read if owner == key}))

    def _spell(self, owner: str, column: str) -> str:
        self._spelled.setdefault((owner, column.lower()), column)
        return column.lower()

    def spelled(self, owner: str, column: str) -> str:
        """Return a column as the definitions write it."""
        if (owner, column) not in self._spelled:
            self.columns(owner)
        return self._spelled.get((owner, column), column)

    # What people call things

    def objects_called(self, name: str) -> list[str]:
        """Return the objects of a name, or of ``kind:name``."""
        kind, _, bare = name.rpartition(":")
        word = kind.lower().replace("-", "_")
        wanted = word if word in self._kinds else word.removesuffix("s")
        return [
            key for key in self._by_name.get(bare, ()) if not kind or key.startswith(f"{_SHORT.get(wanted, wanted)}:")
        ]

    @cached_property
    def _kinds(self) -> frozenset[str]:
        return frozenset(key.partition(":")[0] for key in self._objects)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key in self._objects:
            found.setdefault(key.partition(":")[2], []).append(key)
        return found

    def has_column(self, key: str, column: str) -> bool:
        """Tell whether an object has a column as far as is known; of a source that is read whole, any."""
        known = self.columns(key)
        return column.lower() in known or ("*" in known and key.partition(":")[0] in (SOURCE, PUSH))

    def names(self) -> list[str]:
        """Return the names of all objects."""
        return list(self._by_name)

    def features_like(self, name: str) -> list[str]:
        """Return the features of a name, or of the closest, each with its view."""
        found: dict[str, list[str]] = {}
        for key in self._objects:
            for column in self.columns(key) if self.is_view(key) else ():
                found.setdefault(column, []).append(f"{key.partition(':')[2]}:{self.spelled(key, column)}")
        close = [name.lower()] if name.lower() in found else get_close_matches(name.lower(), found, n=1)
        return [feature for column in close for feature in found[column]]

    def columns_of(self, name: str) -> list[str]:
        """Return what the columns of the objects of a name are called."""
        return [self.spelled(key, column) for key in self.objects_called(name) for column in self.columns(key)]

    # Where columns come from

    def made_of(self, key: str) -> tuple[Made, ...]:
        """Return what an object's columns come from, and which columns decide its rows."""
        if key not in self._made:
            self._made[key] = ()
            try:
                self._made[key] = tuple(self._columns_of(key))
            except _UNREADABLE:
                self._made[key] = tuple(self._perhaps(key))
        return self._made[key]

    def _perhaps(self, key: str) -> Iterator[Made]:
        """Return what the columns of a view may come from whose document cannot be read: anything that it needs."""
        own = [(key, column) for column in self.columns(key)] if self.is_view(key) else []
        for other in self.needs(key) if own else ():
            if other.partition(":")[0] in (SOURCE, PUSH, REQUEST, VIEW, ON_DEMAND):
                columns = [ALL] if other.startswith((SOURCE, PUSH)) else self.columns(other)
                yield from (Made((other, column), target, "influences", False) for column in columns for target in own)

    def _columns_of(self, key: str) -> Iterator[Made]:
        record = self._records.get(key)
        if record is None:
            yield from self._selected(key, self._sets.get(key, ()))
        elif record.kind == SERVICE:
            yield from self._selected(key, record.document["features"])
        elif record.kind == PUSH:
            source = f"{SOURCE}:{record.document['batch_source']}"
            for column in self.columns(key):
                yield Made((source, self._spell(source, self.spelled(key, column))), (key, column), "copied")
        elif record.kind == ON_DEMAND:
            inputs = [made.source for made in self._selected(key, record.document["inputs"])]
            for feature in self.columns(key):
                yield from (Made(column, (key, feature), "influences") for column in inputs)
        elif record.kind == VIEW:
            yield from self._columns_of_view(record)

    def _selected(self, key: str, references: Sequence[Reference]) -> Iterator[Made]:
        for reference in references:
            if "request" in reference:
                owner = f"{REQUEST}:{reference['request']}"
                read = [(owner, self.columns(owner), "")]
            else:
                read = self._read_by([reference])
            for owner, features, _ in read:
                known = set(self.columns(owner))
                yield from (Made((owner, each), (key, ""), "reads") for each in features if each in known)

    def _columns_of_view(self, view: Record) -> Iterator[Made]:
        sources = {name: f"{kind}:{name}" for kind, name in view.document["sources"]}
        inputs = inputs_of(view)
        wanted = list(dict.fromkeys(column for columns in inputs.values() for column in columns))
        always = self._keys_and_times(view)
        if view.document["sql"] is None:
            (source,) = sources
            traced = _as_they_are(source, (*wanted, *always))
        else:
            known = tuple((name, self._known_of(key)) for name, key in sources.items())
            traced = trace(view.document["sql"], known, tuple(dict.fromkeys([*wanted, *always])))
        is_windowed = bool(view.document.get("aggregations"))
        for feature, columns in inputs.items():
            target = (view.key, self._spell(view.key, feature))
            for origin in dict.fromkeys(origin for column in columns for origin in traced.columns[column]):
                kind = "influences" if is_windowed else origin.kind
                yield Made(self._column(sources, origin), target, kind, origin.is_sure)
        for origin in dict.fromkeys(
            [origin for column in always for origin in traced.columns[column]] + [*traced.rows]
        ):
            yield Made(self._column(sources, origin), (view.key, ""), "rows", origin.is_sure)

    def _column(self, sources: Mapping[str, str], origin: Origin) -> Column:
        owner = sources[origin.source]
        return owner, self._spell(owner, origin.column)

    def _keys_and_times(self, view: Record) -> list[str]:
        """Return the columns of a view that say whose a row is, when it happened, and which event it is."""
        keys = [
            name
            for entity in view.document["entities"]
            for name, _ in self._records[f"entity:{entity}"].document["join_keys"]
        ]
        batch = [self._batch(f"{kind}:{name}") for kind, name in view.document["sources"]]
        created = [source.document["created_timestamp_field"] for source in batch]
        event_id = view.document.get("event_id")
        times = [batch[0].document["timestamp_field"], *[column for column in created if column][:1]]
        return list(dict.fromkeys([*keys, *times, *([event_id] if event_id else [])]))

    def _batch(self, source: str) -> Record:
        record = self._records[source]
        return record if record.kind == SOURCE else self._records[f"{SOURCE}:{record.document['batch_source']}"]

    def _known_of(self, source: str) -> frozenset[str]:
        """Return the columns that a source is known to have: its times, and what views read of it as it is."""
        return self._known.get(self._batch(source).key, frozenset())

    @cached_property
    def _known(self) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = {}
        for record in self._records.values():
            try:
                if record.kind == SOURCE:
                    times = (record.document["timestamp_field"], record.document["created_timestamp_field"])
                    found.setdefault(record.key, set()).update(name.lower() for name in times if name)
                elif record.kind == VIEW and record.document["sql"] is None:
                    ((kind, name),) = record.document["sources"]
                    stored = (field["name"] for field in record.document["schema"])
                    read = {name.lower() for name in (*stored, *self._keys_and_times(record))}
                    found.setdefault(self._batch(f"{kind}:{name}").key, set()).update(read)
            except _UNREADABLE:
                continue
        return {key: frozenset(columns) for key, columns in found.items()}


def inputs_of(view: Record) -> dict[str, list[str]]:
    """Return, for each feature of a view, the columns of its rows that it is computed from."""
    aggregations = view.document.get("aggregations")
    if not aggregations:
        return {field.name: [field.name] for field in view.fields}
    windows = [aggregation for aggregation in aggregations for _ in aggregation["windows_us"]]
    return {
        field.name: [*([] if window["column"] == "*" else [window["column"]]), *_columns_of(window["where"])]
        for field, window in zip(view.fields, windows, strict=True)
    }


@lru_cache(maxsize=1024)
def _columns_of(condition: str | None) -> tuple[str, ...]:
    """Return the columns that the condition of an aggregation reads."""
    if condition is None:
        return ()
    read = trace(f"SELECT ({condition}\n) AS c FROM e", (("e", frozenset()),), ("c",))
    return tuple(origin.column for origin in read.columns["c"])


def _as_they_are(source: str, columns: Iterable[str]) -> Traced:
    """Return the columns of a view without SQL: each is the source's of its name."""
    return Traced({column: (Origin(source, column, "copied", True),) for column in columns}, ())
