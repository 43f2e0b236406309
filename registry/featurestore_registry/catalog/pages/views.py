"""The page of a feature view: how to use it, what it is, how its data is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurestore_registry.auth import Role
from featurestore_registry.catalog.activity import activity_of_view, generation_of, runs_of_view
from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.drawing import SMALL, Bars, histogram, run_bars
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.pages.ledgered import readers_of
from featurestore_registry.catalog.pages.shared import about, join_keys, personal_of, why_hidden
from featurestore_registry.catalog.pages.watching import watched_by
from featurestore_registry.catalog.project import SERVICE, VIEW, Feature, features_of
from featurestore_registry.catalog.reading import objects, read
from featurestore_registry.catalog.statistics import MOST_RUNS, InSet, Profile, in_training_sets, profile_of
from featurestore_registry.catalog.usage import usage
from featurestore_registry.catalog.windows import windows_of
from featurestore_registry.catalog.words import counted, instant, took
from featurestore_registry.documents import QUARANTINE, ColumnStatistics, QuarantineDocument, RunDocument, Scalar
from featurestore_registry.records import Record

RUNS = 40
"""So many of the newest runs are drawn."""
PER_PAGE = 50


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """A feature in the table of its view."""

    feature: Feature
    column: ColumnStatistics | None
    """Over all runs that counted it, or of a training set."""
    most: tuple[Scalar, float] | None
    """The value that has over a fifth of the rows, and its share."""
    bars: Bars | None
    hidden: str = ""
    """Why its values are hidden."""


def view(ask: Ask, record: Record) -> Page:
    """Return the page."""
    document = record.document
    keys = join_keys(ask, record)
    features = features_of(record)
    references = [features[0].reference] if len(features) == 1 else [f"{record.name}:*"]
    page, runs = ask.page_number(), runs_of_view(ask.ledger, ask.project.name, record.name, RUNS)
    shown = features[(page - 1) * PER_PAGE : page * PER_PAGE]
    rows, ticks = windows_of(record)
    services = [each.name for each in ask.project.users(record.key) if each.kind == SERVICE]
    key = f"{record.name}.{generation_of(document)}"
    names, hidden = {feature.name for feature in shown}, personal_of(ask, record)
    profile = ask.if_may(
        Role.READER,
        lambda: profile_of(
            ask.ledger, ask.project.name, key, columns=len(features), runs=MOST_RUNS, names=names, hidden=hidden
        ),
    )
    return Page(
        "view.html",
        {
            **about(ask, record),
            **readers_of(ask, services, [record.key]),
            **watched_by(ask, record),
            "features": feature_rows(ask, record, profile, shown),
            "count": len(features),
            "page": page,
            "pages": -(-len(features) // PER_PAGE),
            "profile": profile,
            "keys": keys,
            "usage": usage(references, "", keys),
            "ttl_us": document.get("ttl_us"),
            "expected": objects(document.get("expect")),
            "held": read(ask.ledger.latest(ask.project.name, QUARANTINE, key), QuarantineDocument),
            "sql": document.get("sql"),
            "activity": activity_of_view(ask.ledger, ask.project.name, record.name, document),
            "runs": runs,
            "run_bars": run_bars([_told(run) for run in reversed(runs)], width=720, height=64),
            "windows": [row for row in rows if row.field.name in {feature.name for feature in shown}],
            "ticks": ticks,
        },
    )


def feature_rows(ask: Ask, record: Record, profile: Profile | None, shown: Sequence[Feature]) -> list[FeatureRow]:
    """Return features with their statistics: over all runs, or of a training set that holds them."""
    made, sets = [], dict[str, InSet]()
    if profile is not None and any(profile.column(feature.name) is None for feature in shown):
        saved = ask.site.named(ask.project, ask.state).sets
        key = f"{record.name}.{generation_of(record.document) if record.kind == VIEW else 0}"
        names, hidden = [feature.name for feature in shown], personal_of(ask, record)
        sets = in_training_sets(ask.ledger, ask.project.name, saved, key, names, hidden)
    for feature in shown:
        if profile is None or (found := profile.sum_of(feature.name, sets.get(feature.name))) is None:
            made.append(FeatureRow(feature, None, None, None))
            continue
        bins = profile.bins.get((feature.name, found.column.bins or 0))
        made.append(
            FeatureRow(
                feature,
                found.column,
                found.most,
                histogram(found.column, bins, **SMALL),
                why_hidden(ask, record, found.column),
            )
        )
    return made


def _told(run: RunDocument) -> tuple[int, str, str]:
    how = f"{run.kind}: {run.state}, {counted(run.appended, 'row')}, {took(run.duration_ms)}"
    text = f"{instant(run.started_us)} UTC, {how}"
    return run.appended, "fresh" if run.state == "done" else "failed", text
