"""Runs: what each materialization did. `fs materialize`, `fs log` and the ledger show them.

A run is written twice per view: when it starts (kind ``run_start``) and when it ends (kind ``run``). A start
without an end whose lease or process is gone belongs to a process that was killed.

No decision depends on what a run says about itself, so it is read as far as this version understands it: a newer
version in the same fleet may write more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from html import escape
from itertools import zip_longest
from typing import Any, get_type_hints

import msgspec
from featurestore_registry.documents import RUN, RUN_START, PublishedDocument, RunDocument
from featurestore_registry.interface import Ledger, LedgerReader

from featurestore.definitions.aggregation import MOST_BYTES
from featurestore.errors import RegistryFormatError
from featurestore.ledger.leases import running_holder
from featurestore.steps import crash_point, reached
from featurestore.tables import html_table

SHOWN_KEYS = 5

STARTED = crash_point("run.started", "the ledger says that the run is under way")
RECORDED = crash_point("run.recorded", "the ledger says how the run ended")


@dataclass(frozen=True, slots=True)
class Published(PublishedDocument):
    """The counts of the records that a run sent online."""

    def __add__(self, other: Published) -> Published:
        """Return the counts of two publishes of one run."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        keys = tuple(dict.fromkeys((*self.wrong_type_keys, *other.wrong_type_keys)))[:SHOWN_KEYS]
        return Published(**sums, wrong_type_keys=keys)


_WHERE_THERE_ARE_ANY = ("unusable", "conflicts", "conflicts_in_source", "unmet", "accepted", "quarantined")
_NOT_WRITTEN = ("examples", "blocked", "not_judged")
COUNTS = tuple(field.name for field in fields(Published) if field.name != "wrong_type_keys")


@dataclass(frozen=True, slots=True)
class RunResult(RunDocument):
    """One run of one view. Counts are rows."""

    published: Published = field(default_factory=Published)
    examples: tuple[str, ...] = ()
    """Beside each part of `unmet`: the least and the greatest value that fails. It is not written: who may see runs may
    not see values."""
    blocked: tuple[str, ...] = ()
    """Of a dry run: what a run would be stopped by, having committed nothing. It is not written."""
    not_judged: tuple[str, ...] = ()
    """What of its rules could not be judged, and why. It is not written."""

    def __repr__(self) -> str:
        took = "" if self.duration_ms is None else f", {self.duration_ms / 1000:.1f} s"
        counts = f"{self.read:,} rows read, {self.appended:,} appended, {self.published.written:,} online{took}"
        dry = ", a dry run" if self.dry_run else ""
        return f"RunResult({self.view}: {self.state}, {counts}{dry})"

    def _repr_html_(self) -> str:
        return Runs([self])._repr_html_()

    def cells(self, heads: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return its cells in a table of runs, in the order of ``heads``: by default `RUN_HEADS`."""
        heads = RUN_HEADS if heads is None else heads
        took = "" if self.duration_ms is None else f"{self.duration_ms / 1000:.1f} s"
        if self.state == "failed":
            took = "failed"
        cells = {
            "view": self.view,
            "read": self.read,
            "appended": self.appended,
            "unchanged": self.unchanged,
            "duplicates": self.duplicates,
            "dropped": self.null_keys + self.null_times + self.unusable,
            "set aside": self.quarantined,
            "waiting": self.waiting,
            "online": self.published.written,
            "took": took,
        }
        return tuple(f"{cells[head]:,}" if isinstance(cells[head], int) else str(cells[head]) for head in heads)

    def _notes_of_rules(self) -> list[str]:
        notes = []
        for told, shown in zip_longest(self.unmet, self.examples, fillvalue=""):
            notes.append(f"not as expected: {told}{f' ({shown})' if shown else ''}")
        if self.blocked:
            notes.append("a run would be stopped by this, and would commit nothing")
        notes += [f"not judged: {told}" for told in self.not_judged]
        if self.quarantined:
            rows = "1 row" if self.quarantined == 1 else f"{self.quarantined:,} rows"
            notes.append(f"set aside {rows}: `fs quarantine list {self.view}` shows why")
        if self.accepted:
            notes.append(f"{self.accepted_how}: {self.accepted}")
        return notes

    @property
    def accepted_how(self) -> str:
        """What `accepted` is the reason of."""
        return "released" if self.kind == "release" else "accepted all the same"

    def notes(self) -> list[str]:
        """Return what users should know besides the counts."""
        notes = self._notes_of_rules()
        if self.null_keys or self.null_times:
            notes.append(f"dropped {self.null_keys:,} rows with a null key and {self.null_times:,} without event time")
        if self.unusable:
            notes.append(
                f"dropped {self.unusable:,} events without an id, or with a text of more than {MOST_BYTES} bytes"
            )
        if correctable := self.conflicts - self.conflicts_in_source:
            notes.append(
                f"{correctable:,} events have other values than the event of the same id that counts, and change "
                "nothing: the first one counts; a `--rebuild` of their span takes those of the source"
            )
        if self.conflicts_in_source:
            notes.append(
                f"{self.conflicts_in_source:,} events change nothing, nor do they with `--rebuild`: the source holds "
                "their id twice with other values, and the first one taken counts, of one run the earliest. Correct "
                f"the source: `fs peek {self.view} --dropped` lists duplicates"
            )
        if self.waiting:
            notes.append(f"{self.waiting:,} rows are dated after now and wait for a later run")
        if self.published.expired:
            notes.append(
                f"{self.published.expired:,} entities were not put online: their newest row is long past its ttl"
            )
        if self.withdrawn:
            notes.append(f"withdrew {self.withdrawn:,} rows that the source no longer holds as they were")
        if self.damaged:
            notes.append(f"left out damaged files with {self.damaged:,} rows and read their span from the source again")
        if self.published.wrong_type:
            keys = ", ".join(self.published.wrong_type_keys)
            notes.append(
                f"{self.published.wrong_type:,} keys hold something else and were left alone: {keys}. Delete them, and "
                f"run `fs materialize --republish --view {self.view}`"
            )
        return notes


RUN_HEADS = ("view", "read", "appended", "unchanged", "duplicates", "dropped", "waiting", "online", "took")


def heads_of(runs: Iterable[RunResult]) -> tuple[str, ...]:
    """Return the heads of a table of runs: rows that are set aside have a column where there are any."""
    place = RUN_HEADS.index("dropped") + 1
    return (*RUN_HEADS[:place], "set aside", *RUN_HEADS[place:]) if any(r.quarantined for r in runs) else RUN_HEADS


class Runs(list[RunResult]):
    """Runs; a notebook shows them as `fs materialize` does."""

    def _repr_html_(self) -> str:
        notes = [f"{run.view}: {note}" for run in self for note in (*run.notes(), *filter(None, [run.error]))]
        if any(run.dry_run for run in self):
            notes.append("This was a dry run: nothing was written.")
        heads = heads_of(self)
        return html_table((run.cells(heads) for run in self), heads) + "".join(
            f"<p>{escape(note)}</p>" for note in notes
        )


def record_start(ledger: Ledger, project: str, run: RunResult) -> None:
    """Write that a run is under way."""
    ledger.append(project, RUN_START, run.view, _document(run))
    reached(STARTED)


def record_end(ledger: Ledger, project: str, run: RunResult) -> None:
    """Write how a run ended."""
    ledger.append(project, RUN, run.view, _document(run))
    reached(RECORDED)


def _document(run: RunResult) -> dict[str, Any]:
    """Return a run as it is written: without what few runs have, which earlier releases refuse."""
    written = {name: value for name, value in asdict(run).items() if value or name not in _WHERE_THERE_ARE_ANY}
    return {name: value for name, value in written.items() if name not in _NOT_WRITTEN}


def runs(ledger: LedgerReader, project: str, view: str, *, now_us: int) -> list[RunResult]:
    """Return a view's runs, newest first as the ledger has them; a run without an end is running or was killed.

    Not by their times: a clock that was ahead would make an earlier run the last one.
    """
    ended = [run_from(entry.document) for entry in ledger.scan(project, RUN, key=view)]
    known = {run.run_id for run in ended}
    started = [run_from(entry.document) for entry in ledger.scan(project, RUN_START, key=view)]
    place = {run.run_id: number for number, run in enumerate(started)}
    open_runs = [run for run in started if run.run_id not in known]
    if open_runs:
        # The lease of a generation that is not served yet has a name of its own.
        names = {view, *(f"{view}.{run.generation}" for run in open_runs)}
        with suppress(RegistryFormatError):  # nobody can know who holds the lease: they stay as they began
            holders = {running_holder(ledger, project, name, now_us=now_us) for name in names}
            open_runs = [replace(run, state="running" if run.run_id in holders else "killed") for run in open_runs]
    return sorted([*ended, *open_runs], key=lambda run: place.get(run.run_id, len(place)))


def all_runs(ledger: LedgerReader, project: str, *, now_us: int) -> list[RunResult]:
    """Return the runs of every view, also of deleted ones, newest first."""
    views = {entry.key for kind in (RUN_START, RUN) for entry in ledger.scan(project, kind)}
    found = [run for view in sorted(views) for run in runs(ledger, project, view, now_us=now_us)]
    return sorted(found, key=lambda run: run.started_us, reverse=True)


_UNTOLD = RunResult("", "", 0, "incremental", "done", 0, "", 0)
"""The defaults for fields that a run's document lacks."""


def run_from(document: Mapping[str, Any]) -> RunResult:
    """Return the run of a ledger document: kind and state unchanged, and no fields that this version lacks."""
    published = Published(**_understood_parts(Published, document.get("published")))
    return replace(_UNTOLD, **{**_understood_parts(RunResult, document), "published": published})


def _understood_parts(kind: type, document: Any) -> dict[str, Any]:
    """Return the parts of a document for which a dataclass has a field of that type."""
    parts = {}
    for name, hint in _hints(kind).items():
        with suppress(KeyError, TypeError, msgspec.ValidationError):
            parts[name] = msgspec.convert(document[name], hint)
    return parts


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; a newer version may know further kinds of runs, and states."""
    return {name: str if name in ("kind", "state") else hint for name, hint in get_type_hints(kind).items()}
