"""Rules as one query: each is an aggregate over all rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from typing_extensions import override

from featurestore.definitions import Between, FeatureView, Matches, NotNull, OneOf, Share, Unique
from featurestore.definitions.expectations import FieldRule
from featurestore.engine.checks import CheckedRows, Checks, Failures, RowRule, SplitRows, schema_of, times_of
from featurestore.engine.duck.conditions import kind_of, problem_of
from featurestore.engine.duck.offline_sql import log, log_columns, read_log
from featurestore.engine.duck.session import FAULTS_OF_SQL, Session, quote, reason_of, text, translated
from featurestore.engine.duck.split import split_rows
from featurestore.errors import SourceSchemaError
from featurestore.types import ValueType
from featurestore.types.columns import EVENT, ORIGIN, SEQUENCE
from featurestore.types.times import to_instant
from featurestore.types.values import duckdb_type, to_json

if TYPE_CHECKING:
    import pyarrow as pa

DOING = "check rows against what is expected of them"
CONDITION = "fs_condition"
"""How the columns of conditions begin; no column of a user does."""
_SHOWN = 60
"""So many characters of a text that fails are shown."""


class DuckChecks(Checks):
    """Checks in this process."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @override
    def check(
        self,
        name: str,
        types: Mapping[str, ValueType],
        rows: Sequence[str] | pa.Table,
        rules: Sequence[tuple[str | None, RowRule]],
        *,
        times: Mapping[str, str] | None = None,
    ) -> CheckedRows:
        conditions = list(dict.fromkeys(rule.where for _, rule in rules if isinstance(rule, Share)))
        with self._rows(rows, rules) as (connection, source):
            _check_patterns(connection, name, [rule for _, rule in rules if isinstance(rule, Matches)])
            there = {str(found[0]) for found in connection.execute(f"DESCRIBE {source}").fetchall()}
            if conditions:
                source = _with_times(source, there, times or {})
                _check_types(connection, name, source, conditions)
                source = f"SELECT *, {', '.join(_computed(conditions))} FROM ({source})"
            parts = [_selected(column, rule, types, there, _place(rule, conditions)) for column, rule in rules]
            greatest = f"epoch_us(max({EVENT}))" if EVENT in there else "NULL"
            counts = [text for failing, _, _, unknown in parts for text in (failing, unknown)]
            count, greatest_us, *found = _row(connection, name, source, ["count(*)", greatest, *counts])
            faulty = [n for n in range(len(rules)) if found[2 * n] and parts[n][1] != "NULL"]
            # Only then: the least and the greatest of what fails cost as much as counting it.
            ends = [text for number in faulty for text in parts[number][1:3]]
            shown = _row(connection, name, source, ends) if ends else ()
        examples = {number: shown[2 * place : 2 * place + 2] for place, number in enumerate(faulty)}
        failures = [
            Failures(int(found[2 * n] or 0), least, greatest, int(found[2 * n + 1] or 0))
            for n, (least, greatest) in ((n, examples.get(n, (None, None))) for n in range(len(rules)))
        ]
        return CheckedRows(int(count), None if greatest_us is None else int(greatest_us), tuple(failures))

    @override
    def check_conditions(self, name: str, view: FeatureView, conditions: Sequence[str]) -> None:
        if not conditions:
            return
        import pyarrow as pa

        schema = schema_of(view)
        with self._session.open() as connection, translated(DOING):
            connection.register("no_values", pa.Table.from_pylist([{}], schema))
            rows = _with_times("SELECT * FROM no_values", schema.names, times_of(view))
            connection.execute(f"CREATE TEMP TABLE events AS {rows}")
            for condition in dict.fromkeys(conditions):
                if problem := problem_of(connection, condition):
                    raise _uncheckable(name, f"the condition {condition!r} {problem}")

    @override
    def fingerprint(self, view: FeatureView, files: Sequence[str]) -> str:
        columns = [name for name in log_columns(view) if name not in (SEQUENCE, ORIGIN)]
        with self._session.reading(files) as connection, translated(DOING, table_files=files):
            # Not one hash of all: rows that are there twice would cancel each other out in an exclusive or.
            hashed = f"SELECT hash({', '.join(map(quote, columns))}) AS h FROM ({read_log(log_columns(view), files)})"
            query = f"SELECT count(*), bit_xor(h), sum(h::UHUGEINT) % (1::UHUGEINT << 64) FROM ({hashed})"
            (found,) = connection.execute(query).fetchall()
        return "-".join(f"{int(part or 0):x}" for part in found)

    @override
    def split(
        self,
        view: FeatureView,
        files: Sequence[str],
        rules: Sequence[tuple[str, FieldRule]],
        known: pa.Table,
        folder: Path,
    ) -> SplitRows:
        kinds = view.stored_types
        failing: dict[str, str] = {}
        for name, rule in rules:  # rules that are told alike are one
            told, fault = f"{name}: {rule}", fails(rule, quote(name), kinds[name])
            failing[told] = f"({failing[told]}) OR ({fault})" if told in failing else fault
        with (
            self._session.reading(files, writes=folder) as connection,
            translated(DOING, table_files=files),
        ):
            return split_rows(connection, view, files, failing, known, folder)

    @contextmanager
    def _rows(
        self, rows: Sequence[str] | pa.Table, rules: Sequence[tuple[str | None, RowRule]]
    ) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
        """Give a connection, and a SELECT of the rows. Conditions are users' SQL: they run apart."""
        has_conditions = any(isinstance(rule, Share) for _, rule in rules)
        if isinstance(rows, Sequence):
            files = [str(file) for file in rows]
            opened = self._session.open(reads=files) if has_conditions else self._session.reading(files)
            with opened as connection, translated(DOING, table_files=files):
                yield connection, f"SELECT * FROM {log(files)}"
            return
        opened = self._session.open() if has_conditions else self._session.reading([])
        with opened as connection, translated(DOING):
            connection.register("checked_rows", rows)
            yield connection, "SELECT * FROM checked_rows"


def _place(rule: RowRule, conditions: Sequence[str]) -> str:
    return f"{CONDITION}{conditions.index(rule.where) if isinstance(rule, Share) else 0}"


def _row(connection: duckdb.DuckDBPyConnection, name: str, source: str, selected: Sequence[str]) -> tuple[Any, ...]:
    """Return aggregates over rows. Raises SourceSchemaError, without values of the rows."""
    try:
        (found,) = connection.execute(f"SELECT {', '.join(selected)} FROM ({source})").fetchall()
    except (duckdb.ProgrammingError, duckdb.InvalidInputException, duckdb.DataError) as error:
        is_of_sql = isinstance(error, FAULTS_OF_SQL)
        raise _uncheckable(name, reason_of(error) if is_of_sql else f"{kind_of(error)} at a row") from None
    return tuple(found)


def _uncheckable(name: str, why: str) -> SourceSchemaError:
    return SourceSchemaError(
        f"What is expected of {name} cannot be checked: {why}.",
        hint="Correct the condition of Share, or the pattern of Matches.",
    )


def _check_patterns(connection: duckdb.DuckDBPyConnection, name: str, rules: Sequence[Matches]) -> None:
    """Raise SourceSchemaError unless patterns say the same to runs, which match with DuckDB, and to pushes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for rule in dict.fromkeys(rules):
        try:
            connection.execute(f"SELECT regexp_full_match('', {text(rule.pattern)})")
        except duckdb.Error as error:
            raise _uncheckable(name, f"the pattern {rule.pattern!r}: {reason_of(error)}") from None
        try:
            pc.match_substring_regex(pa.array([""]), rule.whole)
        except pa.ArrowInvalid as error:
            told = str(error).partition("\n")[0].rstrip(".")
            raise _uncheckable(name, f"the pattern {rule.pattern!r} has no end, which pushes need: {told}") from None


def _with_times(source: str, there: Collection[str], times: Mapping[str, str]) -> str:
    """Return rows with further names of their columns, as far as no column is called so."""
    known = {name.lower() for name in there}
    named = {name: column for name, column in times.items() if name.lower() not in known}
    more = [f"{column if column in there else 'NULL::TIMESTAMPTZ'} AS {quote(name)}" for name, column in named.items()]
    return f"SELECT {', '.join(['*', *more])} FROM ({source})"


def _check_types(connection: duckdb.DuckDBPyConnection, name: str, source: str, conditions: Sequence[str]) -> None:
    """Raise SourceSchemaError for what is no condition; computes nothing, so no value is in a message."""
    for condition in conditions:
        try:
            ((_, kind, *_),) = connection.execute(f"DESCRIBE SELECT ({condition}\n) FROM ({source})").fetchall()
        except duckdb.Error as error:
            raise _uncheckable(name, f"the condition {condition!r} does not run: {reason_of(error)}") from None
        if kind != "BOOLEAN":
            raise _uncheckable(name, f"the condition {condition!r} is {kind}, and a condition is true or false")


def _computed(conditions: Sequence[str]) -> list[str]:
    """Return a column for each condition: whether it is true, null where it cannot be computed."""
    return [f"TRY(coalesce(({text}\n), false)) AS {CONDITION}{place}" for place, text in enumerate(conditions)]


def _selected(
    name: str | None, rule: RowRule, types: Mapping[str, ValueType], there: Collection[str], condition: str
) -> list[str]:
    """Return the aggregates of one rule: failing rows, the least and the greatest value that fails, rows of which it
    cannot be computed. ``condition`` is the column of a condition.
    """
    if isinstance(rule, Share):
        return [f"count_if({condition})", "NULL", "NULL", f"count_if({condition} IS NULL)"]
    assert name is not None
    if isinstance(rule, NotNull):
        return [f"count(*) - count({quote(name) if name in there else 'NULL'})", "NULL", "NULL", "0"]
    kind = types[name]
    column = f"{quote(name)}::{duckdb_type(kind)}" if name in there else f"NULL::{duckdb_type(kind)}"
    if isinstance(rule, Unique):
        return [f"count({column}) - count(DISTINCT {column})", "NULL", "NULL", "0"]
    failing = f"({fails(rule, column, kind)})"
    shown = f"left({column}, {_SHOWN})" if kind.name == "String" else column
    return [f"count_if({failing})", f"min({shown}) FILTER ({failing})", f"max({shown}) FILTER ({failing})", "0"]


def fails(rule: RowRule, column: str, kind: ValueType) -> str:
    """Return the condition that a value fails a rule of single rows: null fails `NotNull` alone."""
    if isinstance(rule, NotNull):
        return f"{column} IS NULL"
    if isinstance(rule, Matches):
        return f"{column} IS NOT NULL AND NOT regexp_full_match({column}, {text(rule.pattern)})"
    if isinstance(rule, OneOf):
        listed = ", ".join(_literal(value, kind) for value in rule.values)
        return f"{column} IS NOT NULL AND {column} NOT IN ({listed})"
    assert isinstance(rule, Between)
    bounds = []
    if rule.least is not None:
        bounds.append(f"{column} < {_literal(rule.least, kind)}")
    if rule.greatest is not None:
        bounds.append(f"{column} > {_literal(rule.greatest, kind)}")
    if kind.name in ("Float32", "Float64"):
        bounds.append(f"isnan({column})")
    return f"coalesce({' OR '.join(bounds)}, false)"


def _literal(value: Any, kind: ValueType) -> str:
    """Return a canonical value as SQL."""
    if kind.name == "Timestamp":
        return f"make_timestamptz({to_instant(value)}::BIGINT)"
    if kind.name in ("Float32", "Float64"):
        return f"{text(repr(float(value)))}::{duckdb_type(kind)}"
    return f"{text(str(to_json(kind, value)))}::{duckdb_type(kind)}"
