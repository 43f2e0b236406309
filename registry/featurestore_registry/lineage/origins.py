"""The source columns that a value of a query comes from, and the tables that a query reads."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

ALL = "*"
"""In the place of a column: any column of the source."""
_REPEATED = re.compile(r"(.+)_\d+")
"""How DuckDB renames a column whose name a query gives twice."""


@dataclass(frozen=True, slots=True)
class Origins:
    """The source columns that a value comes from."""

    found: Mapping[tuple[str, str], bool]
    """By source and column, in lower case: whether the text shows that a name stands for this column."""
    is_copy: bool = False
    """Whether each value is one of theirs, or null."""

    @classmethod
    def all_of(cls, several: Iterable[Origins]) -> Origins:
        """Return the origins of what comes from several, or from any one of them."""
        found: dict[tuple[str, str], bool] = {}
        is_copy = True
        for each in several:
            is_copy = is_copy and each.is_copy
            for key, is_sure in each.found.items():
                found[key] = is_sure or found.get(key, False)
        return cls(found, is_copy and bool(found))

    def influencing(self) -> Origins:
        """Return the origins of what is computed from this."""
        return Origins(self.found)

    def unsure(self) -> Origins:
        """Return the same as one of several ways to read the text."""
        return Origins(dict.fromkeys(self.found, False), self.is_copy)


NOTHING = Origins({})
NULL = Origins({}, is_copy=True)


class Has(IntEnum):
    """Whether a table has a column of some name."""

    NO = 0
    MAYBE = 1
    YES = 2


Found = tuple[Origins, Has]


class Relation(ABC):
    """What stands in a FROM: a source, or a query over sources. Names are in lower case."""

    rows: Origins = NOTHING
    """What decides which rows there are."""

    @abstractmethod
    def find(self, name: str) -> Found:
        """Return the origins of the column of a name."""

    @abstractmethod
    def everything(self) -> Origins:
        """Return the origins of all columns together."""

    def at(self, place: int) -> Origins:
        """Return the origins of a column by its place."""
        return self.everything().influencing()

    def place(self, name: str) -> int | None:
        """Return the place of a column, None where the text does not show it."""
        return None


class Source(Relation):
    """A table of which only some columns are known."""

    def __init__(self, name: str, known: frozenset[str]) -> None:
        self.name = name
        self._known = known

    def find(self, name: str) -> Found:
        """Return the column: the source may have any."""
        return Origins({(self.name, name): True}, is_copy=True), Has.YES if name in self._known else Has.MAYBE

    def everything(self) -> Origins:
        """Return any column."""
        return Origins({(self.name, ALL): True})


class Opaque(Relation):
    """A table whose columns cannot be told apart: each comes from all that it reads."""

    def __init__(self, origins: Origins) -> None:
        self.rows = origins.influencing()

    def find(self, name: str) -> Found:
        """Return all that it reads."""
        return self.rows, Has.MAYBE

    def everything(self) -> Origins:
        """Return all that it reads."""
        return self.rows


class Renamed(Relation):
    """A table whose first columns have other names: ``t AS u(a, b)``."""

    def __init__(self, inner: Relation, names: Sequence[str]) -> None:
        self._inner, self._names = inner, list(names)
        self.rows = inner.rows

    def find(self, name: str) -> Found:
        """Return the column at the place of the name; the others keep theirs."""
        if name in self._names:
            return self._inner.at(self._names.index(name)), Has.YES
        found, has = self._inner.find(name)
        place = self._inner.place(name)
        if place is None:  # it may be one of the first
            return found, min(has, Has.MAYBE)
        return (NOTHING, Has.NO) if place < len(self._names) else (found, has)

    def everything(self) -> Origins:
        """Return the origins of all columns together."""
        return self._inner.everything()

    def at(self, place: int) -> Origins:
        """Return the origins of a column by its place."""
        return self._inner.at(place)

    def place(self, name: str) -> int | None:
        """Return the place of a column."""
        return self._names.index(name) if name in self._names else self._inner.place(name)


class WithRows(Relation):
    """A table of which more decides the rows."""

    def __init__(self, inner: Relation, rows: Origins) -> None:
        self._inner, self.rows = inner, rows

    def find(self, name: str) -> Found:
        """Return the origins of the column of a name."""
        return self._inner.find(name)

    def everything(self) -> Origins:
        """Return the origins of all columns together."""
        return self._inner.everything()

    def at(self, place: int) -> Origins:
        """Return the origins of a column by its place."""
        return self._inner.at(place)

    def place(self, name: str) -> int | None:
        """Return the place of a column."""
        return self._inner.place(name)


class SetOf(Relation):
    """UNION, EXCEPT or INTERSECT of two queries."""

    def __init__(self, left: Relation, right: Relation, *, is_union: bool, is_set: bool, by_name: bool) -> None:
        """Of a set (``is_set``) all columns decide which rows are there once."""
        self._left, self._right = left, right
        self._is_union, self._by_name = is_union, by_name
        rows = [left.rows, right.rows]
        if is_set:
            rows += [left.everything(), right.everything()]
        self.rows = Origins.all_of(rows).influencing()

    def find(self, name: str) -> Found:
        """Return the column of either side: by its place, or with BY NAME by its name."""
        found, has = self._left.find(name)
        if self._by_name:
            other, has_other = self._right.find(name)
            pieces = [piece for piece, each in ((found, has), (other, has_other)) if each is not Has.NO]
            return Origins.all_of(pieces), max(has, has_other)
        if not self._is_union:
            return found, has
        place = self._left.place(name)
        other = self._right.everything().influencing() if place is None else self._right.at(place)
        return Origins.all_of([found, other]), has

    def everything(self) -> Origins:
        """Return the origins of all columns together."""
        return Origins.all_of([self._left.everything(), self._right.everything()])

    def at(self, place: int) -> Origins:
        """Return the origins of a column by its place."""
        if self._by_name:
            return self.everything().influencing()
        return Origins.all_of([self._left.at(place), self._right.at(place)]) if self._is_union else self._left.at(place)

    def place(self, name: str) -> int | None:
        """Return the place of a column."""
        return None if self._by_name else self._left.place(name)


def first_of(name: str) -> str:
    """Return the name of which this may be the second, such as ``x`` of ``x_1``; empty for any other."""
    repeated = _REPEATED.fullmatch(name)
    return repeated[1] if repeated else ""


def of_star(tables: Sequence[Relation], name: str, *, is_merged: bool) -> Found:
    """Return the column that a star over tables gives a name; if it ``is_merged`` USING may make one of several.

    Else the first table that has it: DuckDB renames those of later ones.
    """
    pieces, has = [], Has.NO
    for table in tables:
        found, here = table.find(name)
        if here is not Has.NO:
            pieces.append(found)
            has = max(has, here)
        if here is Has.YES and not is_merged:
            break
    if (first := first_of(name)) and len(tables) > 1 and has is not Has.YES:
        twice = [found for found, here in (table.find(first) for table in tables) if here is not Has.NO]
        if len(twice) > 1:
            pieces += twice
            has = Has.MAYBE
    if len(pieces) > 1:
        pieces = [piece.unsure() for piece in pieces]
    return Origins.all_of(pieces), has
