"""Queries read for their columns: which source columns each output comes from, by the text alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

from sqlglot import exp

from featurestore_registry.lineage.origins import (
    NOTHING,
    NULL,
    Found,
    Has,
    Opaque,
    Origins,
    Relation,
    Renamed,
    SetOf,
    Source,
    WithRows,
    first_of,
    of_star,
)
from featurestore_registry.lineage.syntax import (
    aggregates,
    bound,
    dotted,
    holds_tables,
    is_by_all,
    is_starred,
    is_wild,
    makes_rows,
    name_of,
    parts_of,
    places,
    star_in,
    taken_for_bound,
)

_HIDDEN = ("SEMI", "ANTI")

Aliases = Callable[[str], Origins | None]
"""Returns what a SELECT's own list calls by a name."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What the names of tables stand for, in lower case."""

    sources: Mapping[str, Source]
    defined: Mapping[str, Relation]
    """Common table expressions."""
    text: str
    """The whole SQL in lower case."""

    def get(self, name: str) -> Relation | None:
        """Return what a name stands for."""
        return self.defined.get(name) or self.sources.get(name)

    def within(self, query: exp.Expr, outer: Scope | None) -> Tables:
        """Add what a query defines; each definition sees those before it."""
        found = query.args.get("with_") or query.args.get("with")
        if found is None:
            return self
        tables = self
        for cte in found.expressions:
            name = cte.alias.lower()
            relation: Relation
            if found.args.get("recursive") and any(name == table.name.lower() for table in cte.find_all(exp.Table)):
                relation = Opaque(tables.collected(cte.this, outer))
            else:
                relation = relation_of(cte.this, tables, outer)
            tables = replace(tables, defined={**tables.defined, name: _renamed(relation, cte)})
        return tables

    def collected(self, tree: exp.Expr, outer: Scope | None) -> Origins:
        """Return all that a part of a query may read."""
        read = [self.get(table.name.lower()) for table in tree.find_all(exp.Table)]
        pieces = [piece for table in read if table is not None for piece in (table.everything(), table.rows)]
        return Origins.all_of([*pieces, NOTHING if outer is None else outer.whole()]).influencing()


def relation_of(query: exp.Expr, tables: Tables, outer: Scope | None, *, is_whole: bool = False) -> Relation:
    """Return a query as a table; ``outer`` is the scope that it may be correlated with."""
    tables = tables.within(query, outer)
    if isinstance(query, exp.Select):
        return Select(query, tables, outer, is_whole=is_whole)
    if isinstance(query, exp.SetOperation):
        left, right = (relation_of(side, tables, outer) for side in (query.this, query.expression))
        is_set = not isinstance(query, exp.Union) or query.args.get("distinct") is not False
        by_name = bool(query.args.get("by_name"))
        relation = SetOf(left, right, is_union=isinstance(query, exp.Union), is_set=is_set, by_name=by_name)
        return _cut(relation, query, tables, outer)
    if holds_tables(query):
        return Joined(Scope(tables, outer).reading(query.this))
    if isinstance(query, exp.Subquery):
        return _cut(relation_of(query.this, tables, outer), query, tables, outer)
    return Opaque(tables.collected(query, outer))


def _cut(relation: Relation, query: exp.Expr, tables: Tables, outer: Scope | None) -> Relation:
    """Add what decides the rows of a query that is ordered and cut as a whole."""
    parts = [query.args[part] for part in ("order", "limit", "offset") if query.args.get(part) is not None]
    if not parts:
        return relation
    scope = Scope(tables, outer).with_table("", relation)
    read = [scope.influences(part) for part in parts]
    read += [relation.at(place) for part in parts for place in places(part)]
    return WithRows(relation, Origins.all_of([relation.rows, *read]).influencing())


def _renamed(relation: Relation, node: exp.Expr) -> Relation:
    alias = node.args.get("alias")
    names = [name.name.lower() for name in alias.columns] if isinstance(alias, exp.TableAlias) else []
    return Renamed(relation, names) if names else relation


class Scope:
    """What names stand for in one SELECT."""

    def __init__(self, tables: Tables, outer: Scope | None) -> None:
        self._known, self._outer = tables, outer
        self._tables: tuple[tuple[str, Relation], ...] = ()
        self._hidden: tuple[tuple[str, Relation], ...] = ()
        self._merged: frozenset[str] = frozenset()
        self._is_natural = False
        self._rows: tuple[Origins, ...] = ()
        self._aliases: Aliases | None = None
        self._prefers_columns = True

    def with_table(self, alias: str, relation: Relation) -> Scope:
        """Add a table; return the scope itself, as `reading` does."""
        self._tables += ((alias, relation),)
        self._rows += (relation.rows,)
        return self

    def reading(self, node: exp.Expr) -> Scope:
        """Add what stands in a FROM, and the joins within it."""
        alias = node.alias_or_name.lower()
        if holds_tables(node) and not alias:
            self.reading(node.this)
        else:
            self.with_table(alias, self._opened(node))
        for join in node.args.get("joins") or ():
            self.joining(join)
        return self

    def _opened(self, node: exp.Expr) -> Relation:
        relation: Relation
        before = copy(self) if self._tables else self._outer  # what stands before may be correlated, LATERAL or not
        if node.args.get("pivots"):
            return Opaque(self._known.collected(node, before))
        if isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier):
            relation = self._known.get(node.name.lower()) or Opaque(NOTHING)
        elif isinstance(node, exp.Lateral) and isinstance(node.this, exp.Subquery):
            relation = relation_of(node.this, self._known, before)
        elif isinstance(node, exp.Query):
            relation = relation_of(node, self._known, before)
        elif isinstance(node, exp.Unnest | exp.Values | exp.Lateral | exp.Table):
            # Any column comes from all arguments.
            called = node.this if isinstance(node, exp.Table) else node
            relation = Opaque(Origins.all_of(self.influences(each) for each in called.iter_expressions()))
        else:
            relation = Opaque(self._known.collected(node, before))
        return _renamed(relation, node)

    def joining(self, join: exp.Expr) -> None:
        """Add a join."""
        visible = self._tables
        self.reading(join.this)
        everything = copy(self)
        if (kind := join.args.get("kind")) in _HIDDEN:
            self._hidden += self._tables[len(visible) :]
            self._tables = visible
        if join.args.get("method") == "NATURAL":
            self._rows += (everything.everything(),)
            self._is_natural = self._is_natural or kind not in _HIDDEN
        for column in join.args.get("using") or ():
            name = column.name.lower()
            self._rows += tuple(relation.find(name)[0] for _, relation in everything._tables)
            self._merged |= frozenset() if kind in _HIDDEN else {name}
        if (condition := join.args.get("on")) is not None:
            self._rows += (everything.influences(condition),)

    def seeing(self, aliases: Aliases, *, prefers_columns: bool) -> Scope:
        """Return the scope where a SELECT's own names may be used, too."""
        scope = copy(self)
        scope._aliases, scope._prefers_columns = aliases, prefers_columns
        return scope

    @property
    def rows(self) -> Origins:
        """What decides which rows the tables give together."""
        return Origins.all_of(self._rows).influencing()

    def everything(self) -> Origins:
        """Return the origins of all columns together."""
        return Origins.all_of(relation.everything() for _, relation in self._tables)

    def whole(self) -> Origins:
        """Return the origins of all columns, those of the queries around it included."""
        return self.everything() if self._outer is None else Origins.all_of([self.everything(), self._outer.whole()])

    def tables(self, alias: str) -> Iterator[Relation]:
        """Yield the tables of an alias, here and further out: one further out may have what the nearest lacks."""
        yield from (relation for name, relation in (*self._tables, *self._hidden) if name == alias)
        if self._outer is not None:
            yield from self._outer.tables(alias)

    def table(self, alias: str) -> Relation | None:
        """Return the nearest table of an alias."""
        return next(self.tables(alias), None)

    def _is_merged(self, name: str) -> bool:
        """Tell whether a name may be one column of several tables."""
        return self._is_natural or name in self._merged

    def star(self, name: str, alias: str = "", without: Collection[str] = ()) -> Found:
        """Return the column that ``*``, or ``alias.*``, gives a name; ``without`` names tables that do not give it."""
        if alias in without:
            return NOTHING, Has.NO
        if not alias:
            tables = [relation for called, relation in self._tables if called not in without]
            return of_star(tables, name, is_merged=self._is_merged(name))
        table = self.table(alias)
        return (self.column(alias).influencing(), Has.MAYBE) if table is None else table.find(name)

    def column(self, name: str) -> Origins:
        """Return the origins of a bare name."""
        found, has = self._own(name)
        named = None if self._aliases is None else self._aliases(name)
        if has is Has.YES and (named is None or self._prefers_columns):
            return found
        readings = [] if has is Has.NO else [found]
        readings += [] if named is None else [named]
        rows = [table.everything() for alias, table in self._tables if alias == name and has is not Has.YES]
        readings += [row.influencing() for row in rows]
        if self._outer is not None and has is not Has.YES:
            readings.append(self._outer.column(name))
        if not readings:
            return self.everything().influencing().unsure()
        if len(readings) == 1 or all(reading == found for reading in readings):
            return readings[0]
        return Origins.all_of(reading.unsure() for reading in readings)

    def _own(self, name: str) -> Found:
        """Return the column of the tables; two that have it would be an error, if USING does not merge them."""
        hits = [hit for _, table in self._tables if (hit := table.find(name))[1] is not Has.NO]
        has = max((has for _, has in hits), default=Has.NO)
        least = Has.MAYBE if self._is_merged(name) else has
        pieces = [found for found, has in hits if has >= least]
        if len(pieces) > 1 and has is not Has.YES:
            pieces = [piece.unsure() for piece in pieces]
        return Origins.all_of(pieces), has

    def reference(self, parts: list[str]) -> Origins:
        """Return the origins of a name with dots: of a table's column, or of a field of a column."""
        for place in range(len(parts) - 1):
            if (found := self._of_table(parts[place], parts[place + 1])) is None:
                continue
            if place:  # a schema before the table, or a column with fields
                found = Origins.all_of([found.unsure(), self.column(parts[0]).unsure()])
            return found if place + 2 == len(parts) else found.influencing()
        return self.column(parts[0]) if len(parts) == 1 else self.column(parts[0]).influencing()

    def _of_table(self, alias: str, name: str) -> Origins | None:
        """Return the origins of a table's column, None where no table has the alias."""
        tables, pieces = list(self.tables(alias)), list[Origins]()
        for table in tables:
            found, has = table.find(name)
            pieces += [] if has is Has.NO else [found]
            if has is Has.YES:
                break
        if len(pieces) == 1:
            return pieces[0]
        return Origins.all_of(each.unsure() for each in pieces or map(Relation.everything, tables)) if tables else None

    def influences(self, tree: exp.Expr) -> Origins:
        """Return all that an expression reads."""
        return Origins.all_of(self._read(tree, frozenset())).influencing()

    def _read(self, node: exp.Expr, hidden: frozenset[str]) -> Iterator[Origins]:
        """Go through an expression; ``hidden`` are the names that lambdas give their elements."""
        if isinstance(node, exp.Query):
            relation = relation_of(node, self._known, self)
            yield relation.rows
            if not isinstance(node.parent, exp.Exists):
                yield relation.everything()
        elif isinstance(node, exp.Star | exp.Columns | exp.PositionalColumn) or is_starred(node):
            yield from self._read_star(node, hidden)
        elif isinstance(node, exp.Column):
            if (parts := parts_of(node))[0] not in hidden:
                yield self.reference(parts)
        elif isinstance(node, exp.Var):
            if self._may_be_column(node):
                yield self.column(node.name.lower()).unsure()
        else:
            if (parts := dotted(node)) and parts[0] not in hidden:
                yield self.reference(parts)
            inner = hidden | {*bound(node)}
            for each in node.iter_expressions():
                yield from self._read(each, inner)
            for name in taken_for_bound(node):
                yield self.column(name)

    def _read_star(self, node: exp.Expr, hidden: frozenset[str]) -> Iterator[Origins]:
        """Go through what may be several columns, and what is computed in the place of some."""
        if is_starred(node):
            alias = parts_of(node)[-2]
            table = self.table(alias)
            yield self.column(alias) if table is None else table.everything()
        elif not isinstance(node.parent, exp.Count):
            yield self.everything()
        for replacing in (node.this if is_starred(node) else node).args.get("replace") or ():
            yield from self._read(replacing, hidden)

    def _may_be_column(self, node: exp.Expr) -> bool:
        """Tell whether the parser may have taken a column for a word, such as the unit of ``date_trunc``."""
        if isinstance(node.parent, exp.Kwarg | exp.Interval | exp.Extract | exp.Collate | exp.Ordered | exp.Cast):
            return False
        word = re.escape(node.name.lower().removesuffix("s"))
        return re.search(rf"(?<!['\w]){word}s?(?!['\w])", self._known.text) is not None


class Joined(Relation):
    """Tables in parentheses, as one."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.rows = scope.rows

    def find(self, name: str) -> Found:
        """Return the column of a name."""
        return self._scope.star(name)

    def everything(self) -> Origins:
        """Return the origins of all columns together."""
        return self._scope.everything()


class Select(Relation):
    """A SELECT as a table."""

    def __init__(self, query: exp.Select, tables: Tables, outer: Scope | None, *, is_whole: bool) -> None:
        self._query, self._is_whole = query, is_whole
        scope = Scope(tables, outer)
        if (begin := query.args.get("from_") or query.args.get("from")) is not None:
            scope.reading(begin.this)
        for join in (*(query.args.get("joins") or ()), *(query.args.get("laterals") or ())):
            scope.joining(join) if isinstance(join, exp.Join) else scope.reading(join)
        self._scope = scope
        self._items = query.expressions
        self._names = [name_of(item) for item in self._items]
        self._values: dict[int, Origins] = {}
        self._found: dict[str, Found] = {}

    def _value(self, place: int) -> Origins:
        if place not in self._values:
            scope = self._scope.seeing(lambda name: self._aliased(name, place), prefers_columns=True)
            self._values[place] = self._origins(self._items[place], scope)
        return self._values[place]

    def _aliased(self, name: str, before: int) -> Origins | None:
        values = [self._value(place) for place in range(before) if self._names[place] == name]
        stars = [star for item in self._items[:before] if (star := star_in(item)) is not None]
        values += [found for star in stars if (found := _renamed_by(star, self._scope, name)) is not None]
        return Origins.all_of(values) if values else None

    def _origins(self, item: exp.Expr, scope: Scope) -> Origins:
        value = item.unalias()
        while isinstance(value, exp.Paren):
            value = value.this
        if isinstance(value, exp.Null):
            return NULL
        if isinstance(value, exp.Column) and not is_starred(value):
            return scope.reference(parts_of(value))
        named = [scope.influences(window) for window in self._query.args.get("windows") or ()]
        windows = named if any(window.alias for window in value.find_all(exp.Window)) else []
        return Origins.all_of([scope.influences(value), *windows])

    def find(self, name: str) -> Found:
        """Return the column of a name, whichever part of the list gives it."""
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    def _find(self, name: str) -> Found:
        """Return what is called so in the list: of several the first, as DuckDB gives the others numbers."""
        place = next((place for place, each in enumerate(self._names) if each == name), None)
        before = self._items[:place]
        starred = [found for found, here in self._starred(name, before) if here is not Has.NO]
        has = max((here for _, here in self._starred(name, before)), default=Has.NO)
        others = [
            self._value(at)
            for at, item in enumerate(before)
            if self._is_unnamed(at) and (place is None or is_wild(item))
        ]
        if place is None and (first := first_of(name)):
            twice = [self._value(at) for at, each in enumerate(self._names) if each == first]
            twice += [found for found, here in self._starred(first, before) if here is not Has.NO]
            others += twice if len(twice) > 1 else []
        has = Has.YES if place is not None else max(has, Has.MAYBE if others else Has.NO)
        sure = [] if place is None else [self._value(place)]
        if len(starred) == 1 and not others and not sure:
            return starred[0], has
        return Origins.all_of([*sure, *(piece.unsure() for piece in (*starred, *others))]), has

    def _starred(self, name: str, items: list[exp.Expr]) -> list[Found]:
        return [_star_of(item, self._scope, name) for item in items if star_in(item) is not None]

    def _is_unnamed(self, place: int) -> bool:
        """Tell whether an output has a name, or names, that the text does not show."""
        item = self._items[place]
        return is_wild(item) or (self._names[place] is None and star_in(item) is None)

    def everything(self) -> Origins:
        """Return the origins of all columns together."""
        return Origins.all_of(self._value(place) for place in range(len(self._items)))

    def at(self, place: int) -> Origins:
        """Return the origins of a column by its place."""
        before = self._items[: place + 1]
        if not 0 <= place < len(self._items) or any(star_in(item) is not None or is_wild(item) for item in before):
            return self.everything().influencing()
        return self._value(place)

    def place(self, name: str) -> int | None:
        """Return the place of a column, None behind a star."""
        for place, item in enumerate(self._items):
            if star_in(item) is not None or is_wild(item):
                return None
            if self._names[place] == name:
                return place
        return None

    @cached_property
    def rows(self) -> Origins:  # type: ignore[override]
        """What decides which rows there are."""
        query = self._query
        scope = self._scope.seeing(lambda name: self._aliased(name, len(self._items)), prefers_columns=False)
        cut = any(query.args.get(part) is not None for part in ("limit", "offset", "distinct"))
        parts = ("where", "group", "having", "qualify", "limit", "offset", "order")
        clauses = [found for part in parts if (found := query.args.get(part)) is not None]
        if self._is_whole and not cut:
            clauses = [clause for clause in clauses if not isinstance(clause, exp.Order)]
        read = [scope.influences(clause) for clause in clauses]
        read += [self.at(place) for clause in clauses for place in places(clause)]
        if any(clause.find(exp.Window) is not None for clause in clauses):
            read += [scope.influences(window) for window in query.args.get("windows") or ()]
        if (distinct := query.args.get("distinct")) is not None:
            chosen = distinct.args.get("on")
            read.append(self.everything() if chosen is None else scope.influences(chosen))
        if any(clause.args.get("all") or is_by_all(clause) for clause in clauses):
            read += [self._value(place) for place, item in enumerate(self._items) if not aggregates(item)]
        read += [self._value(place) for place, item in enumerate(self._items) if makes_rows(item)]
        return Origins.all_of([self._scope.rows, *read]).influencing()


def _star_of(item: exp.Expr, scope: Scope, name: str) -> Found:
    """Return the column that a star in a list gives a name."""
    star = star_in(item)
    assert star is not None
    alias, words = _words_of(star)
    for replacing in words.args.get("replace") or ():
        if replacing.alias.lower() == name:
            return scope.influences(replacing.this), Has.YES
    if (renamed := _renamed_by(star, scope, name)) is not None:
        return renamed, Has.YES
    left_out = [*(words.args.get("except_") or words.args.get("except") or ())]
    left_out += [renaming.this for renaming in words.args.get("rename") or ()]
    tables = [each.text("table").lower() for each in left_out if each.name.lower() == name]
    if "" in tables:
        return NOTHING, Has.NO
    found, has = scope.star(name, alias, tables)
    return found, has if item is star else min(has, Has.MAYBE)


def _words_of(star: exp.Expr) -> tuple[str, exp.Expr]:
    """Return the table of a star, empty for all, and what stands behind it."""
    return ("", star) if isinstance(star, exp.Star) else (parts_of(star)[-2], star.this)


def _renamed_by(star: exp.Expr, scope: Scope, name: str) -> Origins | None:
    """Return the column to which a star's RENAME gives a name."""
    alias, words = _words_of(star)
    found = (each for each in words.args.get("rename") or () if each.alias.lower() == name)
    return next((scope.star(each.this.name.lower(), alias)[0] for each in found), None)
