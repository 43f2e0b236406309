"""Bringing a view's online part to a version of its log: the events after its mark, or all records anew.

Events are applied in the order of ``fs_seq``, in slices that each move the mark with them: whoever finds the mark
elsewhere goes on from there, so any number of appliers do the work once. Without a mark that the log knows, nobody
applies: every record is made from the log again.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from featurestore.errors import OnlineStoreError
from featurestore.following.mark import APPLIED, PUBLISHING, Mark, mark_from
from featurestore.following.rows import SETTLED_US, EventEncoder
from featurestore.offline.interface import TableVersion
from featurestore.online.interface import Advanced, Append, Fold, Placed, WriteResult
from featurestore.online.records.windowed import MOST_WAITING, folded, head_of, is_windowed, last_sequence
from featurestore.online.records.windows_read import hash_of
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import crash_point, reached
from featurestore.windows.tiles import TileEvent
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

APPENDED = crash_point("follow.appended", "one more slice of events is online, and the mark says so")
FOLDED = crash_point("follow.folded", "newest events went into tiles")
PLACED = crash_point("follow.placed", "one more batch of records made from the log is online, the mark is where it was")

MOST_OF_ONE = 250
"""So many events of one entity a slice: its newest events are folded after each, and readers go through them."""
PLACED_AT_ONCE = 1_000
BATCH_ROWS = 50_000
MOST_TRIES = 20


@dataclass(frozen=True, slots=True)
class Followed:
    """What was done."""

    appended: int = 0
    """Events that were applied."""
    placed: int = 0
    """Records that were made from the log."""
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
    ) -> None:
        """``covered_us`` as in `Mark`, for the version."""
        self._workspace, self._registered, self._version, self._check = workspace, registered, version, check
        self._covered_us = covered_us
        self._encoder = EventEncoder(registered)
        self._online = workspace.online
        self._marker = self._encoder.namespace + APPLIED

    def bring(self, *, anew: bool = False, most_rows: int | None = None) -> Followed | None:
        """Bring it there; with ``anew`` make every record again. None where that is needed and takes more rows."""
        if not self._online.keeps_events:
            raise OnlineStoreError(
                f"View {self._registered.view.name!r} has windows, which this online store does not keep.",
                hint="Use LMDB or one Redis server, or declare the view with online=False.",
            )
        self._online.put(self._encoder.schema_key, self._encoder.layout.document)
        found = None if anew else self._mark()
        done = None if found is None else self._apply(found)
        if done is None and most_rows is not None and self._version.rows > most_rows:
            return None
        return self._publish() if done is None else done

    def _mark(self) -> Mark | None:
        """Return the mark if the log knows it, and has lost no event since; None otherwise, and for another layout."""
        mark = mark_from(self._online.get([self._marker])[0])
        if mark is None or mark.version > self._version.number or self._version.rows_kept_since > mark.version:
            return None
        if not self.fits(mark):
            return None
        commit = self._workspace.offline.find_commit(self._registered.table, mark.version)
        return mark if commit is not None and commit.identity == mark.commit else None

    def _target(self, before: Mark | None) -> Mark:
        """Return the mark of a version that is online."""
        covered_us = max(self._covered_us, 0 if before is None else before.covered_us)
        version, layout = self._version, self._encoder.layout.id.hex()
        return Mark(version.next_sequence - 1, version.number, version.identity, layout, covered_us)

    def _files(self, after: int) -> list[str]:
        """Return the files with events after a number; raises DamagedFileError."""
        files = [file for file in self._version.files if file.max_sequence > after]
        self._workspace.offline.verify(files)
        return [file.path for file in files]

    def _apply(self, mark: Mark) -> Followed | None:
        """Apply the events after a mark; None where records have another layout."""
        target, count = self._target(mark), 0
        batches: Iterable[pa.RecordBatch] = ()
        if mark.sequence < target.sequence:
            files = self._files(mark.sequence)
            batches = self._workspace.engine.log.events(
                self._registered.view, files, after_sequence=mark.sequence, batch_rows=BATCH_ROWS
            )
        rows = (row for batch in batches for row in self._encoder.events(batch))
        for slice_, is_last in self._slices(rows):
            self._check()
            appends = [self._encoder.append(key, event) for key, event in slice_]
            reaches = target if is_last else target._replace(sequence=slice_[-1][1].sequence)
            advanced, sizes = self._online.advance(
                self._marker, mark.to_bytes(), reaches.to_bytes(), appends, now_us=self._workspace.clock()
            )
            if advanced is Advanced.OTHER_LAYOUT:
                return None
            if advanced is Advanced.MOVED:
                return self._go_on(count)
            reached(APPENDED)
            count, mark = count + len(appends), reaches
            self._fold(appends, sizes)
        if mark != target:
            self._online.advance(self._marker, mark.to_bytes(), target.to_bytes(), [], now_us=self._workspace.clock())
        return Followed(count, 0, is_whole=False)

    def _slices(self, rows: Iterable[tuple[bytes, TileEvent]]) -> Iterator[tuple[list[tuple[bytes, TileEvent]], bool]]:
        """Yield events with their keys in slices that the store takes well, each with whether it is the last."""
        held: list[tuple[bytes, TileEvent]] = []
        counts: Counter[bytes] = Counter()
        for row in rows:
            if len(held) == self._online.events_at_once or counts[row[0]] == MOST_OF_ONE:
                yield held, False
                held, counts = [], Counter()
            held.append(row)
            counts[row[0]] += 1
        if held:
            yield held, True

    def _go_on(self, count: int) -> Followed | None:
        """Go on from where another applier has brought the mark."""
        mark = self._mark()
        if mark is None:
            return None
        done = self._apply(mark) if mark.sequence < self._version.next_sequence - 1 else Followed(is_whole=False)
        return None if done is None else Followed(count + done.appended, 0, is_whole=False)

    def _fold(self, appends: Sequence[Append], sizes: Sequence[int]) -> None:
        """Put the newest events of records that have many of them into their tiles."""
        many = dict.fromkeys(
            append.key for append, size in zip(appends, sizes, strict=True) if size > MOST_WAITING * len(append.event)
        )
        if many:
            fold_records(self._workspace, self._encoder, list(many))
            reached(FOLDED)

    def _publish(self) -> Followed:
        """Make every record from the log."""
        sequence, count = self._version.next_sequence - 1, 0
        token, place = secrets.token_hex(8).encode(), self._encoder.namespace + PUBLISHING
        self._online.put(place, token)
        seen: set[bytes] = set()
        now_us = self._workspace.clock()
        batches = self._workspace.engine.log.events(
            self._registered.view, self._files(-1), by_entity=True, batch_rows=BATCH_ROWS
        )
        records = self._encoder.placed(batches, sequence, now_us)
        while part := list(islice(records, PLACED_AT_ONCE)):
            count += self._place(part)
            seen.update(placed.key for placed in part)
        self._remove_others(seen, sequence)
        for _ in range(MOST_TRIES):
            (known, now_there) = self._online.get([self._marker, place])
            if now_there != token:
                break  # the store lost what was written, or another publish began: that one moves the mark
            mark = mark_from(known)
            if mark is not None and mark.sequence > sequence and self.knows(mark):
                return Followed(0, count)
            after = self._target(mark if mark is not None and self.knows(mark) else None).to_bytes()
            done, _ = self._online.advance(self._marker, known, after, [], now_us=self._workspace.clock())
            if done is Advanced.DONE:
                return Followed(0, count)
        raise OnlineStoreError(
            f"The online store lost records of view {self._registered.view.name!r} while they were published.",
            hint="Run it again; if that repeats, see whether the store is emptied or restored meanwhile.",
        )

    def fits(self, mark: Mark) -> bool:
        """Tell whether a mark is of records of this layout."""
        return mark.layout == self._encoder.layout.id.hex()

    def knows(self, mark: Mark) -> bool:
        """Tell whether the log has the commit that a mark is of."""
        commit = self._workspace.offline.find_commit(self._registered.table, mark.version)
        return commit is not None and commit.identity == mark.commit

    def _place(self, part: Sequence[Placed]) -> int:
        self._check()
        results = self._online.place(part, now_us=self._workspace.clock())
        reached(PLACED)
        return results.count(WriteResult.WRITTEN)

    def _remove_others(self, seen: set[bytes], sequence: int) -> None:
        """Remove the records of entities that have no events in the log."""
        for batch in self._online.scan(self._encoder.prefix):
            gone = [
                self._encoder.gone(key, sequence)
                for key, record in batch
                if key not in seen and is_windowed(record) and last_sequence(record) <= sequence
            ]
            if gone:
                self._online.place(gone, now_us=self._workspace.clock())


def fold_records(workspace: Workspace, encoder: EventEncoder, keys: Sequence[bytes]) -> int:
    """Put settled newest events of some records into their tiles; return how many records were changed.

    A record that changes meanwhile is left for the next time.
    """
    now_us = workspace.clock()
    folds = []
    for key, record in zip(keys, workspace.online.get(keys), strict=True):
        if record is None or not is_windowed(record) or head_of(record).schema_id != encoder.layout.id:
            continue
        new = folded(
            key, encoder.layout, record, now_us, hashed=hash_of, settled_us=SETTLED_US, least=MOST_WAITING // 2
        )
        if new is None:
            continue
        folds.append(Fold(key, record, new, encoder.expire_at_ms(head_of(new).newest_us)))
    return sum(workspace.online.fold(folds, now_us=now_us)) if folds else 0
