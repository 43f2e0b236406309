"""Comparing a training set with what is expected of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from featurestore.definitions import NotNull, Rows, Share
from featurestore.definitions.expectations import FieldRule, Rule, ViewRule
from featurestore.engine.checks import RowRule, counted_rows, unmet_by_rows
from featurestore.errors import InputError, TrainingSetError, did_you_mean
from featurestore.types import ValueType
from featurestore.types.arrow import value_type_of
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "the training set"


def check_set(
    workspace: Readers,
    table: pa.Table,
    features: Mapping[str, ValueType],
    expect: ViewRule | Iterable[ViewRule],
    columns: Mapping[str, FieldRule | Iterable[FieldRule]],
    *,
    hidden: Collection[str],
) -> None:
    """Raise TrainingSetError where rows are not as expected. See `TrainingSet.check`."""
    rules = [*_of_rows(expect), *_of_columns(table, features, columns)]
    if not rules:
        raise InputError("Nothing is expected.", hint="Pass expect=[Rows(at_least=1_000)], for example.")
    checked: list[tuple[str | None, RowRule]] = [
        (name, rule) for name, rule in rules if isinstance(rule, FieldRule | Share)
    ]
    types = {name: kind for name, _ in checked if name and (kind := _type_of(table, features, name)) is not None}
    found = workspace.engine.checks.check(NAME, types, table, checked)
    unmet = [f"{told} ({shown})" if shown else told for told, shown in unmet_by_rows(checked, found, hidden)]
    for _, rule in rules:
        if isinstance(rule, Rows) and found.rows < (rule.at_least or 0):
            unmet.append(f"{rule}: {counted_rows(found.rows)}")
    if unmet:
        raise TrainingSetError(f"The training set is not as expected: {'; '.join(unmet)}.", unmet=unmet)


def _of_rows(expect: ViewRule | Iterable[ViewRule]) -> Iterator[tuple[None, Rule]]:
    for rule in [expect] if isinstance(expect, Rule) else expect:
        if isinstance(rule, Rows) and rule.change_at_most is not None:
            raise InputError(f"{rule}: change_at_most compares runs of a view.", hint="Pass Rows(at_least=...).")
        if not isinstance(rule, Rows | Share):
            hint = (
                "Pass Rows and Share in expect, and rules of single columns by name: columns={'rating': [NotNull()]}."
            )
            raise InputError(f"{rule!r} is no rule of a training set.", hint=hint)
        yield None, rule


def _of_columns(
    table: pa.Table, features: Mapping[str, ValueType], columns: Mapping[str, FieldRule | Iterable[FieldRule]]
) -> Iterator[tuple[str, Rule]]:
    for name, rules in columns.items():
        if name not in table.column_names:
            raise InputError(
                f"The training set has no column {name!r}.", hint=did_you_mean(name, table.column_names), column=name
            )
        kind = _type_of(table, features, name)
        for rule in [rules] if isinstance(rules, Rule) else rules:
            if not isinstance(rule, FieldRule):
                raise InputError(f"{rule!r} is no rule of a column.", hint="Pass Between, NotNull, OneOf, ...")
            if kind is None and isinstance(rule, NotNull):  # whatever its values are, nulls can be counted
                yield name, rule
                continue
            if kind is None:
                raise InputError(
                    f"Column {name!r} is of type {table.schema.field(name).type}, which rules do not know.",
                    hint="Only NotNull() can be checked of it; convert the column for other rules.",
                )
            try:
                yield name, rule.fitted(kind)
            except ValueError as error:
                raise InputError(f"Column {name!r}: {error}.", column=name) from None


def _type_of(table: pa.Table, features: Mapping[str, ValueType], name: str) -> ValueType | None:
    return features.get(name) or value_type_of(table.schema.field(name).type)
