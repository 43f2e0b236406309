"""Pushed events on their way into the log of a view with aggregations, and from there online.

An event counts once, by its id, however often it is pushed: the commit decides that, because only it knows what came
before. The online part then follows the log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from featurestore_registry.forks import ForkLock
from typing_extensions import override

from featurestore.consistency.moments import once_a_moment
from featurestore.definitions.aggregation import MOST_BYTES
from featurestore.definitions.events import ONE_EVENT_US
from featurestore.engine.interface import JudgedEvents
from featurestore.errors import OnlineStoreUnavailableError, RegistryUnavailableError, ValueTypeError
from featurestore.following.follow import Follower
from featurestore.following.held import MOST_MADE_ANEW
from featurestore.following.rows import NewestRows
from featurestore.ingest.group_commit import Pushed, PushWriter
from featurestore.ingest.known_ids import KnownIds
from featurestore.ingest.rows import CheckedRows
from featurestore.offline.interface import DataFile, TableId, TableVersion
from featurestore.registered.snapshot import RegisteredView
from featurestore.types.columns import EVENT
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(slots=True)
class EventCounts:
    """What became of pushed events."""

    appended: int = 0
    known: int = 0
    """They were there already: pushed before, or read from the source."""
    conflicting: int = 0
    """Among ``known``: they differ from the event of the same id that counts."""
    too_late: int = 0
    """Among ``appended``: they happened before every window begins by now."""


@dataclass(frozen=True, slots=True)
class PushedEvents(Pushed):
    """Whose events they are, and what becomes of them."""

    counts: EventCounts = field(default_factory=EventCounts)
    reached: list[int] = field(default_factory=lambda: [-1])
    """The greatest ``fs_seq`` among them, or that they are known as."""


class EventWriter(PushWriter):
    """Leaves out of a commit the events that the log has."""

    def __init__(self) -> None:
        super().__init__()
        self._ids: KnownIds | None = None
        self._rows: pa.Table | None = None

    @override
    def gathered(
        self, given: Sequence[Pushed], parts: Sequence[pa.Table], version: TableVersion | None
    ) -> pa.Table | None:
        import numpy as np
        import pyarrow as pa

        rows = pa.concat_tables(parts)
        judged = self.judged(given[0].workspace, given[0].registered, version, rows)
        first = 0 if version is None else version.next_sequence
        new = first + np.cumsum(judged.is_new) - 1
        # One that repeats another of this very commit is known as no number yet: it is there with the last of them.
        repeats = ~judged.is_new & (judged.known_as < 0)
        numbers = np.where(judged.is_new, new, np.where(repeats, new[-1:], judged.known_as))
        begin = 0
        for pushed, part in zip(given, parts, strict=True):
            mine = slice(begin, begin + part.num_rows)
            begin += part.num_rows
            if isinstance(pushed, PushedEvents):
                note(pushed, part, judged, mine, int(numbers[mine].max(initial=-1)))
        left = rows.filter(pa.array(judged.is_new))
        self._rows = self.numbered(left, first) if left.num_rows else None
        return self._rows

    def judged(
        self, workspace: Workspace, registered: RegisteredView, version: TableVersion | None, rows: pa.Table
    ) -> JudgedEvents:
        """Tell which events are new."""
        if self._ids is None or not self._ids.is_of(registered.view):
            self._ids = KnownIds(registered.view)
        judged = self._ids.judge(workspace.offline, version, rows, workspace.clock())
        if judged is not None:
            return judged
        files = [] if version is None else [file.path for file in near(version.files, rows)]
        return workspace.engine.log.judge(registered.view, files, rows)

    @override
    def committed(self, given: Sequence[Pushed], version: TableVersion) -> None:
        if self._rows is not None:
            _newest_rows[version.table] = NewestRows(version.identity, self._rows)
        super().committed(given, version)


def near(files: Sequence[DataFile], rows: pa.Table) -> list[DataFile]:
    """Return the files that may hold an event at most a day from one of the rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    event = rows.column(EVENT).cast(pa.int64())
    bounds = pc.min_max(event).as_py()
    first, last = bounds["min"] - ONE_EVENT_US, bounds["max"] + ONE_EVENT_US
    return [file for file in files if file.max_event_us >= first and file.min_event_us <= last]


def note(pushed: PushedEvents, part: pa.Table, judged: JudgedEvents, mine: slice, reached: int) -> None:
    """Note what became of one caller's events."""
    import pyarrow as pa

    is_new = judged.is_new[mine]
    event_us = part.column(EVENT).cast(pa.int64()).to_numpy()[is_new]
    pushed.counts.appended = int(is_new.sum())
    pushed.counts.known = int((~is_new).sum())
    pushed.counts.conflicting = int(judged.conflicts[mine].sum())
    pushed.counts.too_late = int((event_us < pushed.registered.view.reaches_back_to(pushed.workspace.clock())).sum())
    pushed.reached[0] = reached


def check_events(rows: CheckedRows) -> None:
    """Raise ValueTypeError for an event without an id, and for a text that is too long to be kept."""
    view = rows.view
    assert view.events is not None
    bounded = view.events.bounded
    for lower, name in {name.lower(): name for name in rows.stored}.items():
        column = rows.stored[name]
        values = column if isinstance(column, list) else column.to_pylist()
        is_id = lower == (view.event_id or "").lower()
        if lower not in bounded:
            continue
        for row, value in enumerate(values):
            if value is None and is_id:
                raise ValueTypeError(
                    f"column {name!r}, row {row}: an event needs an id.",
                    hint="Give each event one of its own: a push may be repeated, and the event still counts once.",
                    column=name,
                    row=row,
                )
            size = len(value.encode()) if isinstance(value, str) else len(value) if isinstance(value, bytes) else 0
            if size > MOST_BYTES:
                raise ValueTypeError(
                    f"column {name!r}, row {row}: the text has {size} bytes, and windows keep at most {MOST_BYTES}.",
                    hint="Push a shorter one, such as a hash.",
                    column=name,
                    row=row,
                )


class Turns:
    """Threads of one process that bring one view's events online: one after the other, for who comes first does it for

    all. While the store hangs nobody waits in vain twice: those who wait fail with the first.
    """

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._failure = OnlineStoreUnavailableError("")
        self._failed_at_s = -inf

    @contextmanager
    def next(self, most_seconds: float | None) -> Iterator[None]:
        """Wait for one's turn, at most so long. Raises OnlineStoreUnavailableError."""
        since_s = time.monotonic()
        if not self._lock.acquire(most_seconds):
            raise OnlineStoreUnavailableError(
                f"Another push has been writing to the online store for {most_seconds:g} s.",
                hint="Push the same events again: each counts once.",
            )
        try:
            if self._failed_at_s > since_s:
                raise OnlineStoreUnavailableError(self._failure.message, hint=self._failure.hint)
            try:
                yield
            except OnlineStoreUnavailableError as error:
                self._failure, self._failed_at_s = error, time.monotonic()
                raise
        finally:
            self._lock.release()


_turns: dict[TableId, Turns] = {}
_newest_rows: dict[TableId, NewestRows] = {}
"""What this process committed last, so that it need not read it again."""


class Brought(NamedTuple):
    """What bringing events online did."""

    is_online: bool
    """False where only a run can do it."""
    folded: int = 0
    """How many records had newest events put into their tiles."""
    foreign: tuple[bytes, ...] = ()
    """Keys that hold something else; it was left alone."""


def bring_online(workspace: Workspace, registered: RegisteredView, sequence: int) -> Brought:
    """Bring a view's online part so far that it has an event.

    Raises OnlineStoreUnavailableError also where another thread's push of the view waits for the store.
    """
    with _turns.setdefault(registered.table, Turns()).next(workspace.online.write_deadline_seconds):
        covered_us = workspace.clock()
        version = workspace.offline.current(registered.table)
        assert version is not None
        newest_rows = _newest_rows.get(registered.table)
        follower = Follower(workspace, registered, version, lambda: None, covered_us=covered_us, newest=newest_rows)
        marks = follower.marks()
        if marks is not None and all(mark.sequence >= sequence for mark in marks.values()):
            return Brought(is_online=True)
        with once_a_moment(workspace.online, follower.schema_key) as is_due:
            if is_due:
                follower.begin()
        try:
            done = follower.bring(marks, most_rows=MOST_MADE_ANEW)
        except RegistryUnavailableError:  # all records have to be made, for definitions that nobody knows now
            return Brought(is_online=False, folded=follower.folded)
        if done is None:
            return Brought(is_online=False, folded=follower.folded)
        if is_due or done.is_whole:
            follower.end(done)
        return Brought(is_online=True, folded=follower.folded, foreign=done.foreign)
