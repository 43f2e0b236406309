"""Feature views, and selections of their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any, ClassVar

import pydantic
from pydantic import field_validator, model_validator

from featurestore.definitions.aggregation import Aggregation, Window
from featurestore.definitions.base import (
    Definition,
    Field,
    Named,
    ObjectName,
    as_dict,
    as_tuple,
    check_column_name,
    check_unique_columns,
)
from featurestore.definitions.entity import Entity
from featurestore.definitions.events import EventColumns
from featurestore.definitions.expectations import FieldRule, OnFailure, ViewRule
from featurestore.definitions.source import ParquetSource, PushSource
from featurestore.definitions.sql import check_view_sql
from featurestore.errors import DefinitionError, NotFoundError, did_you_mean
from featurestore.types import ValueType
from featurestore.types.times import MICROSECOND, MIN_INSTANT


class FeatureView(Definition):
    """Features of one entity (or of several together), read from a source.

    Without ``sql`` the view takes the source's columns as they are. With it, the query reads the sources by their
    names and outputs join keys, the time columns of the first source, and the features. ``schema`` may be
    left out: `fs apply` then reads it from the source and pins it. With ``ttl=None`` values never expire; a value has
    expired when its event time is before ``t - ttl`` (a value at exactly ``t - ttl`` still counts).

    With ``aggregations`` the rows are events and the features are computed of them, over windows that end at the
    instant asked for: such a view has no ``ttl``, and its schema is of the columns that the aggregations read.
    ``event_id`` is the column that tells two events of an entity apart: one that comes again within a day counts once.
    Pushes need it.

    With ``statistics=False`` runs keep no statistics of the view. A list names the columns whose most frequent values
    show even where there are more than 100 different ones.

    ``expect``, here and in fields, says what the rows of a run should be like; ``on_failure`` what happens where they
    are not: ``"warn"`` commits them and says so, with ``"block"`` nothing is committed, with ``"quarantine"`` rows that
    fail a rule of single rows are set aside and the others committed.
    """

    kind: ClassVar[str] = "feature_view"
    title: ClassVar[str] = "FeatureView"

    entities: tuple[Entity, ...]
    sources: tuple[ParquetSource | PushSource, ...]
    fields: tuple[Field, ...] | None = None
    """The declared schema of what is stored, or None until `fs apply` has read it."""
    sql: str | None = None
    aggregations: tuple[Aggregation, ...] = ()
    event_id: str | None = None
    ttl: timedelta | None = None
    online: bool = True
    statistics: bool | tuple[str, ...] = True
    expect: tuple[pydantic.SerializeAsAny[ViewRule], ...] = ()
    on_failure: OnFailure = "warn"

    def __init__(
        self,
        name: str,
        *,
        entities: Sequence[Entity],
        source: ParquetSource | PushSource | Sequence[ParquetSource | PushSource],
        schema: Sequence[Field] | None = None,
        sql: str | None = None,
        aggregations: Sequence[Aggregation] | None = None,
        event_id: str | None = None,
        ttl: timedelta | None = None,
        online: bool = True,
        statistics: bool | Sequence[str] = True,
        expect: Sequence[ViewRule] = (),
        on_failure: OnFailure = "warn",
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        deprecated: str = "",
    ) -> None:
        if aggregations is not None and not as_tuple(aggregations):  # without any it would be a plain view, unsaid
            raise DefinitionError(
                f"FeatureView {name!r}: aggregations: needs at least one.",
                hint="Leave it out for a view that takes the newest row.",
                object=name,
                field="aggregations",
            )
        self._fill(
            name,
            entities=as_tuple(entities),
            sources=as_tuple(source) if isinstance(source, Sequence) else (source,),
            fields=None if schema is None else as_tuple(schema),
            sql=sql,
            aggregations=() if aggregations is None else as_tuple(aggregations),
            event_id=event_id,
            ttl=ttl,
            online=online,
            statistics=statistics if isinstance(statistics, bool) else as_tuple(statistics) or True,
            expect=as_tuple(expect),
            on_failure=on_failure,
            description=description,
            owner=owner,
            tags=as_dict(tags),
            deprecated=deprecated,
        )

    @field_validator("entities")
    @classmethod
    def _check_entities(cls, entities: tuple[Entity, ...]) -> tuple[Entity, ...]:
        if not entities:
            raise ValueError("a feature view needs at least one entity")
        check_unique_columns([key for entity in entities for key in entity.join_keys])
        return entities

    @field_validator("ttl")
    @classmethod
    def _check_ttl(cls, ttl: timedelta | None) -> timedelta | None:
        if ttl is not None and ttl <= timedelta(0):
            raise ValueError("must be greater than zero; leave it out for features that never expire")
        return ttl

    @field_validator("statistics", mode="before")
    @classmethod
    def _check_names(cls, statistics: object) -> object:
        if isinstance(statistics, bool) or (
            isinstance(statistics, tuple) and all(isinstance(name, str) for name in statistics)
        ):
            return statistics
        raise ValueError('must be True, False or a list of names of fields, such as ["carrier"]')

    @model_validator(mode="after")
    def _check_whole(self) -> FeatureView:
        if not self.sources:
            raise ValueError("a feature view needs a source")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"source: the same source is given twice: {names}")
        if len(names) > 1 and self.sql is None:
            raise ValueError(f"sql: several sources ({', '.join(names)}) need a query that joins them")
        if self.sql is not None:
            try:
                check_view_sql(self.sql, names)
            except DefinitionError as error:
                raise DefinitionError(
                    f"FeatureView {self.name!r}: sql: {error.message}", hint=error.hint, field="sql"
                ) from None
        if self.fields is not None:
            if not self.fields and not self.aggregations:
                raise ValueError("schema: needs at least one Field, or leave it out")
            check_unique_columns([*self.join_keys, *(field.name for field in self.fields)])
        self._check_events()
        self._check_statistics()
        return self

    def _check_statistics(self) -> None:
        if self.fields is None or isinstance(self.statistics, bool):
            return
        known = [field.name for field in self.fields]
        for name in self.statistics:
            if name not in known:
                raise ValueError(f"statistics: {name!r} is not in the schema. {did_you_mean(name, known)}".rstrip())

    def _check_events(self) -> None:
        if self.events is None:
            if self.event_id is not None:
                raise ValueError("event_id: only a view with aggregations counts events")
            return
        if self.ttl is not None:
            raise ValueError("ttl: a view with aggregations has none: its windows say how long an event counts")
        if self.takes_events and self.event_id is None:
            raise ValueError(
                "event_id: name the column that tells events apart: a push may be repeated. Or read the batch source"
            )
        self.events.check()
        if self.fields is not None:
            self.events.check_schema(self.fields)

    @property
    def join_keys(self) -> dict[str, ValueType]:
        """Every join key of the entities and its type, as declared."""
        return {key: kind for entity in self.entities for key, kind in entity.join_keys.items()}

    @cached_property
    def features(self) -> tuple[Field, ...]:
        """What may be asked for; raises DefinitionError while no schema is declared or pinned."""
        return self.stored if self.events is None else self.events.features(self.stored)

    @cached_property
    def events(self) -> EventColumns | None:
        """What a view with aggregations reads of its events; None for any other view."""
        if not self.aggregations:
            return None
        times = self.timestamp_field, self.created_timestamp_field
        return EventColumns(self.name, self.join_keys, *times, self.aggregations, self.event_id)

    @property
    def takes_events(self) -> bool:
        """Whether events are pushed to it."""
        is_pushed = any(isinstance(source, PushSource) for source in self.sources)
        return bool(self.aggregations) and self.sql is None and is_pushed

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """What the features of a view with aggregations are, in their order."""
        return () if self.events is None else self.events.windows

    @property
    def stored(self) -> tuple[Field, ...]:
        """What the view's log keeps of each row: what is read, pushed, committed and compared. Raises as `features`."""
        if self.fields is None and self.events is not None and not self.events.stored:
            return ()
        if self.fields is None:
            raise DefinitionError(
                f"FeatureView {self.name!r}: schema: it is not known yet.",
                hint="Declare schema=[Field(...)], or run `fs apply`, which reads it from the source.",
            )
        return self.fields

    @property
    def rules(self) -> tuple[tuple[str | None, FieldRule | ViewRule], ...]:
        """Every rule, with the field that it is of; None: of all rows."""
        of_fields = [(field.name, rule) for field in self.fields or () for rule in field.expect]
        return (*of_fields, *((None, rule) for rule in self.expect))

    @property
    def stored_types(self) -> dict[str, ValueType]:
        """Every join key and stored field with its type, in the order of the log."""
        return {**self.join_keys, **{field.name: field.type for field in self.stored}}

    def made_of(self, feature: str) -> tuple[str, ...]:
        """Return the stored fields that one feature is made of."""
        if self.events is None:
            return (feature,)
        aggregation = next(window.aggregation for window in self.events.windows if window.name == feature)
        return self.events.read_by(aggregation)

    @property
    def batch_sources(self) -> tuple[ParquetSource, ...]:
        """The Parquet sources, those behind push sources included."""
        return tuple(source.batch_source for source in self.sources)

    @property
    def timestamp_field(self) -> str:
        """The event time column, in the source or in the output of ``sql``."""
        return self.batch_sources[0].timestamp_field

    @property
    def created_timestamp_field(self) -> str | None:
        """The created time column, in the source or in the output of ``sql``, if any source declares one."""
        return self.batch_sources[0].created_timestamp_field or next(
            (found for source in self.batch_sources if (found := source.created_timestamp_field)), None
        )

    @property
    def created_follows(self) -> bool:
        """Whether each row's created time moves when a late source row changes the row, as far as ``sql`` shows."""
        created = self.created_timestamp_field
        if self.sql is None or created is None:
            return True
        from featurestore.definitions.sql_created import created_follows  # loads the parser

        declared = [(source.name, source.batch_source.created_timestamp_field) for source in self.sources]
        return created_follows(self.sql, created, tuple((name, column) for name, column in declared if column))

    @property
    def ttl_us(self) -> int | None:
        """How old an answer may be, in microseconds, or None for any age."""
        return None if self.ttl is None else self.ttl // MICROSECOND

    @property
    def reach_us(self) -> int | None:
        """How long before an instant an event can still change the answer there, in microseconds; None: for ever.

        Whether an answer has expired is another question: see `ttl_us`. A window's old end moves in steps, so its reach
        at one instant may be shorter: see `reaches_back_to`.
        """
        if not self.aggregations:
            return self.ttl_us
        lengths = [(window.length_us, window.resolution_us) for window in self.windows]
        return None if None in dict(lengths) else max(length + step for length, step in lengths if length is not None)

    def reaches_back_to(self, at_us: int) -> int:
        """Return the earliest event time that can change the answer at an instant."""
        if self.reach_us is None:
            return MIN_INSTANT
        if not self.aggregations:
            return max(at_us - self.reach_us, MIN_INSTANT)
        begins = (window.begins_us(at_us) for window in self.windows)
        return max(min(begin for begin in begins if begin is not None) + 1, MIN_INSTANT)

    def feature(self, name: str) -> Field:
        """Return one feature; raises NotFoundError with the closest name."""
        for field in self.features:
            if field.name == name:
                return field
        raise NotFoundError(
            f"Feature view {self.name!r} has no feature {name!r}.",
            hint=did_you_mean(name, [field.name for field in self.features]),
            view=self.name,
            feature=name,
        )

    def __getitem__(self, names: str | Sequence[str]) -> FeatureSelection:
        """Select features: ``view[["a", "b"]]``."""
        return FeatureSelection(self)[names]

    def with_name(self, name: str) -> FeatureSelection:
        """Read the view under another name, so that it can be joined twice."""
        return FeatureSelection(self).with_name(name)

    def with_join_keys(self, columns: Mapping[str, str]) -> FeatureSelection:
        """Read the view by other columns of the entity frame: ``{join key: column}``."""
        return FeatureSelection(self).with_join_keys(columns)


class FeatureSelection(Named):
    """Some features of a view, perhaps under another name and by other key columns."""

    kind: ClassVar[str] = "selection"
    title: ClassVar[str] = "Selection"

    name: ObjectName
    view: FeatureView
    names: tuple[str, ...] | None = None
    """The selected features in order, or None for all."""
    columns: dict[str, str] = pydantic.Field(default_factory=dict)
    """Entity-frame column of each renamed join key."""

    def __init__(self, view: FeatureView, **values: Any) -> None:
        self._fill(values.pop("name", view.name), view=view, **values)

    @model_validator(mode="after")
    def _check_whole(self) -> FeatureSelection:
        if self.names is not None:
            if not self.names or len(set(self.names)) != len(self.names):
                raise ValueError(f"select at least one feature, each once, not {list(self.names)}")
            if self.view.fields is not None:
                for name in self.names:
                    self.view.feature(name)
        for key, column in self.columns.items():
            if key not in self.view.join_keys:
                raise ValueError(
                    f"{key!r} is not a join key of view {self.view.name!r}; "
                    f"its join keys are {', '.join(self.view.join_keys)}"
                )
            check_column_name(column)
        check_unique_columns(list(self.join_key_columns.values()))
        return self

    @property
    def join_key_columns(self) -> dict[str, str]:
        """The entity-frame column of every join key."""
        return {key: self.columns.get(key, key) for key in self.view.join_keys}

    @property
    def features(self) -> tuple[Field, ...]:
        """The selected features in order."""
        if self.names is None:
            return self.view.features
        return tuple(self.view.feature(name) for name in self.names)

    def __getitem__(self, names: str | Sequence[str]) -> FeatureSelection:
        """Select features: ``selection[["a", "b"]]``."""
        return self._with(names=(names,) if isinstance(names, str) else tuple(names))

    def with_name(self, name: str) -> FeatureSelection:
        """Read the view under another name, so that it can be joined twice."""
        return self._with(name=name)

    def with_join_keys(self, columns: Mapping[str, str]) -> FeatureSelection:
        """Read the view by other columns of the entity frame: ``{join key: column}``."""
        return self._with(columns=dict(columns))

    def _with(self, **values: Any) -> FeatureSelection:
        kept = {"name": self.name, "names": self.names, "columns": self.columns}
        return FeatureSelection(self.view, **{**kept, **values})


def not_shown(created: str) -> str:
    """Return the sentence about a created time that may not follow, as far as the SQL's text shows."""
    return (
        f"{created} is not shown to be the greatest created time of the rows that each row is made of: a late row may "
        "change values of the past, and nothing would show it"
    )
