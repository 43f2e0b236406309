"""The page of one feature."""

from __future__ import annotations

from collections.abc import Callable

from featurestore_registry.auth import Role
from featurestore_registry.catalog.activity import generation_of
from featurestore_registry.catalog.asking import Ask, NotThere
from featurestore_registry.catalog.drawing import Line, histogram, line, value
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.pages.shared import (
    about,
    columns_of,
    join_keys,
    origins,
    parts_read,
    personal_of,
    why_hidden,
)
from featurestore_registry.catalog.pages.watching import watched_by
from featurestore_registry.catalog.project import ON_DEMAND, SERVICE, features_of
from featurestore_registry.catalog.reading import facts, objects
from featurestore_registry.catalog.statistics import MOST_RUNS, Profile, column_of, in_training_sets, profile_of
from featurestore_registry.catalog.sums import Sum
from featurestore_registry.catalog.usage import usage
from featurestore_registry.catalog.windows import windows_of
from featurestore_registry.catalog.words import instant, kind_name, number, share
from featurestore_registry.documents import QUANTILES, ColumnStatistics
from featurestore_registry.records import Document, Record

_WIDTH, _HEIGHT = 460, 84
"""Of a drawing."""


def feature(ask: Ask, kind: str, view: str, name: str) -> Page:
    """Return the page."""
    record = ask.project.find(kind, view)
    if record is None:
        raise NotThere(kind_name(kind), view, [each.name for each in ask.project.of_kind(kind)], (ask.at(), "Home"))
    features = features_of(record)
    found = next((each for each in features if each.name == name), None)
    if found is None:
        raise NotThere("feature", name, [each.name for each in features], (ask.at(kind, view), view))
    keys, brought = join_keys(ask, record), dict[str, str]()
    if record.kind == ON_DEMAND:
        keys, brought = columns_of(ask, parts_read(ask, record.document, "inputs"))
    windows, ticks = windows_of(record)
    return Page(
        "feature.html",
        {
            **about(ask, record),
            **watched_by(ask, record, name),
            "feature": found,
            "origins": origins(ask, found),
            "expected": _expected(record, name),
            "usage": usage([found.reference], "", keys, brought),
            "window": next((row for row in windows if row.field.name == name), None),
            "ticks": ticks,
            "services": [each for each in ask.project.of_kind(SERVICE) if _reads(each, record, name)],
            "quantile_names": [f"{100 * share:g} %" for share in QUANTILES],
            **(ask.if_may(Role.READER, lambda: _statistics(ask, record, name, len(features))) or {"profile": None}),
        },
    )


def _expected(record: Record, name: str) -> tuple[Document, ...]:
    fields = objects(record.document.get("schema"))
    return next((objects(each.get("expect")) for each in fields if each.get("name") == name), ())


def _statistics(ask: Ask, record: Record, name: str, columns: int) -> dict[str, object]:
    generation = 0 if record.kind == ON_DEMAND else generation_of(record.document)
    key = f"{record.name}.{generation}"
    hidden = personal_of(ask, record)
    profile = profile_of(
        ask.ledger, ask.project.name, key, columns=columns, runs=MOST_RUNS, names={name}, hidden=hidden
    )
    found, training_set = profile.sum_of(name), ""
    if found is None:
        saved = ask.site.named(ask.project, ask.state).sets
        other = in_training_sets(ask.ledger, ask.project.name, saved, key, [name], hidden).get(name)
        if other is not None:
            found, training_set = profile.sum_of(name, other), other.training_set
    column = None if found is None else found.column
    bins = None if column is None else profile.bins.get((name, column.bins or 0))
    return {
        "profile": profile,
        "column": column,
        "sum": found,
        "most_runs": len(profile.documents) >= MOST_RUNS,
        "training_set": training_set,
        "hidden": "" if column is None else why_hidden(ask, record, column),
        "compared": [] if found is None else _compared(found),
        "bars": None if column is None else histogram(column, bins, width=_WIDTH, height=_HEIGHT),
        "lines": _lines(profile, name),
    }


def _compared(found: Sum) -> list[tuple[str, str, str]]:
    """Return figures over all runs and of the last one, each with its name."""
    pairs = (found.column, found.last)

    def of(label: str, say: Callable[[ColumnStatistics], str]) -> tuple[str, str, str]:
        return label, say(pairs[0]), say(pairs[1])

    made = [
        of("Rows", lambda column: number(column.rows)),
        of("Nulls", lambda column: share(column.nulls, column.rows)),
        of("Distinct" if found.runs == 1 else "Distinct, of one run at most", lambda column: number(column.distinct)),
    ]
    if found.column.not_finite:
        made.append(of("NaN and infinite", lambda column: share(column.not_finite, column.rows)))
    if found.column.minimum is not None:
        made.append(of("Least", lambda column: value(column.minimum)))
        made.append(of("Greatest", lambda column: value(column.maximum)))
    if found.column.mean is not None:
        made.append(of("Mean", lambda column: number(column.mean)))
        made.append(of("Standard deviation", lambda column: number(column.deviation)))
    return made


def _lines(profile: Profile, name: str) -> list[tuple[str, Line]]:
    """Return lines over the last runs that appended rows."""
    found = [
        (document, column)
        for document in reversed(profile.documents)
        if document.rows and (column := column_of(document, name)) is not None
    ]
    labels = [f"{instant(document.made_us)} UTC" for document, _ in found]
    nulls = [column.nulls / column.rows if column.rows else None for _, column in found]
    means = [None if column.is_hidden else column.mean for _, column in found]
    distinct = [None if column.distinct is None else float(column.distinct) for _, column in found]
    made = (
        ("Share of nulls", line(nulls, labels, name="Share of nulls", width=_WIDTH, height=_HEIGHT, is_share=True)),
        ("Mean", line(means, labels, name="Mean", width=_WIDTH, height=_HEIGHT)),
        ("Distinct values", line(distinct, labels, name="Distinct values", width=_WIDTH, height=_HEIGHT)),
    )
    return [(title, drawn) for title, drawn in made if drawn is not None]


def _reads(service: Record, view: Record, name: str) -> bool:
    """Tell whether a service holds a feature."""

    def look(document: Document) -> bool:
        for part in document["features"]:
            if view.kind == ON_DEMAND and part.get("on_demand") == view.name:
                return True
            if part.get("view") == view.name and name in part["features"]:
                return True
        return False

    return bool(facts(service.document, look))
