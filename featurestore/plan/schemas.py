"""Pinning the schemas that users leave out, and checking sources against definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featurestore.definitions import (
    Definition,
    FeatureSelection,
    FeatureService,
    FeatureView,
    Field,
    OnDemandFeatureView,
)
from featurestore.engine.interface import Engine, SourceColumn
from featurestore.engine.schema import check_columns
from featurestore.errors import SourceError, SourceSchemaError


def pin_schemas(
    definitions: Sequence[Definition],
    applied: Mapping[str, FeatureView],
    engine: Engine,
    *,
    refresh: bool,
) -> tuple[list[Definition], list[str]]:
    """Return the definitions with every schema known and every source checked, and notices for people.

    A view without ``schema`` keeps the one that was pinned when it was applied while its source and SQL stay,
    unless ``refresh``. Raises SourceSchemaError or SourceFileError for a view that is new or changed; for one
    that is applied as it stands a broken source is a notice, because nothing of it changes.
    """
    pinned: dict[str, FeatureView] = {}
    notices: list[str] = []
    for view in (found for found in definitions if isinstance(found, FeatureView)):
        before = applied.get(view.name)
        try:
            columns = engine.columns(view)
            made = _pin(view, before, columns, refresh=refresh)
            check_columns(made, columns)
        except SourceError as error:
            settled = _pin(view, before, (), refresh=False) if before is not None else None
            if before is None or settled != before:
                raise
            notices.append(f"{view.name}: {error}")
            made = settled
        else:
            notices += _gained(view, made, columns)
        pinned[view.name] = made
    return [_with_views(definition, pinned) for definition in definitions], notices


def _pin(
    view: FeatureView, before: FeatureView | None, columns: Sequence[SourceColumn], *, refresh: bool
) -> FeatureView:
    if view.fields is not None:
        return view
    if before is not None and not refresh and _reads_same(view, before):
        return view.replaced(fields=before.features)
    fields = []
    for column in _feature_columns(view, columns):
        if column.value_type is None:
            raise SourceSchemaError(
                f"Feature view {view.name!r}: column {column.name!r} is of type {column.native_type}, "
                "which no feature can have.",
                hint="Leave it out: declare schema=[...], or select the other columns with sql=.",
                view=view.name,
                column=column.name,
            )
        fields.append(Field(column.name, column.value_type))
    if not fields:
        raise SourceSchemaError(
            f"Feature view {view.name!r}: its source has no column beside keys and times.", view=view.name
        )
    return view.replaced(fields=tuple(fields))


def _reads_same(view: FeatureView, before: FeatureView) -> bool:
    return (view.sources, view.sql, view.join_keys) == (before.sources, before.sql, before.join_keys)


def _feature_columns(view: FeatureView, columns: Sequence[SourceColumn]) -> list[SourceColumn]:
    taken = {*view.join_keys, view.timestamp_field, view.created_timestamp_field}
    return [column for column in columns if column.name not in taken]


def _gained(view: FeatureView, made: FeatureView, columns: Sequence[SourceColumn]) -> list[str]:
    known = {field.name for field in made.features}
    new = [column.name for column in _feature_columns(view, columns) if column.name not in known]
    if not new or view.fields is not None:
        return []
    return [f"{view.name}: the source also has {', '.join(new)}; `fs apply --refresh-schema` takes them in."]


def _with_views(definition: Definition, pinned: Mapping[str, FeatureView]) -> Definition:
    """Return the definition with the pinned views in place of those it was made with."""
    if isinstance(definition, FeatureView):
        return pinned[definition.name]
    if isinstance(definition, OnDemandFeatureView):
        inputs = tuple(_select(s, pinned) if isinstance(s, FeatureSelection) else s for s in definition.inputs)
        return definition.replaced(inputs=inputs)
    if isinstance(definition, FeatureService):
        features = tuple(
            _with_views(f, pinned) if isinstance(f, OnDemandFeatureView) else _select(f, pinned)
            for f in definition.features
        )
        return definition.replaced(features=features)
    return definition


def _select(selection: FeatureSelection, pinned: Mapping[str, FeatureView]) -> FeatureSelection:
    return selection.replaced(view=pinned[selection.view.name])
