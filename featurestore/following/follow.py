"""Bringing a view's online part to a version of its log: the events after its marks, or all records anew.

Events are applied in the order of ``fs_seq``, in slices that each move a mark with them: whoever finds a mark elsewhere
goes on from there, so any number of appliers do the work once. Without marks that the log knows, nobody applies: every
record is made from the log again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from featurestore.consistency.belonging import begin_part, move_part
from featurestore.errors import OnlineStoreError
from featurestore.following.folds import due_heads, fold_later, fold_records
from featurestore.following.mark import Mark, known_marks, mark_from, read_marks
from featurestore.following.rows import EventEncoder, NewestRows
from featurestore.following.slices import Part, Slicer
from featurestore.following.tokens import MOST_TRIES, Tokens
from featurestore.offline.interface import MAX_SEQUENCE, TableVersion
from featurestore.online.interface import FOREIGN, Advanced, Append, Move, Placed, Slice, WriteResult
from featurestore.online.records.keys import mark_key
from featurestore.online.records.windowed import FORMAT, MOST_WAITING, first_length, is_intact
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import crash_point, reached
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("featurestore")

APPENDED = crash_point("follow.appended", "one more slice of events is online, and the mark says so")
FOLDED = crash_point("follow.folded", "newest events went into tiles")
PLACED = crash_point("follow.placed", "one more batch of records made from the log is online, the mark is where it was")

MOST_OF_ONE = 1_000
"""At most so many events of one entity a slice: readers go through its newest events until they are folded."""
FOLDED_AFTER = 4_000
"""Newest events are folded after so many have been applied, or when a record may get more than `MOST_OF_ONE`."""
PLACED_AT_ONCE = 16_000
"""At most so many records are held to be placed together; a store may want fewer."""
RECORD_BYTES = 4 << 10
"""Larger ones are placed fewer at a time."""
BATCH_ROWS = 50_000
_FORMAT = bytes([FORMAT])


class _Step(NamedTuple):
    """One slice on its way: the bucket, its events, and where they bring its mark."""

    bucket: bytes
    part: Part
    reaches: Mark


@dataclass(frozen=True, slots=True)
class Followed:
    """What was done."""

    appended: int = 0
    """Records that events were appended to."""
    placed: int = 0
    """Records that were made from the log."""
    replaced: int = 0
    """Those among them in whose place was one with events that the log may lack."""
    removed: int = 0
    """Records of entities without events in the log."""
    foreign: tuple[bytes, ...] = ()
    """Keys that hold something else; it was left alone."""
    is_whole: bool = True
    """Whether all records were made again."""


class Follower:
    """One view's online part, about to be brought to a version of its log. ``check`` raises when it must not go on."""

    def __init__(
        self,
        workspace: Workspace,
        registered: RegisteredView,
        version: TableVersion,
        check: Callable[[], None],
        *,
        covered_us: int = 0,
        newest: NewestRows | None = None,
    ) -> None:
        """``covered_us`` as in `Mark`, for the version; ``newest`` rows need not be read if they are its."""
        self._workspace, self._online, self._check = workspace, workspace.online, check
        self._covered_us, self._newest = covered_us, newest
        self._stored: dict[bytes, bytes | None] = {}
        """The mark of each bucket as it is stored."""
        self.folded = 0
        """How many records had newest events put into their tiles."""
        self._take(registered, version)

    def _take(self, registered: RegisteredView, version: TableVersion) -> None:
        """Go on with definitions and a version."""
        self._registered, self._version = registered, version
        self._encoder = EventEncoder(registered)
        of, buckets = (version.next_sequence - 1, version.number, version.identity), len(self._online.mark_buckets)
        self._target = Mark(*of, self._encoder.layout.id.hex(), self._covered_us, buckets)
        """The mark of the version."""

    def _take_newest(self) -> bool:
        """Go on with the view as it is defined now, and all that is committed.

        False if it is not online now, or from another table: then nobody has newer definitions of these records.
        Raises RegistryUnavailableError.
        """
        mine = self._registered
        found = self._workspace.snapshot().views.get(mine.view.name)
        is_current = found is not None and found.table == mine.table and found.view.online
        version = self._workspace.offline.current(mine.table)
        assert version is not None
        self._take(found if found is not None and is_current else mine, version)
        return is_current

    @property
    def schema_key(self) -> bytes:
        """The key of the records' schema."""
        return self._encoder.schema_key

    def begin(self) -> None:
        """Write whose the records are and their schema, without which nobody can read them; raises as `begin_part`."""
        begin_part(self._workspace, self._registered)
        self._online.put(self._encoder.schema_key, self._encoder.layout.document)

    def end(self, done: Followed) -> None:
        """Let the part's marker say what a run's would."""
        move_part(self._workspace, self._registered, self._version, is_anew=done.is_whole)

    def bring(
        self, marks: dict[bytes, Mark] | None = None, *, anew: bool = False, most_rows: int | None = None
    ) -> Followed | None:
        """Bring it there after `begin`, from ``marks`` as `marks` returned them; with ``anew`` make every record again.

        Records are made for the newest definitions alone, whichever the caller has. None where they have to be made and
        that takes more rows than ``most_rows``, if those are given; else raises RegistryUnavailableError where
        nobody knows the newest.
        """
        if not self._online.keeps_events:
            raise OnlineStoreError(
                f"View {self._registered.view.name!r} has windows, which this online store does not keep.",
                hint="Use LMDB, Redis or a Redis Cluster, or declare the view with online=False.",
            )
        if not anew and (done := self._go_on(marks)) is not None:
            return done
        layout = self._encoder.layout.id
        is_current = self._take_newest()
        if not anew and self._encoder.layout.id != layout and (done := self._go_on()) is not None:
            return done
        if most_rows is not None and (not is_current or self._version.rows > most_rows):
            return None
        return self._publish()

    def marks(self) -> dict[bytes, Mark] | None:
        """Return the marks, None where nobody can go on from them (`known_marks`), or they are of another layout."""
        self._stored = read_marks(self._workspace, self._registered)
        marks = known_marks(self._workspace, self._registered, self._version, self._stored)
        are_others = marks is None or any(mark.layout != self._target.layout for mark in marks.values())
        return None if are_others else marks

    def _files(self, after: int) -> list[str]:
        """Return the files with events after a number; raises DamagedFileError."""
        files = [file for file in self._version.files if file.max_sequence > after]
        self._workspace.offline.verify(files)
        return [file.path for file in files]

    # The events after the marks.

    def _go_on(self, marks: dict[bytes, Mark] | None = None) -> Followed | None:
        """Apply the events after the marks; None where that cannot be done: records must be made, or made again."""
        taken, foreign = set[bytes](), dict[bytes, None]()
        while (marks := marks or self.marks()) is not None:
            outcome = self._advance_all(marks, taken, foreign)
            if outcome is Advanced.DONE:
                self._fold(due_heads(self._workspace, self._encoder))
                return Followed(len(taken.difference(foreign)), foreign=tuple(foreign), is_whole=False)
            if outcome is Advanced.OTHER_LAYOUT:
                break
            marks = None  # another applier was there first, or the store lost writes
        return None

    def _advance_all(self, marks: dict[bytes, Mark], taken: set[bytes], foreign: dict[bytes, None]) -> Advanced:
        """Apply the events after the marks until one is found elsewhere; adds the keys that have ``taken`` some."""
        count, folded_at, after = 0, 0, min(mark.sequence for mark in marks.values())
        batches = self._batches(after) if after < self._target.sequence else ()
        long: dict[bytes, int] = {}
        for steps in self._steps(batches, marks):
            self._check()
            slices = [Slice([self._move(step.bucket, step.reaches)], step.part.appends) for step in steps]
            outcomes = self._online.advance(slices)
            for step, slice_, (outcome, sizes) in zip(steps, slices, outcomes, strict=True):
                if outcome is Advanced.DONE:
                    marks[step.bucket], self._stored[step.bucket] = step.reaches, slice_.moves[0].after
                    count += step.part.count
                    taken.update(append.key for append in step.part.appends)
                    long.update(_long(step.part.appends, sizes))
                    foreign.update(dict.fromkeys(_foreign(step.part.appends, sizes)))
            reached(APPENDED)
            if count - folded_at >= FOLDED_AFTER or max(long.values(), default=0) > MOST_OF_ONE:
                self._fold(long)
                folded_at = count
            worst = max(outcome for outcome, _ in outcomes)
            if worst is not Advanced.DONE:
                break
        else:
            worst = Advanced.DONE
        self._fold(long)
        return worst

    def _fold(self, long: dict[bytes, int]) -> None:
        """Put the newest events of some records into their tiles, and forget those records."""
        if long:
            self.folded += fold_records(self._workspace, self._encoder, list(long))
            long.clear()
            reached(FOLDED)

    def _batches(self, after: int) -> Iterable[pa.RecordBatch]:
        """Return the events after a number, of the log or as they were just committed."""
        newest, version = self._newest, self._version
        if newest is not None and newest.identity == version.identity:
            is_all = after + 1 + newest.rows.num_rows == version.next_sequence
            batch = self._encoder.from_rows(newest.rows) if is_all else None
            if batch is not None:
                return [batch]
        return self._workspace.engine.log.events(
            self._registered.view, self._files(after), after_sequence=after, batch_rows=BATCH_ROWS
        )

    def _steps(self, batches: Iterable[pa.RecordBatch], marks: Mapping[bytes, Mark]) -> Iterator[list[_Step]]:
        """Yield what to send at once, at last with all marks that are behind."""
        slicer = Slicer(self._encoder, marks, most=self._online.events_at_once, most_of_one=MOST_OF_ONE)
        held: dict[bytes, Part] = {}
        for parts in slicer.parts(batches):
            if held:
                yield [self._step(bucket, part, marks[bucket]) for bucket, part in held.items()]
            held = parts
        behind = [bucket for bucket, mark in marks.items() if mark.is_behind(self._target)]
        if behind:
            last = [(bucket, held.get(bucket, Part()), self._target_after(marks[bucket])) for bucket in behind]
            yield [_Step(*each) for each in last]

    def _step(self, bucket: bytes, part: Part, mark: Mark) -> _Step:
        return _Step(bucket, part, self._target._replace(sequence=part.last, covered_us=mark.covered_us))

    def _target_after(self, mark: Mark | None) -> Mark:
        return self._target._replace(covered_us=max(self._target.covered_us, 0 if mark is None else mark.covered_us))

    def _bucket(self, key: bytes) -> bytes:
        """Return the bucket whose mark says whether a record has an event."""
        return self._encoder.bucket_of(key) if len(self._online.mark_buckets) > 1 else self._online.mark_buckets[0]

    def _move(self, bucket: bytes, reaches: Mark) -> Move:
        return Move(mark_key(self._encoder.namespace, bucket), self._stored[bucket], reaches.to_bytes())

    # All records.

    def _publish(self) -> Followed:
        """Make every record from the log."""
        for _ in range(MOST_TRIES):
            tokens = Tokens(self._online, self._encoder.namespace)
            done = self._place_all(tokens) if tokens.begin() else None
            if done is not None:
                return done
            # The store lost what was placed, somebody went on with older definitions, or another publish began
            # meanwhile: then that one does the work.
            if tokens.wait_for_others(self._check):
                self._take_newest()
                if (done := self._go_on()) is not None:
                    return done
        raise OnlineStoreError(
            f"The online store lost records of view {self._registered.view.name!r} while they were published.",
            hint="Run it again; if that repeats, see whether the store is emptied or restored meanwhile.",
        )

    def _place_all(self, tokens: Tokens) -> Followed | None:
        """Place every record, and move the marks; None where a token is not there any more."""
        online = self._records_online()
        self._take_newest()  # events that those records have taken are all in this version
        self.begin()
        sequence, count, replaced, removed, foreign = self._target.sequence, 0, 0, 0, list[bytes]()
        unknown = {
            bucket for bucket, mark in read_marks(self._workspace, self._registered).items() if not self._known(mark)
        }
        now_us = self._workspace.clock()
        since_us = self._encoder.since_us(self._version, now_us)
        batches = self._workspace.engine.log.events(
            self._registered.view, self._files(-1), since_us=since_us, by_entity=True, batch_rows=BATCH_ROWS
        )
        records = self._encoder.placed(batches, sequence, now_us)
        for part in _parts(records, min(self._online.records_at_once, PLACED_AT_ONCE)):
            were = {each.key: online.pop(each.key) for each in part if each.key in online}
            part = [each._replace(damaged=was) if (was := were.get(each.key)) else each for each in part]
            results = self._place(tokens, part, unknown)
            if results is None:
                return None
            replaced += sum(results[key] is WriteResult.WRITTEN and self._bucket(key) in unknown for key in were)
            fold_later(self._online, self._encoder, part)
            count += list(results.values()).count(WriteResult.WRITTEN)
            foreign += [key for key, result in results.items() if result is WriteResult.WRONG_TYPE]
        others = (self._encoder.gone(key, sequence)._replace(damaged=damaged) for key, damaged in online.items())
        for part in _parts(others, self._online.records_at_once):
            results = self._place(tokens, part, unknown)
            if results is None:
                return None
            removed += sum(result in (WriteResult.WRITTEN, WriteResult.EXPIRED) for result in results.values())
        return Followed(0, count, replaced, removed, tuple(foreign)) if self._move_marks(tokens) else None

    def _records_online(self) -> dict[bytes, bytes]:
        """Return the keys of all records that there are, each with its bytes if it is damaged."""
        found: dict[bytes, bytes] = {}
        for batch in self._online.scan(self._encoder.prefix):
            self._check()
            records = [(key, record) for key, record in batch if record[0:1] == _FORMAT]
            found.update((key, b"" if is_intact(key, record) else record) for key, record in records)
        return found

    def _place(
        self, tokens: Tokens, placed: Sequence[Placed], unknown: Collection[bytes]
    ) -> dict[bytes, WriteResult] | None:
        """Place records and return what became of each key; None where a token is not there any more.

        In a bucket whose mark is ``unknown`` to the log nobody applies, and records may hold events that the log lost
        when it was restored: whatever number they say, they go.
        """
        self._check()
        part = defaultdict[bytes, list[Placed]](list)
        for each in placed:
            bucket = self._bucket(each.key)
            part[bucket].append(each._replace(sequence=MAX_SEQUENCE) if bucket in unknown else each)
        results = tokens.place(part)
        reached(PLACED)
        if results is None:
            return None
        return dict(zip((each.key for own in part.values() for each in own), results, strict=True))

    def _move_marks(self, tokens: Tokens) -> bool:
        """Move every mark that is not further already; False where a token is not there any more, or a mark is

        further with another layout: records have events since that were appended to that one.
        """
        for _ in range(MOST_TRIES):
            self._stored = read_marks(self._workspace, self._registered)
            moves = tokens.moves(self._stored, over=True)
            slices: list[Slice[Append]] = []
            for bucket, value in self._stored.items():
                mark = self._known(value)
                is_further = mark is not None and not mark.is_behind(self._target)
                if mark is not None and is_further and mark.layout != self._target.layout:
                    return False
                both = [moves[bucket], self._move(bucket, self._target_after(mark))]
                slices.append(Slice(both[:1] if is_further else both, []))
            outcomes = self._online.advance(slices)
            is_done = [outcome is Advanced.DONE for outcome, _ in outcomes]
            for (bucket, move), done in zip(moves.items(), is_done, strict=True):
                if done:
                    tokens.moved(bucket, move)
            if all(is_done):
                return True
            if not tokens.are_there():
                return False
        return False

    def _known(self, stored: bytes | None) -> Mark | None:
        """Return a mark if the log has its commit."""
        mark = mark_from(stored)
        commit = None if mark is None else self._workspace.offline.find_commit(self._registered.table, mark.version)
        return mark if commit is not None and mark is not None and commit.identity == mark.commit else None


def _long(appends: Sequence[Append], sizes: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """Yield the keys of records that have many newest events, and about how many."""
    for append, size in zip(appends, sizes, strict=True):
        if size > MOST_WAITING * (length := first_length(append.events)):
            yield append.key, size // length


def _foreign(appends: Sequence[Append], sizes: Sequence[int]) -> list[bytes]:
    """Return the keys that hold something else."""
    return [append.key for append, size in zip(appends, sizes, strict=True) if size == FOREIGN]


def _parts(placed: Iterable[Placed], most: int) -> Iterator[list[Placed]]:
    """Yield records in lists of at most so many."""
    held: list[Placed] = []
    size = 0
    for each in placed:
        if len(held) == most or size > most * RECORD_BYTES:
            yield held
            held, size = [], 0
        held.append(each)
        size += len(each.record)
    if held:
        yield held
