"""A profile: the statistics of any table, drawn in a terminal and a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from featurestore_registry.documents import ColumnStatistics, Scalar

from featurestore.engine.interface import Engine
from featurestore.engine.profiles import ProfiledColumns, Sample
from featurestore.statistics.bins import spikes
from featurestore.statistics.columns import Column, statistics_of, totals_in
from featurestore.statistics.counting import Counted, count
from featurestore.tables import visible

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from featurestore.definitions import ParquetSource

BARS = 24
"""How many bars a drawing has at most."""
FEW_VALUES = 24
"""A column of numbers with at most so many different ones is drawn value by value."""
HEADS = ("column", "type", "nulls", "distinct", "least", "median", "greatest", "mean", "values")
RIGHT = ("nulls", "distinct", "mean")
_BLOCKS, _PLAIN_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_MEDIAN = 3


@dataclass(frozen=True, slots=True)
class Drawing:
    """The drawing of one column."""

    rows: int
    """Rows of the sample, with those that have no value."""
    bars: tuple[int, ...] = ()
    """Rows of the sample in intervals of equal width between the 1 % and the 99 % quantile; for few different numbers
    those of each; of texts and bools none, whose frequent values are in ``top``."""
    apart: tuple[tuple[Scalar, int], ...] = ()
    """Frequent numbers so far from all others that bars for them would press the others into few, such as a sentinel of
    -999, and their rows of the sample: no bar counts them."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a table holds, column by column. A notebook draws it; `fs profile` prints the same."""

    name: str
    rows: int
    sampled: int
    """Rows of the sample that quantiles, frequent values and drawings were counted from."""
    columns: tuple[ColumnStatistics, ...]
    drawings: Mapping[str, Drawing]
    """By column."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Columns of types that are not profiled, and what the types are called."""

    def __getitem__(self, name: str) -> ColumnStatistics:
        """Return one column's statistics; raises KeyError."""
        return {column.name: column for column in self.columns}[name]

    def __repr__(self) -> str:
        return f"Profile({self.name}: {_counted(self.rows, 'row')}, {_counted(len(self.columns), 'column')})"

    def __str__(self) -> str:
        rows = [HEADS, *(tuple(map(visible, cells)) for cells in self.cells())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if head in RIGHT else cell.ljust(width)
                for cell, width, head in zip(row, widths, HEADS, strict=True)
            ).rstrip()
            for row in rows
        ]
        out = [f"{name}: {kind} is not profiled" for name, kind in self.left_out.items()]
        return "\n".join([visible(self.title()), *lines, *map(visible, out)])

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each column."""
        import pandas as pd

        values = {name: [getattr(each, name) for each in self.columns] for name in ColumnStatistics.__slots__}
        mixed = ("minimum", "maximum", "quantiles", "top", "at_points", "in_bins")
        columns = {name: pd.Series(held, dtype=object if name in mixed else None) for name, held in values.items()}
        return pd.DataFrame(columns).set_index("name")

    def cells(self, *, blocks: bool = True) -> Iterator[tuple[str, ...]]:
        """Yield the texts of each column's line, in the order of `HEADS`; without ``blocks`` in ASCII."""
        for column in self.columns:
            yield (*_texts(column), _line(column, self.drawings[column.name], _BLOCKS if blocks else _PLAIN_BLOCKS))

    def title(self) -> str:
        """Return what was profiled, in words."""
        told = f"; quantiles and frequent values from {self.sampled:,} of them, distinct estimated"
        return f"{self.name}: {_counted(self.rows, 'row')}{told if self.sampled < self.rows else ''}"

    def _repr_html_(self) -> str:
        heads = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in HEADS)
        rows = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{escape(text)}</td>" for text in _texts(column))
            + f"<td style='text-align:left'>{_svg(column, self.drawings[column.name])}</td></tr>"
            for column in self.columns
        )
        out = "".join(f"<p>{escape(f'{name}: {kind} is not profiled')}</p>" for name, kind in self.left_out.items())
        return f"<p>{escape(self.title())}</p><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{out}"


class Profiles(list[Profile]):
    """Profiles of several tables; a notebook draws them below one another."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))

    def _repr_html_(self) -> str:
        return "".join(each._repr_html_() for each in self)


def profile(
    engine: Engine,
    name: str,
    rows: Sequence[str] | ParquetSource | pa.Table,
    columns: Sequence[Column],
    *,
    left_out: Mapping[str, str] | None = None,
) -> Profile:
    """Profile columns of files, of a source or of a table."""
    wanted, found, total, sampled = {column.name: column for column in columns}, list[ColumnStatistics](), 0, 0
    drawings = dict[str, Drawing]()
    kinds = {column.name: column.kind for column in columns}
    hidden = [column.name for column in columns if column.is_hidden]
    for profiled in engine.profiles.profile(rows, kinds, hidden=hidden, sample=Sample.within(len(kinds))):
        total, sampled = profiled.rows, max(sampled, profiled.sample.num_rows)
        drawn = dict(zip(profiled.sample.column_names, profiled.sample.columns, strict=True))
        for each in names_of(profiled):
            made, drawings[each] = _column(wanted[each], profiled, drawn.get(each))
            found.append(made)
    return Profile(name, total, sampled, tuple(found), drawings, dict(left_out or {}))


def names_of(profiled: ProfiledColumns) -> Iterable[str]:
    """Return the columns that a part of a profile is about."""
    return profiled.sample.column_names if profiled.totals is None else profiled.totals


def _column(
    column: Column, profiled: ProfiledColumns, drawn: pa.ChunkedArray | None
) -> tuple[ColumnStatistics, Drawing]:
    counted = None if drawn is None else count(column.kind, drawn)
    made = statistics_of(column, profiled.rows, counted, totals_in(profiled, column, counted))
    if counted is None or column.is_hidden:
        return made, Drawing(0)
    return made, _drawn(counted, profiled.sample.num_rows)


def _drawn(counted: Counted, rows: int) -> Drawing:
    keys = counted.keys
    if keys is None or not len(keys):
        return Drawing(rows)
    if len(keys) <= FEW_VALUES:
        return Drawing(rows, tuple(map(int, counted.counts)))
    apart = _apart(counted)
    numbers, counts = np.delete(keys, apart).astype(np.float64), np.delete(counted.counts, apart)
    low, high = _ends(numbers, counts)
    if not np.isfinite(high - low) or high <= low:
        low, high = float(numbers[0]), float(numbers[-1])
    found, _ = np.histogram(numbers, BARS, (low, high), weights=counts)
    told = tuple((counted.scalar(place), int(counted.counts[place])) for place in apart)
    return Drawing(rows, tuple(map(int, found)), told)


def _apart(counted: Counted) -> list[int]:
    """Return the places of spikes that lie farther from all other numbers than these lie from one another."""
    assert counted.keys is not None
    numbers, found = counted.keys.astype(np.float64), spikes(counted)
    others = np.delete(numbers, found)
    if not len(others):
        return []
    low, high = _ends(others, np.delete(counted.counts, found))
    return [int(place) for place in found if max(low - numbers[place], numbers[place] - high) > high - low]


def _ends(numbers: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return the 1 % and the 99 % quantile."""
    cumulated = np.cumsum(counts)
    low, high = (float(numbers[np.searchsorted(cumulated, share * cumulated[-1])]) for share in (0.01, 0.99))
    return low, high


def _texts(column: ColumnStatistics) -> tuple[str, ...]:
    nulls = "" if not column.nulls else _share(column.nulls, column.rows)
    if column.not_finite:
        nulls = ", ".join(filter(None, (nulls, f"{_share(column.not_finite, column.rows)} NaN/inf")))
    distinct = "" if column.distinct is None else f"{column.distinct:,}"
    median = column.quantiles[_MEDIAN] if column.quantiles else None
    shown = (column.minimum, median, column.maximum, column.mean)
    return (column.name, column.type, nulls, distinct, *map(_short, shown))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _share(part: int, whole: int) -> str:
    share = part / max(whole, 1)
    return "< 0.1 %" if share < 0.001 else f"{share:.1%}".replace("%", " %")


def _short(value: Scalar) -> str:
    """Return a value in few characters."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.5g}"
    text = str(value)
    if not text.strip():
        return f'"{text[:20]}"'  # as the catalog says what nobody would see
    return text if len(text) <= 20 else f"{text[:19]}\u2026"


def _line(column: ColumnStatistics, drawing: Drawing, blocks: str) -> str:
    """Return a column's values as a person sees them in one line."""
    if column.is_hidden:
        return "hidden"
    if drawing.bars:
        top = max(drawing.bars)
        bars = "".join(blocks[-(-count * (len(blocks) - 1) // top)] for count in drawing.bars)
        return ", ".join(filter(None, (bars, _listed(drawing.apart, drawing.rows))))
    return _listed(column.top[:3], drawing.rows)


def _listed(counts: Sequence[tuple[Scalar, int]], rows: int) -> str:
    return ", ".join(f"{_short(value)} {_share(count, rows)}" for value, count in counts)


def _svg(column: ColumnStatistics, drawing: Drawing) -> str:
    """Return a column's drawing as an image that needs no script; texts as their frequent values."""
    if not drawing.bars:
        return escape(_line(column, drawing, _BLOCKS))
    top, width = max(drawing.bars), 5
    bars = "".join(
        f"<rect x='{place * width}' y='{30 - height:.1f}' width='{width - 1}' height='{height:.1f}'/>"
        for place, count in enumerate(drawing.bars)
        if (height := 30 * count / top)
    )
    label = escape(f"histogram of {column.name}", quote=True)
    return (
        f"<svg role='img' aria-label='{label}' width='{len(drawing.bars) * width}' height='30' fill='currentColor'>"
        f"{bars}</svg>{escape(_listed(drawing.apart, drawing.rows))}"
    )
