"""A plan's notices about a definition that it creates or changes: things that are allowed but may surprise."""

from __future__ import annotations

from collections.abc import Iterator

from featurestore_registry.interface import LedgerReader

from featurestore.definitions import Definition, FeatureService, FeatureView, Monitor, OnDemandFeatureView, PushSource
from featurestore.definitions.view import not_shown
from featurestore.errors import RegistryFormatError
from featurestore.ledger.saved_sets import find_set
from featurestore.ledger.unread import in_words
from featurestore.ledger.watermarks import read_watermark
from featurestore.project.loader import parts_of
from featurestore.registered.snapshot import Snapshot

_ON_FAILURE = {
    "warn": "A run says what is not so, and commits it.",
    "block": "A run of which this is not so commits nothing.",
    "quarantine": "A run sets aside rows that fail, and commits nothing where this is not so of all its rows.",
}


def step_notices(
    ledger: LedgerReader,
    snapshot: Snapshot,
    before: Definition | None,
    wanted: Definition,
    *,
    is_replaced: bool,
    pushed: int,
) -> Iterator[str]:
    """Yield the notices of one step, each a sentence or two that name the definition.

    ``before`` is the definition that ``snapshot`` holds under the name, None where there is none; ``is_replaced``: the
    view begins a new generation, and loses ``pushed`` rows. A view's schema is known.
    """
    yield from _deprecations(snapshot, wanted)
    if isinstance(wanted, Monitor) and isinstance(wanted.baseline, str):
        yield from _lack_of_set(ledger, snapshot, wanted, wanted.baseline)
    if not isinstance(wanted, FeatureView):
        return
    name, created = wanted.name, wanted.created_timestamp_field
    if before is None and wanted.rules:
        yield _expected(wanted)
    for source in wanted.sources:
        if isinstance(source, PushSource):
            yield from _of_pushes(wanted, source, pushed)
    if wanted.aggregations and wanted.online and not wanted.takes_events:
        yield (
            f"{name} takes no pushes: training sees every event up to the instant asked, serving only those of the "
            "last run. Run `fs materialize` often, or declare a PushSource."
        )
    if isinstance(before, FeatureView):
        known = {field.name for field in before.stored}
        added = ", ".join(field.name for field in wanted.stored if field.name not in known)
        if added and not is_replaced and (spans := read_watermark(ledger, snapshot.views[name]).intervals):
            yield f"{added}: null for {in_words(spans)}, which was read before, until you read it again"
        if added and wanted.sql is None and (names := _pushed_to(before, wanted)):
            yield (
                f"{added}: once this is applied, rows that are pushed to {names} without it are refused. Let pushers "
                "send it before: until then it is ignored."
            )
    if created is not None and not wanted.created_follows:
        yield (
            f"{name}: {not_shown(created)}. Where a row is made of several, select {_greatest(wanted)} AS {created}: "
            "see the how-to on aggregations in SQL."
        )


def _lack_of_set(ledger: LedgerReader, snapshot: Snapshot, monitor: Monitor, baseline: str) -> Iterator[str]:
    try:
        found = find_set(ledger, snapshot.project, baseline)
    except RegistryFormatError:  # a later release saved it
        return
    if found is None:
        yield (
            f"{monitor.name} cannot be run before training set {baseline!r} is saved: "
            f"`fs training-set --entities FILE --service {monitor.target.name} --out FILE --save {baseline}`."
        )


def _of_pushes(view: FeatureView, source: PushSource, pushed: int) -> Iterator[str]:
    if view.sql is not None:
        yield (
            f"{view.name} takes no rows that are pushed to {source.name}: they would have to pass through its SQL. Its "
            "values change when `fs materialize` reads the batch source."
        )
    elif pushed:
        rows = "1 row that was" if pushed == 1 else f"{pushed:,} rows that were"
        yield (
            f"of {rows} pushed to {source.name}, the new generation gets what its batch source holds, and `fs gc` "
            "deletes the rest with the old generation. To keep that, push it again before."
        )


def _expected(view: FeatureView) -> str:
    """Return what a view expects of its rows, and what becomes of others."""
    rules = "; ".join(str(rule) if field is None else f"{field}: {rule}" for field, rule in view.rules)
    return f"{view.name} expects {rules}. {_ON_FAILURE[view.on_failure]}"


def _pushed_to(before: FeatureView, wanted: FeatureView) -> str:
    """Return the push sources that a view reads before and after, empty where there is none."""
    return ", ".join(each.name for each in wanted.sources if isinstance(each, PushSource) and each in before.sources)


def _deprecations(snapshot: Snapshot, wanted: Definition) -> Iterator[str]:
    """Yield what is deprecated and still used: the definition or a feature by others, others by the definition."""
    users = snapshot.users_of(wanted.key) if wanted.deprecated else ()
    if users:
        yield f"{wanted.name} is deprecated ({wanted.deprecated}) and used by {', '.join(users)}"
    fields = wanted.features if isinstance(wanted, FeatureView | OnDemandFeatureView) else ()
    for field in (field for field in fields if field.deprecated):
        readers = [user.key for user in snapshot.definitions.values() if (wanted.name, field.name) in _read_by(user)]
        if readers:
            yield f"{field.name} is deprecated ({field.deprecated}) and used by {', '.join(sorted(readers))}"
    for part in dict.fromkeys(parts_of(wanted)):
        if part.deprecated:
            yield f"{wanted.name} uses {part.key}, which is deprecated: {part.deprecated}"
    for (view, feature), why in _read_by(wanted).items():
        if why:
            yield f"{wanted.name} uses {view}:{feature}, which is deprecated: {why}"


def _read_by(reader: Definition) -> dict[tuple[str, str], str]:
    """Return the view and the name of each feature that a service or an on-demand view reads, and its deprecation."""
    if isinstance(reader, FeatureService):
        reads = reader.features
    else:
        reads = reader.selections if isinstance(reader, OnDemandFeatureView) else ()
    return {
        (read.name if isinstance(read, OnDemandFeatureView) else read.view.name, field.name): field.deprecated
        for read in reads
        for field in read.features
    }


def _greatest(view: FeatureView) -> str:
    declared = [(source.name, source.batch_source.created_timestamp_field) for source in view.sources]
    columns = [f"{name}.{created}" for name, created in declared if created is not None]
    return f"greatest({', '.join(columns)})" if len(columns) > 1 else f"max({view.created_timestamp_field})"
