"""What data is expected to be: rules of fields and of views, checked before a run commits its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from datetime import timedelta
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from featurestore.errors import DefinitionError, ValueTypeError
from featurestore.types import ValueType
from featurestore.types.times import span_text
from featurestore.types.values import coerce

OnFailure = Literal["warn", "block", "quarantine"]
_SHOWN = 8
"""At most so many values of a list are told to people."""
_ORDERED = ("Int32", "Int64", "Float32", "Float64", "Timestamp", "Date")


class Rule(BaseModel):
    """One rule. It is frozen, and equal to another of the same class with the same values."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: ClassVar[str]

    def _fill(self, **values: Any) -> None:
        try:
            BaseModel.__init__(self, **values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            where = f"{place}: " if place else ""
            raise DefinitionError(f"{self.title}: {where}{message[:1].lower()}{message[1:]}.") from None

    def __str__(self) -> str:
        return repr(self)

    def __hash__(self) -> int:
        return hash(repr(self))


class FieldRule(Rule):
    """A rule of the values of one field."""

    @property
    def is_of_rows(self) -> bool:
        """Tell whether a row alone meets it or fails it; other rules are about all rows of a run."""
        return True

    def fitted(self, kind: ValueType) -> FieldRule:
        """Return the rule with values of a field's type; raises ValueError where it makes no sense for the type."""
        raise NotImplementedError


class Between(FieldRule):
    """Values lie between two others, both included; None leaves an end open. Null is no value, NaN lies nowhere."""

    title: ClassVar[str] = "Between"

    least: Any = None
    greatest: Any = None

    def __init__(self, least: Any = None, greatest: Any = None) -> None:
        self._fill(least=least, greatest=greatest)

    @model_validator(mode="after")
    def _check(self) -> Between:
        if self.least is None and self.greatest is None:
            raise ValueError("needs a least or a greatest value")
        return self

    def __repr__(self) -> str:
        return f"Between({self.least!r}, {self.greatest!r})"

    def fitted(self, kind: ValueType) -> Between:
        """Return it with bounds of the type."""
        if kind.name not in _ORDERED and kind.precision is None:
            raise ValueError(f"Between is for numbers and times, not for {kind}")
        least, greatest = _values((self.least, self.greatest), kind)
        if any(isinstance(end, float) and not math.isfinite(end) for end in (least, greatest)):
            raise ValueError("Between: NaN and infinities are no bounds; None, or leaving it out, leaves an end open")
        if least is not None and greatest is not None and least > greatest:
            raise ValueError(f"Between: {least} is greater than {greatest}")
        return Between(least, greatest)


class NotNull(FieldRule):
    """At most a share of the rows of a run is null; by default none."""

    title: ClassVar[str] = "NotNull"

    max_share: float = 0.0

    def __init__(self, max_share: float = 0.0) -> None:
        self._fill(max_share=_share("max_share", max_share))

    @property
    def is_of_rows(self) -> bool:
        """Tell whether no row may be null: a share is of all rows."""
        return self.max_share == 0

    def __repr__(self) -> str:
        return f"NotNull(max_share={self.max_share:g})" if self.max_share else "NotNull()"

    def fitted(self, kind: ValueType) -> NotNull:
        """Return it as it is: every type has nulls."""
        return self


class OneOf(FieldRule):
    """Values are among these; null is no value."""

    title: ClassVar[str] = "OneOf"

    values: tuple[Any, ...]

    def __init__(self, values: Iterable[Any]) -> None:
        given: Any = (values,) if isinstance(values, str) else values
        if not isinstance(given, Iterable) or isinstance(given, bytes | Mapping):
            raise DefinitionError(f"OneOf: must be a list of values, not {given!r}.", hint="Write OneOf([1, 2]).")
        # A set has another order in each process, and the registry would see another rule.
        self._fill(values=_in_order(given) if isinstance(given, Set) else tuple(given))

    @field_validator("values")
    @classmethod
    def _check(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values or None in values:
            raise ValueError("needs at least one value, and None is none: NotNull() is for that")
        return values

    def __repr__(self) -> str:
        return f"OneOf([{', '.join(map(repr, self.values))}])"

    def __str__(self) -> str:
        if len(self.values) <= _SHOWN:
            return repr(self)
        shown = ", ".join(map(repr, self.values[:_SHOWN]))
        return f"OneOf([{shown}, ...]: {len(self.values):,} values)"

    def fitted(self, kind: ValueType) -> OneOf:
        """Return it with values of the type."""
        if kind.item is not None or kind.name in ("Float32", "Float64", "Bytes"):
            raise ValueError(f"OneOf is not for {kind}")
        return OneOf(_values(self.values, kind))


class Matches(FieldRule):
    """Texts match a pattern of RE2 from their beginning to their end; null is no text."""

    title: ClassVar[str] = "Matches"

    pattern: str

    def __init__(self, pattern: str) -> None:
        self._fill(pattern=pattern)

    def __repr__(self) -> str:
        return f"Matches({self.pattern!r})"

    @property
    def whole(self) -> str:
        """The pattern as one that finds whole texts only, for a function of Arrow that finds it anywhere."""
        return rf"\A(?:{self.pattern})\z"

    def fitted(self, kind: ValueType) -> Matches:
        """Return it as it is."""
        if kind.name != "String":
            raise ValueError(f"Matches is for texts, not for {kind}")
        return self


class Unique(FieldRule):
    """No value is there twice among the rows of a run; null is no value."""

    title: ClassVar[str] = "Unique"

    within: Literal["batch"] = "batch"

    def __init__(self, within: Literal["batch"] = "batch") -> None:
        self._fill(within=within)

    @property
    def is_of_rows(self) -> bool:
        """Tell that it is about all rows."""
        return False

    def __repr__(self) -> str:
        return "Unique()"

    def fitted(self, kind: ValueType) -> Unique:
        """Return it as it is."""
        if kind.item is not None:
            raise ValueError(f"Unique is not for {kind}")
        return self


class ViewRule(Rule):
    """A rule of all rows that a run brings to a view."""


class Fresh(ViewRule):
    """The newest event of a run happened at most so long before the run."""

    title: ClassVar[str] = "Fresh"

    within: timedelta

    def __init__(self, within: timedelta) -> None:
        self._fill(within=within)

    @field_validator("within")
    @classmethod
    def _check(cls, within: timedelta) -> timedelta:
        if within <= timedelta(0):
            raise ValueError("must be greater than zero, such as timedelta(hours=3)")
        return within

    def __repr__(self) -> str:
        return f"Fresh(within={repr(self.within).removeprefix('datetime.')})"

    def __str__(self) -> str:
        return f"Fresh(within={span_text(self.within)})"


class Rows(ViewRule):
    """A run brings enough rows, and about as many as runs of its kind and span did: the median of seven before it.

    A run that brings none is not judged: there was nothing new.
    """

    title: ClassVar[str] = "Rows"

    at_least: int | None = None
    change_at_most: float | None = None
    """As a share of the median: 0.5 allows half as many to half as many again."""

    def __init__(self, at_least: int | None = None, *, change_at_most: float | None = None) -> None:
        change: Any = change_at_most  # whole numbers are floats here, texts and truths are none
        self._fill(at_least=at_least, change_at_most=float(change) if type(change) is int else change)

    @model_validator(mode="after")
    def _check(self) -> Rows:
        if self.at_least is None and self.change_at_most is None:
            raise ValueError("needs at_least or change_at_most")
        if self.at_least is not None and self.at_least < 1:
            raise ValueError("at_least: must be 1 or more")
        if self.change_at_most is not None and not 0 < self.change_at_most < math.inf:
            raise ValueError("change_at_most: must be greater than zero, such as 0.5")
        return self

    def __repr__(self) -> str:
        parts = [f"at_least={self.at_least}"] if self.at_least is not None else []
        parts += [f"change_at_most={self.change_at_most:g}"] if self.change_at_most is not None else []
        return f"Rows({', '.join(parts)})"


class Share(ViewRule):
    """A condition in SQL on one row is true of at most, or at least, a share of a run's rows."""

    title: ClassVar[str] = "Share"

    where: str
    at_most: float | None = None
    at_least: float | None = None

    def __init__(self, where: str, *, at_most: float | None = None, at_least: float | None = None) -> None:
        bounds = {"at_most": at_most, "at_least": at_least}
        self._fill(where=where, **{name: None if end is None else _share(name, end) for name, end in bounds.items()})

    @model_validator(mode="after")
    def _check(self) -> Share:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("needs at_most or at_least")
        from featurestore.definitions.condition import columns_of  # loads the parser

        columns_of(self.where)
        return self

    def __repr__(self) -> str:
        bound = f"at_least={self.at_least:g}" if self.at_most is None else f"at_most={self.at_most:g}"
        return f"Share({self.where!r}, {bound})"


RULES: dict[str, type[Rule]] = {
    rule.title: rule for rule in (Between, NotNull, OneOf, Matches, Unique, Fresh, Rows, Share)
}


def _share(name: str, given: Any) -> Any:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
        raise DefinitionError(f"{name}: must be a share from 0 to 1, not {given!r}.")
    return float(given)


def _in_order(values: Set[Any]) -> tuple[Any, ...]:
    try:
        return tuple(sorted(values))
    except TypeError:  # no order between values of different kinds, which a field refuses soon
        return tuple(sorted(values, key=repr))


def _values(values: Iterable[Any], kind: ValueType) -> tuple[Any, ...]:
    try:
        return tuple(None if value is None else coerce(kind, value) for value in values)
    except ValueTypeError as error:
        raise ValueError(error.message.rstrip(".")) from None
