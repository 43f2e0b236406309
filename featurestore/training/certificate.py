"""Certificates: facts about a training set, found by other methods than the one that made it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec
from featurestore_registry.documents import CertificateDocument, LabelCertificate, ViewCertificate

from featurestore.definitions.view import not_shown
from featurestore.engine.interface import REASONS, JoinFacts
from featurestore.errors import CertificateError
from featurestore.offline.interface import TableReader
from featurestore.offline.reading import opened
from featurestore.tables import html_table
from featurestore.training.asked import Asked
from featurestore.training.coverage import Gap
from featurestore.training.frames import TIME
from featurestore.training.joins import JoinedLabel, JoinedRows, Observed, PinnedRead
from featurestore.training.labels import LabelFacts
from featurestore.training.recount import are_one, recounted
from featurestore.training.reference import ReferenceRow, reference_answer
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import CREATED, EVENT, SEQUENCE
from featurestore.types.times import duration_text, to_rfc3339

if TYPE_CHECKING:
    import pyarrow.parquet as pq


@dataclass(frozen=True, slots=True)
class Certificate(CertificateDocument):
    """Facts about a training set at its pinned versions."""

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as JSON."""
        document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        if not self.labels:  # only then has it these keys: what earlier releases save has none
            del document["labels"], document["left_out"]
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Certificate:
        """Return the certificate of a `to_dict`."""
        return msgspec.convert(document, cls)

    def __str__(self) -> str:
        return "\n".join(f"{name + ':':<22}{value}" if name else value for name, value in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "rows", f"{self.rows:,}"
        yield "features", f"{len(self.features)}"
        yield "registry", f"project {self.project}, revision {self.registry_revision}"
        plain = [view for view in self.views if view.from_future is not None]
        if plain:
            of = "" if len(plain) == len(self.views) else " of views without windows"
            yield "from the future", f"{sum(view.from_future or 0 for view in plain)} answers{of} (by a separate query)"
        yield "recomputed", f"{self.recomputed_rows:,} rows by plain loops over the files: all equal"
        if self.rows_after_now:
            yield "after now", f"{self.rows_after_now:,} rows"
        for name, code in self.on_demand.items():
            yield "on demand", f"{name}, code {code}"
        if self.left_out:
            yield "left out", f"{self.left_out:,} rows whose labels were not known"
        for view in self.views:
            yield "", ""
            yield from self._view_lines(view)
        for label in self.labels:
            yield "", ""
            yield from self._label_lines(label)

    def _label_lines(self, label: LabelCertificate) -> Iterator[tuple[str, str]]:
        horizon, view = duration_text(label.horizon_us), label.view
        yield "label", f"{label.name}: {label.feature} as known {horizon} after the row, of events after the row"
        left_out = [(label.not_matured, "not matured"), (label.not_committed, "not committed")]
        yield "left out", ", ".join(f"{rows:,} rows {why}" for rows, why in left_out if rows) or "no row"
        yield "without a label", self._share(label.without_label) if self.rows else "no row"
        yield "recomputed", f"{label.recomputed_rows:,} labels by plain loops over the files: all equal"
        yield "generation", f"{view.generation}, table version {view.table_version}"
        yield "availability", view.availability
        if view.rests_on:
            yield "note", view.rests_on

    def _view_lines(self, view: ViewCertificate) -> Iterator[tuple[str, str]]:
        version = "no table version" if view.table_version is None else f"table version {view.table_version}"
        of = "" if view.name == view.view else f" of {view.view}"
        yield "view", f"{view.name}{of}, generation {view.generation}, {version}"
        yield "availability", view.availability
        if view.rests_on:
            yield "note", view.rests_on
        if view.greatest_age_us is not None:
            yield "greatest age", duration_text(view.greatest_age_us)
        shares = [f"{REASONS[reason]} {self._share(rows)}" for reason, rows in view.nulls.items() if rows]
        yield "without an answer", ", ".join(shares) or "no row"
        nulls = [f"{name} {self._share(rows)}" for name, rows in view.null_values.items() if rows]
        yield "null value", ", ".join(nulls) or "none"
        if view.windows:
            yield "own events", f"{self._share(view.own_events)} of the rows count an event of their very instant"
        if view.held_back:
            yield "held back", f"{self._share(view.held_back)} of the rows: events had happened, none was available"
        if any(view.overflowed.values()):
            sums = ", ".join(f"{name} {self._share(rows)}" for name, rows in view.overflowed.items() if rows)
            yield "overflow", f"null because 64 bits do not hold the sum: {sums}"
        if view.not_covered:
            yield "not committed", f"{self._share(view.not_covered)} of the rows look past what was committed"

    def _share(self, rows: int) -> str:
        return f"{rows / self.rows:.2%} ({rows:,})"

    def _repr_html_(self) -> str:
        return html_table(self._lines())


def certify(
    rows: JoinedRows,
    observed: Observed,
    gaps: Sequence[Gap],
    after_now: int,
    now_us: int,
    notes: Mapping[str, str],
    left_out: int = 0,
    horizon_us: int | None = None,
) -> Certificate:
    """Examine a join and recompute its sampled rows; the certificate quotes the ``notes`` by view.

    ``horizon_us`` is for a label, which stands at the end of its horizon: only what happened within it counts. Raises
    CertificateError when a check fails.
    """
    rows.verify()
    with ThreadPoolExecutor(1, thread_name_prefix="certificate") as aside:
        # The plain loops read files and run Python while the engine's threads work outside of it.
        looped = [aside.submit(recompute, rows, pinned, observed, horizon_us) for pinned in rows.pins]
        facts = rows.join.facts()
    uncovered = {gap.view: gap.rows for gap in gaps}
    views = []
    counts = []
    for pinned, found, recomputed in zip(rows.pins, facts, looped, strict=True):
        if found.from_future:
            raise _fault(
                f"{found.from_future} answers of view {found.view!r} are in the future of their rows.", found.view
            )
        counts.append(recomputed.result())
        nulls, name = _own_nulls(pinned, found, observed), pinned.read.view.name
        views.append(_view_certificate(pinned, found, nulls, uncovered.get(name, 0), notes.get(name, "")))
    return Certificate(
        project=rows.request.project,
        registry_revision=rows.request.revision,
        rows=len(rows.frame),
        features=tuple(output.name for output in rows.request.outputs),
        views=tuple(views),
        on_demand={read.view.name: read.view.code_hash for read in rows.request.on_demand},
        rows_after_now=after_now,
        recomputed_rows=min(counts, default=len(observed.rows)),
        certified_at=to_rfc3339(now_us),
        labels=tuple(_of_label(label, now_us, notes) for label in rows.labels),
        left_out=left_out,
    )


def _of_label(label: JoinedLabel, now_us: int, notes: Mapping[str, str]) -> LabelCertificate:
    """Certify a label as the join that it is, at the ends of the horizons."""
    facts, without = label.facts, label.column.null_count
    found = certify(label.rows, label.observed, (), 0, now_us, notes, horizon_us=facts.horizon_us)
    return LabelCertificate(
        name=facts.name,
        feature=facts.feature,
        horizon_us=facts.horizon_us,
        not_matured=facts.not_matured,
        not_committed=facts.not_committed,
        without_label=without,
        recomputed_rows=found.recomputed_rows,
        view=found.views[0],
    )


def facts_of(certified: LabelCertificate) -> LabelFacts:
    """Return what is said of the label of a saved set."""
    return LabelFacts(**{name: getattr(certified, name) for name in LabelFacts.__slots__})


def _fault(message: str, view: str, **details: Any) -> CertificateError:
    return CertificateError(message, hint="Please report this: the join has a fault.", view=view, **details)


def _own_nulls(pinned: PinnedRead, facts: JoinFacts, observed: Observed) -> dict[str, int]:
    """Return by feature how many rows have null as answer. Raises CertificateError for an impossible answer."""
    # Nulls were counted in the result: a feature's are those of rows without an answer, and its own.
    unanswered = sum(facts.nulls.values())
    own_nulls = {name: observed.nulls[pinned.read.name, name] - unanswered for name in pinned.read.features}
    if min(own_nulls.values(), default=0) < 0:
        raise _fault(f"View {facts.view!r} has values in rows that no row of it can answer.", facts.view)
    return own_nulls


def _view_certificate(
    pinned: PinnedRead, facts: JoinFacts, null_values: Mapping[str, int], not_covered: int, note: str
) -> ViewCertificate:
    view = pinned.read.view
    created = view.created_timestamp_field
    availability = "not declared" if created is None else f"by {created}"
    if created is not None and pinned.as_of == "event":
        availability = f"declared by {created}, not considered (as_of=event)"
    joined = ", ".join(source.name for source in view.sources[1:])
    rests_on = f"its SQL also reads {joined}: that nothing comes from the future there rests on it" if joined else ""
    moves = "" if created is None or view.created_follows else not_shown(created)
    return ViewCertificate(
        name=pinned.read.name,
        view=view.name,
        generation=pinned.read.registered.generation,
        table_version=None if pinned.version is None else pinned.version.number,
        as_of=pinned.as_of,
        availability=availability,
        rests_on="; ".join(filter(None, (rests_on, moves, note))),
        features=pinned.read.features,
        nulls=dict(facts.nulls),
        null_values=null_values,
        greatest_age_us=facts.greatest_age_us,
        from_future=facts.from_future,
        not_covered=not_covered,
        windows=len(pinned.read.features) if view.aggregations else 0,
        own_events=facts.own_events,
        held_back=facts.held_back,
        overflowed={name: rows for name, rows in facts.overflowed.items() if rows},
    )


def recompute(rows: JoinedRows, pinned: PinnedRead, observed: Observed, horizon_us: int | None = None) -> int:
    """Answer the sampled rows of one view again by plain loops, and return how many rows that were.

    Of a label the loops see only what happened after the row, whatever the join was asked. Raises CertificateError
    where a value differs.
    """
    import numpy as np
    import pyarrow as pa

    join = pinned.view_join()
    if join.view.aggregations:
        count, wrong = recounted(rows, pinned, observed, horizon_us)
        for place, feature, found, wanted in wrong:
            raise _differs(observed, join.name, place, feature, found, wanted)
        return count
    sample = rows.frame.keys.take(pa.array(observed.rows))
    columns = [sample.column(join.key_columns[key]).cast(arrow_type(kind)) for key, kind in join.view.join_keys.items()]
    keys = list(zip(*(column.to_pylist() for column in columns), strict=True))
    at_us = sample.column(TIME).cast(pa.int64())
    times = at_us.to_pylist()
    oldest_us = np.array([join.view.reaches_back_to(at) for at in times], dtype=np.int64)
    history = _History(rows.offline, pinned, Asked(columns, at_us.to_numpy(), oldest_us))
    answers = []
    for key, at in zip(keys, times, strict=True):
        near = history.near(key, at)
        if horizon_us is not None:
            near = [row for row in near if row.event_us > at - horizon_us]
        answer = reference_answer(key, at, near, ttl_us=join.view.ttl_us, as_of=join.as_of)
        answers.append(answer if isinstance(answer, ReferenceRow) else None)
    expected = history.values(answers)
    for feature, joined in observed.values(pinned.read).items():
        if _are_equal(joined, expected[feature]):
            continue
        for row, (found, wanted) in enumerate(zip(joined, expected[feature], strict=True)):
            if not are_one(found, wanted):
                raise _differs(observed, join.name, row, feature, found, wanted)
    return len(observed.rows)


def _differs(observed: Observed, view: str, place: int, feature: str, found: Any, wanted: Any) -> CertificateError:
    return _fault(
        f"Row {observed.rows[place]} of {view}:{feature} is {found!r}, but plain loops over the files give {wanted!r}.",
        view,
        feature=feature,
    )


_event_us = attrgetter("event_us")


class _History:
    """A table version's rows of some entities near the requested times, read without the engine."""

    def __init__(self, offline: TableReader, pinned: PinnedRead, asked: Asked) -> None:
        self._offline, self._pinned, self._asked = offline, pinned, asked
        self.rows: dict[tuple[Any, ...], list[ReferenceRow]] = {}
        self._places: dict[int, tuple[int, int, int]] = {}
        """File, row group and row in it of each sequence number."""
        for number, path in enumerate(pinned.opens):
            with opened(offline, path) as file:
                for group in range(file.num_row_groups):
                    self._read_group(file, number, group)
        for rows in self.rows.values():
            rows.sort(key=_event_us)

    def near(self, key: tuple[Any, ...], at_us: int) -> Sequence[ReferenceRow]:
        """Return an entity's rows that can answer at an instant, so as not to loop over a whole year for each row."""
        rows = self.rows.get(key, [])
        first = bisect_left(rows, self._pinned.read.view.reaches_back_to(at_us), key=_event_us)
        return rows[first : bisect_right(rows, at_us, key=_event_us)]

    def _read_group(self, file: pq.ParquetFile, number: int, group: int) -> None:
        import pyarrow as pa

        types = self._pinned.read.view.join_keys
        table = file.read_row_group(group, columns=[*types, EVENT, CREATED, SEQUENCE])
        places = self._asked.places(map(table.column, types), table.column(EVENT).cast(pa.int64()).to_numpy())
        table = table.take(pa.array(places))
        lists = [table.column(key).to_pylist() for key in types]
        event, created = (table.column(name).cast(pa.int64()).to_pylist() for name in (EVENT, CREATED))
        found = map(ReferenceRow, zip(*lists, strict=True), event, created, table.column(SEQUENCE).to_pylist())
        for row, place in zip(found, places.tolist(), strict=True):
            self.rows.setdefault(row.keys, []).append(row)
            self._places[row.sequence] = (number, group, place)

    def values(self, answers: Sequence[ReferenceRow | None]) -> dict[str, list[Any]]:
        """Return by feature the value of each answer, None where there is none."""
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for row, answer in enumerate(answers):
            if answer is not None:
                number, group, place = self._places[answer.sequence]
                wanted.setdefault((number, group), []).append((row, place))
        names = self._pinned.read.features
        values: dict[str, list[Any]] = {name: [None] * len(answers) for name in names}
        for number, path in enumerate(self._pinned.opens):
            with opened(self._offline, path) as file:
                for (_, group), places in ((at, found) for at, found in wanted.items() if at[0] == number):
                    self._fill(values, file, group, places)
        return values

    def _fill(
        self, values: dict[str, list[Any]], file: pq.ParquetFile, group: int, places: Sequence[tuple[int, int]]
    ) -> None:
        stored = [name for name in values if name in file.schema_arrow.names]
        table = file.read_row_group(group, columns=stored).take([place for _, place in places])
        for name in stored:
            kind = arrow_type(self._pinned.read.view.feature(name).type)
            for (row, _), value in zip(places, table.column(name).cast(kind).to_pylist(), strict=True):
                values[name][row] = value


def _are_equal(some: list[Any], others: list[Any]) -> bool:
    """Tell quickly whether columns are equal; False means that the values have to be compared one by one."""
    kinds = list(map(type, some))
    return list not in kinds and kinds == list(map(type, others)) and some == others
