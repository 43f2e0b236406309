"""The engine's ability to check rows against rules before they are committed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.definitions import FeatureView
from featurestore.definitions.expectations import FieldRule, NotNull, Share
from featurestore.types import Timestamp, ValueType
from featurestore.types.arrow import arrow_schema
from featurestore.types.columns import CREATED, EVENT

if TYPE_CHECKING:
    import pyarrow as pa

RowRule = FieldRule | Share
ROW_ID, FAILED = "fs_row_id", "fs_failed"
"""Columns of rows that are set aside: which row it is, and a text for each rule that it fails."""


@dataclass(frozen=True, slots=True)
class Failures:
    """How many rows fail one rule."""

    rows: int
    """Rows with a null for `NotNull`, repeated values for `Unique`, rows of which the condition is true for `Share`."""
    least: Any = None
    """The least and the greatest value that fails, of rules with an order or a text."""
    greatest: Any = None
    broken: int = 0
    """Rows of which a condition cannot be computed, such as a text that is to be a number: neither true nor false."""


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """What rows are like."""

    rows: int
    greatest_event_us: int | None
    failures: tuple[Failures, ...]
    """One for each rule, in their order."""


@dataclass(frozen=True, slots=True)
class SplitRows:
    """Files of a table without the rows that are not for it."""

    paths: tuple[Path, ...]
    """The files of the rows that stay, in the table's order: those that were given where none goes, none where all go.
    """
    rows: int
    """How many stay."""
    known: int
    """Rows that went because they are known."""
    failed: int
    """Rows that went because they fail a rule."""
    failing: Path | None
    """A Parquet file of the latter: `ROW_ID`, `FAILED`, join keys, event_ts, created_ts, stored fields."""


class Checks(ABC):
    """Rules of a view's rows. See the rules in `featurestore.definitions.expectations`."""

    @abstractmethod
    def check(
        self,
        name: str,
        types: Mapping[str, ValueType],
        rows: Sequence[str] | pa.Table,
        rules: Sequence[tuple[str | None, RowRule]],
        *,
        times: Mapping[str, str] | None = None,
    ) -> CheckedRows:
        """Check files of a view's table, or a table, against rules of columns and shares, by one query.

        ``name`` is what messages call the rows, ``types`` those of the columns that rules are about, ``times`` further
        names of columns of the rows that conditions may use. A column that is not there is null. Raises
        SourceSchemaError naming a condition or pattern that does not work, DamagedFileError and EngineError; no message
        has a value of the rows in it.
        """

    @abstractmethod
    def fingerprint(self, view: FeatureView, files: Sequence[str]) -> str:
        """Return a hash of what rows of a view's table hold, in whatever order and files: equal rows have equal ones.

        ``fs_seq`` and ``fs_origin`` do not count. Raises as `check`.
        """

    @abstractmethod
    def split(
        self,
        view: FeatureView,
        files: Sequence[str],
        rules: Sequence[tuple[str, FieldRule]],
        known: pa.Table,
        folder: Path,
    ) -> SplitRows:
        """Take rows of a view's table that fail one of the rules, or are known, out of files; write both to a folder.

        Each rule is of single rows. ``known`` has `ROW_ID` and event_ts. An id is the first 32 hex digits of the
        SHA-256 of the row: for each join key, event_ts, created_ts, and each stored field by name, unless it is null,
        the name and the value, each with its length in bytes and a colon before it. Instants are microseconds, days
        count from 1970, bytes are in hex, floats ``%.16e`` or ``nan``, decimals without zeros at the end, the items of
        a list are such texts or ``-``. Among equal rows of the files the second one ends with ``-2``, and so on; so
        many of them are known as there are ids of them. Raises as `check`.
        """

    @abstractmethod
    def check_conditions(self, name: str, view: FeatureView, conditions: Sequence[str]) -> None:
        """Raise SourceSchemaError for a condition that can be computed of no row, whatever rows hold; reads none."""

    def check_rules(self, view: FeatureView) -> None:
        """Raise SourceSchemaError where a condition or a pattern of a view's rules does not work; reads no rows."""
        rules, name = rules_of_rows(view), f"feature view {view.name!r}"
        if rules:
            self.check(name, view.stored_types, schema_of(view).empty_table(), rules, times=times_of(view))
            conditions = [rule.where for _, rule in rules if isinstance(rule, Share)]
            self.check_conditions(name, view, conditions)


def schema_of(view: FeatureView) -> pa.Schema:
    """Return the columns of a view's rows that conditions may read."""
    return arrow_schema({**view.stored_types, EVENT: Timestamp, CREATED: Timestamp})


def times_of(view: FeatureView) -> dict[str, str]:
    """Return the names of a view's times, as its source has them, with the columns of its rows."""
    times = {view.timestamp_field: EVENT}
    if view.created_timestamp_field is not None:
        times[view.created_timestamp_field] = CREATED
    return times


def rules_of_rows(view: FeatureView) -> list[tuple[str | None, RowRule]]:
    """Return a view's rules that rows are checked against; the others are of a run."""
    return [(name, rule) for name, rule in view.rules if isinstance(rule, FieldRule | Share)]


def rules_of_single_rows(view: FeatureView) -> list[tuple[str, FieldRule]]:
    """Return the rules that a row alone meets or fails, with their fields."""
    return [(name or "", rule) for name, rule in view.rules if isinstance(rule, FieldRule) and rule.is_of_rows]


def unmet_by_rows(
    rules: Sequence[tuple[str | None, RowRule]], found: CheckedRows, hidden: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Give what rows are not like, and which values fail: none of hidden columns. No rows meet every rule."""
    for (name, rule), failures in zip(rules, found.failures, strict=True):
        if not found.rows:
            continue
        if failures.broken:  # whatever the share of the others is, nobody knows that of all
            yield f"{rule}: cannot be computed of {failures.broken:,} of {counted_rows(found.rows)}", ""
            continue
        if not _is_unmet(rule, failures.rows, found.rows):
            continue
        counts = f"{failures.rows:,} of {counted_rows(found.rows)}"
        if name is None:
            yield f"{rule}: {counts}", ""
        else:
            yield f"{name}: {rule}: {counts}", "" if name in hidden else _examples(failures)


def counted_rows(count: int) -> str:
    """Return a number of rows in words."""
    return "1 row" if count == 1 else f"{count:,} rows"


def _is_unmet(rule: RowRule, failed: int, rows: int) -> bool:
    share = failed / rows  # divided, as the author's number was read: 29 of 100 are not more than 0.29
    if isinstance(rule, Share):
        return share > rule.at_most if rule.at_most is not None else share < (rule.at_least or 0.0)
    return share > rule.max_share if isinstance(rule, NotNull) else failed > 0


def _shown(value: Any) -> str:
    """Return a value as it is read in a sentence: a text that cannot be seen there is quoted."""
    is_plain = not isinstance(value, str) or (value and value == value.strip() and value.isprintable())
    return str(value) if is_plain else repr(value)


def _examples(failures: Failures) -> str:
    if failures.least is None:
        return ""
    least, greatest = _shown(failures.least), _shown(failures.greatest)
    return least if least == greatest else f"{least} to {greatest}"
