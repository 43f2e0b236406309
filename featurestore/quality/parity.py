"""What a comparison of served values says: figures of each feature, and causes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from featurestore.quality.causes import CAUSES
from featurestore.quality.pages import rendered
from featurestore.served.keep import after_now_text
from featurestore.tables import html_table, visible
from featurestore.types.times import to_instant, to_short_rfc3339

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SHOWN_DIFFERENCES = 100
"""So many are on a page."""
HEADS = ("feature", "rows", "as then", "as now", "mean error", "greatest")
SHOWN_ENTITIES, MOST_SHOWN = 3, 100
"""So many entities are told in words, and so many characters of each; `Parity.to_dict` has more."""
_HASH = re.compile("([0-9a-f]{12})[0-9a-f]{12,}")


@dataclass(frozen=True, slots=True)
class FeatureParity:
    """How one feature compares."""

    feature: str
    """Its name, with that of its view where two are called alike."""
    rows: int
    """Rows that were compared."""
    differs_then: int
    """Rows that differ from what was committed and online by then."""
    differs_now: int
    """Rows that differ from what is known now."""
    mean_error: float | None
    """Mean of the absolute differences from what is known now, of numbers that both sides have."""
    greatest_error: float | None
    """The greatest of them."""


@dataclass(frozen=True)
class Parity:
    """What was served for a service beside what should have been."""

    service: str
    """The feature service."""
    start_us: int
    """The span, in UTC microseconds: the end is not in it."""
    end_us: int
    """Its end."""
    rows: int
    """Entity rows that were compared."""
    features: tuple[FeatureParity, ...]
    """What is said of each feature whose values are kept, in the order of the service."""
    causes: Mapping[str, int]
    """Differences from what is known now, by cause."""
    causes_then: Mapping[str, int]
    """Differences from what was online by then, by cause."""
    entities: tuple[tuple[str, int], ...]
    """The entities with the most differences."""
    not_recomputed: Mapping[str, int]
    """Rows of each feature that nobody can compute again, because its code changed: they are in no other figure."""
    differences: pa.Table
    """At most 10,000 of them: ``request_id``, ``row``, ``served_at``, ``entity``, ``feature``, ``served`` and ``now``
    as texts, ``cause`` and ``cause_then``, which are empty where that comparison finds none."""
    not_served: Mapping[str, int] = field(default_factory=dict)
    """Rows of each feature that were answered without it, without its value in the log, or by other join keys: they are
    in no other figure."""
    not_known: Mapping[str, int] = field(default_factory=dict)
    """Rows of each feature that do not count as different from then, as what was online may be withdrawn and gone."""
    other_secret: int = 0
    """Rows that are not compared, because their join keys are hashed with another secret than the settings have."""
    differing: int = 0
    """Values that differ from one of the two, explained or not."""
    not_explained: int = 0
    """Differences beyond the first 50,000: they are counted, and nobody looked for their causes."""
    after_now: int = 0
    """Served rows that lie after now and after the span: they are not compared."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing could be compared."""
        return not any(each.rows for each in self.features)

    @property
    def unexplained(self) -> int:
        """Differences without a cause."""
        return self.causes.get("unexplained", 0) + self.causes_then.get("unexplained", 0)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, without the list of differences."""
        return {
            "service": self.service,
            "start": to_short_rfc3339(self.start_us),
            "end": to_short_rfc3339(self.end_us),
            "rows": self.rows,
            "features": [asdict(each) for each in self.features],
            "causes": dict(self.causes),
            "causes_then": dict(self.causes_then),
            "entities": [list(each) for each in self.entities],
            "not_recomputed": dict(self.not_recomputed),
            "not_served": dict(self.not_served),
            "not_known": dict(self.not_known),
            "other_secret": self.other_secret,
            "not_explained": self.not_explained,
            "after_now": self.after_now,
            "unexplained": self.unexplained,
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return the differences as a frame."""
        return self.differences.to_pandas()

    def cells(self) -> Iterator[tuple[str, ...]]:
        """Yield the texts of each feature's line, in the order of `HEADS`."""
        for each in self.features:
            matches = (each.rows - each.differs_then, each.rows - each.differs_now)
            errors = ("" if error is None else f"{error:.4g}" for error in (each.mean_error, each.greatest_error))
            yield (each.feature, f"{each.rows:,}", *(_share(count, each.rows) for count in matches), *errors)

    def title(self) -> str:
        """Return what was compared, in words."""
        end = to_short_rfc3339(self.end_us)
        span = f"from {to_short_rfc3339(self.start_us)} to {end}" if self.start_us else f"up to {end}"
        return f"{self.service}: {self.rows:,} served rows {span}"

    def notes(self) -> Iterator[str]:
        """Yield what the figures do not say."""
        yield from self._notes_of_causes()
        yield from self.left_out()
        for name, count in self.entities[:SHOWN_ENTITIES]:
            short = visible(_HASH.sub(r"\1…", name))[:MOST_SHOWN]
            yield f"most differences: {short} ({count:,})"

    def _notes_of_causes(self) -> Iterator[str]:
        for than, causes in (("is known now", self.causes), ("was online then", self.causes_then)):
            for cause, count in causes.items():
                yield f"{_differences(count)} from what {than}: {CAUSES[cause]}"

    def left_out(self) -> Iterator[str]:
        """Yield what was not compared, and what nobody explained."""
        if self.not_explained:
            yield f"{_differences(self.not_explained)} beyond these: not explained, compare a shorter span"
        for feature, count in self.not_recomputed.items():
            yield f"{feature}: {_rows(count)} cannot be recomputed, because its code changed since"
        for feature, count in self.not_served.items():
            yield f"{feature}: {_rows(count, 'was', 'were')} not served then, or by other keys"
        for feature, count in self.not_known.items():
            yield f"{feature}: {_rows(count, 'was', 'were')} withdrawn since: what was online then is not known"
        if self.other_secret:
            told = _rows(self.other_secret, "is", "are")
            yield f"{told} not compared: the join keys are hashed with another secret than the settings have"
        if self.after_now:
            yield after_now_text(self.after_now)

    def to_html(self) -> str:
        """Return a page that stands alone: no script, nothing from elsewhere; with the first 100 differences."""
        rows = self.differences.slice(0, SHOWN_DIFFERENCES).to_pylist()
        for row in rows:
            row["served_at"] = to_short_rfc3339(to_instant(row["served_at"]))
        return rendered(
            "parity.html",
            it=self,
            rows=rows,
            left_out=list(self.left_out()),
            told_causes=CAUSES,
            told_share=_share,
        )

    def __str__(self) -> str:
        rows = [HEADS, *self.cells()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([self.title(), *lines, *self.notes()])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes())
        return f"<p>{escape(self.title())}</p>{html_table(self.cells(), HEADS)}{notes}"


def _share(part: int, whole: int) -> str:
    if not whole:
        return ""
    return "100 %" if part == whole else f"{min(part / whole, 0.9999):.2%}".replace("%", " %")


def _rows(count: int, one: str = "", more: str = "") -> str:
    return (f"1 row {one}" if count == 1 else f"{count:,} rows {more}").rstrip()


def _differences(count: int) -> str:
    return "1 difference" if count == 1 else f"{count:,} differences"
