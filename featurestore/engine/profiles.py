"""The engine's ability to count what columns hold: totals over all rows, and a sample for what needs sorted values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from hashlib import md5
from typing import TYPE_CHECKING, Any

from featurestore.definitions import ParquetSource
from featurestore.types import ValueType

if TYPE_CHECKING:
    import pyarrow as pa

KEPT_CHARACTERS, MOST_CHARACTERS = 100, 109
"""A text of more than the second number stands in a profile as `shortened`, which has that length."""


def shortened(text: str, content: bytes | None = None) -> str:
    """Return a text as a profile holds it: a long one as its beginning, and 8 digits of the MD5 of the whole.

    ``content`` are the bytes that a text in base64 stands for: their MD5 then tells them apart.
    """
    if len(text) <= MOST_CHARACTERS:
        return text
    digits = md5(text.encode() if content is None else content, usedforsecurity=False).hexdigest()[:8]
    return f"{text[:KEPT_CHARACTERS]}\u2026{digits}"


def is_number(kind: ValueType) -> bool:
    """Tell whether values of a type have means and deviations."""
    return kind.name in ("Int32", "Int64", "Float32", "Float64") or kind.precision is not None


def middle_of(kind: ValueType, least: Any, greatest: Any) -> Any:
    """Return a value of an integer or decimal type in the middle of two: differences from it stay in the type."""
    if kind.precision is None:
        return (least + greatest + 1) // 2
    with localcontext(prec=100):
        return ((least + greatest) / 2).quantize(Decimal(1).scaleb(-(kind.scale or 0)))


@dataclass(frozen=True)
class Sample:
    """How many rows a profile draws, by a hash of each row's place: a share, within bounds."""

    share: float = 0.05
    least: int = 50_000
    """Fewer rows are taken whole."""
    most: int = 1_000_000

    @classmethod
    def within(cls, columns: int) -> Sample:
        """Return the sample for so many columns: fewer rows where there are hundreds, since sorting them costs most."""
        least = min(cls.least, max(10_000, 5_000_000 // max(columns, 1)))
        return cls(least=least, most=min(cls.most, max(least, 50_000_000 // max(columns, 1))))

    def of(self, rows: int) -> float:
        """Return the share of so many rows; a hash draws a little more or less than it."""
        wanted = min(max(self.share * rows, self.least * 1.03), self.most)
        return 1.0 if rows <= self.least else min(wanted / rows, 1.0)


@dataclass(frozen=True, slots=True)
class ColumnTotals:
    """What all rows hold of one column; values are Python's, as in `types.values`, texts as `shortened`."""

    nulls: int
    not_finite: int = 0
    """NaN and infinities, which are in nothing below."""
    distinct: int | None = None
    """Mostly within five percent; None of lists, and where ``distinct_within`` is known, which costs nothing."""
    distinct_within: tuple[int, int] | None = None
    """Between how many there are, of a column with few values; the sample tells it better."""
    minimum: Any = None
    """None as the maximum of lists, bytes, hidden columns, and where there is no value."""
    maximum: Any = None
    mean: float | None = None
    """Only numbers have it, as they do a deviation, which is that of these rows and not of a population."""
    deviation: float | None = None


@dataclass(frozen=True, slots=True)
class ProfiledColumns:
    """Some columns of a profile."""

    rows: int
    sample: pa.Table
    """The drawn rows: the columns in their own types, bytes as base64, long texts as `shortened`."""
    totals: Mapping[str, ColumnTotals] | None
    """None where the sample is all rows, and not shortened: then it says all of it."""


class Profiles(ABC):
    """What columns hold."""

    @abstractmethod
    def profile(
        self,
        rows: Sequence[str] | ParquetSource | pa.Table,
        columns: Mapping[str, ValueType],
        *,
        hidden: Collection[str] = (),
        sample: Sample = Sample(),
    ) -> Iterator[ProfiledColumns]:
        """Yield the columns of a table's files, of a source or of a table, in groups whose samples memory holds.

        A column that a file lacks is null there; each is cast to its type. Of ``hidden`` ones the totals are only nulls
        and distinct values. Equal rows give an equal sample, without lists; the last digits of means may differ. Raises
        as `Queries.query`.
        """
