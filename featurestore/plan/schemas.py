"""Pinning the schemas that users leave out, and checking sources against definitions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from featurestore.definitions import Definition, FeatureView, Field
from featurestore.definitions.sql import changing_call
from featurestore.engine.interface import Engine, SourceColumn, Sources
from featurestore.engine.schema import HUGE, check_columns, find_column
from featurestore.errors import DefinitionError, SourceError, SourceSchemaError, did_you_mean
from featurestore.project.loader import with_views


def pin_schemas(
    definitions: Sequence[Definition],
    applied: Mapping[str, FeatureView],
    engine: Engine,
    *,
    refresh: bool,
) -> tuple[list[Definition], list[str]]:
    """Return the definitions with every schema known and every source checked, and notices for people.

    A view without ``schema`` keeps its pinned one while its source and SQL stay, unless ``refresh``. Raises
    SourceError, with every fault, where new or changed views do not fit their sources. For an unchanged view a
    broken source is only a notice, because the apply does not touch it.
    """
    sources = engine.sources
    pinned: dict[str, FeatureView] = {}
    notices: list[str] = []
    faults: list[SourceError] = []
    for view in (found for found in definitions if isinstance(found, FeatureView)):
        before = applied.get(view.name)
        try:
            _check_repeats(view)
            columns = sources.columns(view)
            check_columns(view, columns)
            made = _pin(view, before, columns, refresh=refresh)
            if made is not view and view.sql is None:
                columns = sources.columns(made)  # a column without values in a file may have any type there
            check_columns(made, columns)
            never = sources.check_conditions(made)
            engine.checks.check_rules(made)
        except SourceError as error:
            settled = _as_applied(view, before)
            if settled is None:
                faults += _faults_of(sources, view, error)
                continue
            notices.append(f"{view.name}: {error}")
            made = settled
        else:
            notices += _gained(view, made, columns)
            if made != before:
                notices += [_never_true(view, condition, rows) for condition, rows in never.items()]
        pinned[view.name] = made
    if faults:
        raise _together(faults)
    return [with_views(definition, lambda view: pinned[view.name]) for definition in definitions], notices


def _never_true(view: FeatureView, condition: str, rows: int) -> str:
    told = f"{view.name}: the condition {condition!r} is true of none of {rows:,} rows of the source that were tried"
    if re.search(r"[=<>]\s*NULL\b", condition, re.IGNORECASE):
        return f"{told}: no comparison with NULL ever is. Write IS NULL, or IS NOT NULL."
    return f"{told}."


def _check_repeats(view: FeatureView) -> None:
    """Raise SourceSchemaError for SQL that gives different values each time it reads the same rows."""
    called = None if view.sql is None else changing_call(view.sql)
    if called is not None:
        raise SourceSchemaError(
            f"The SQL of feature view {view.name!r} calls {called}, whose result changes from call to call: runs over "
            "the same rows would correct them for ever, and training sets would depend on when the runs happened.",
            hint="Compute it from the rows. A value that depends on the time of a read belongs in an on-demand view.",
            view=view.name,
        )


def _as_applied(view: FeatureView, before: FeatureView | None) -> FeatureView | None:
    """Return the view with its pinned schema if it is applied unchanged, None where it is new or changed."""
    if before is None or (view.fields is None and not _reads_same(view, before)):
        return None
    settled = view.replaced(fields=before.stored) if view.fields is None else view
    return settled if settled == before else None


def _faults_of(sources: Sources, view: FeatureView, error: SourceError) -> list[SourceError]:
    """Return the faults of a view's sources, or those of the view where its sources are sound."""
    found = []
    for source in view.batch_sources:
        try:
            sources.columns(source)
        except SourceError as fault:
            found.append(fault)
    return found or [error]


def _together(faults: Sequence[SourceError]) -> SourceError:
    """Return one error with all faults; a broken source is in it once, however many views read it."""
    told = list({str(fault): fault for fault in faults}.values())
    if len(told) == 1:
        return told[0]
    kinds = {type(fault) for fault in told}
    return (kinds.pop() if len(kinds) == 1 else SourceError)(
        f"{len(told)} faults in what the definitions read:"
        + "".join("\n- " + str(fault).replace("\n", "\n  ") for fault in told),
        faults=[{"message": fault.message, "hint": fault.hint, **fault.details} for fault in told],
    )


def _pin(
    view: FeatureView, before: FeatureView | None, columns: Sequence[SourceColumn], *, refresh: bool
) -> FeatureView:
    if view.fields is not None:
        return view
    if before is not None and not refresh and _reads_same(view, before):
        return view.replaced(fields=before.stored)
    _check_event_columns(view, columns)
    fields = []
    for column in _feature_columns(view, columns):
        if column.value_type is None:
            hint = "Leave it out: declare schema=[...], or select the other columns with sql=."
            item = column.native_type.rstrip("[]")
            if item in HUGE:
                hint = f'Write CAST("{column.name}" AS {column.native_type.replace(item, "BIGINT")}) in the SQL.'
            raise SourceSchemaError(
                f"Feature view {view.name!r}: column {column.name!r} is of type {column.native_type}, "
                "which no feature can have.",
                hint=hint,
                view=view.name,
                column=column.name,
            )
        try:
            fields.append(Field(column.name, column.value_type))
        except DefinitionError as error:
            raise SourceSchemaError(
                f"Feature view {view.name!r} takes every column, and {column.name!r} cannot be a feature: "
                f"{error.message.partition(': name: ')[2] or error.message}",
                hint="Declare schema=[...], or select columns and rename them with sql=.",
                view=view.name,
                column=column.name,
            ) from None
    if not fields and not view.aggregations:
        read = "its source has" if view.sql is None else "its SQL selects"
        raise SourceSchemaError(f"Feature view {view.name!r}: {read} no column besides keys and times.", view=view.name)
    return view.replaced(fields=tuple(fields))


def _check_event_columns(view: FeatureView, columns: Sequence[SourceColumn]) -> None:
    """Raise SourceSchemaError for a column that aggregations read and that is not there."""
    if view.events is None:
        return
    for name in view.events.stored:
        if find_column(columns, name) is None:
            read = "its source does not have" if view.sql is None else "its SQL does not select"
            hint = did_you_mean(name, [column.name for column in columns])
            if any(f'"{name}"' in (each.where or "") for each in view.aggregations):
                hint = f"Text takes single quotes: '{name}'. {hint}".rstrip()
            raise SourceSchemaError(
                f"Feature view {view.name!r}: {view.events.reader_of(name)} {name!r}, which {read}.",
                hint=hint,
                view=view.name,
                column=name,
            )


def _reads_same(view: FeatureView, before: FeatureView) -> bool:
    read = [(each.sources, each.sql, each.join_keys, each.events and each.events.stored) for each in (view, before)]
    return read[0] == read[1]


def _feature_columns(view: FeatureView, columns: Sequence[SourceColumn]) -> list[SourceColumn]:
    if view.events is not None:
        found = [find_column(columns, name) for name in view.events.stored]
        return [column for column in found if column is not None]
    taken = {*view.join_keys, view.timestamp_field, view.created_timestamp_field}
    return [column for column in columns if column.name not in taken]


def _gained(view: FeatureView, made: FeatureView, columns: Sequence[SourceColumn]) -> list[str]:
    known = {field.name for field in made.stored}
    new = [column.name for column in _feature_columns(view, columns) if column.name not in known]
    if not new or view.fields is not None:
        return []
    return [f"{view.name}: the source also has {', '.join(new)}; `fs apply --refresh-schema` takes them in."]
