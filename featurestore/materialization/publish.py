"""Publishing: the newest committed row of each entity, as a record in the online store.

The store's compare-and-set handles every order of arrival, so publishing again is always safe: a publish that was cut
off is simply repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from featurestore.consistency.belonging import begin_part
from featurestore.engine.interface import GONE_CREATED, GONE_EVENT
from featurestore.errors import DamagedFileError
from featurestore.following.follow import Follower
from featurestore.ledger.runs import SHOWN_KEYS, Published
from featurestore.offline.interface import DataFile, TableChanges, TableReader, TableVersion
from featurestore.online.interface import Repair, Write, WriteResult, Writes
from featurestore.online.records.arrow import time_columns
from featurestore.online.records.codec import is_record, record_version, version_of
from featurestore.online.records.encoder import RecordEncoder
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import RunningStep, crash_point, reached, step
from featurestore.types.columns import EVENT
from featurestore.types.times import MAX_INSTANT
from featurestore.workspace import Workspace

SCHEMA_WRITTEN = crash_point("publish.schema", "the schema of the records is online, no record yet")
BATCH_WRITTEN = crash_point("publish.batch", "another batch of records is online")
REPAIRED = crash_point("publish.repaired", "another batch of records that the log does not hold is repaired")

BATCH_ROWS = 5_000
"""How many rows are read, encoded and repaired at once."""
MOST_WRITES, MOST_BYTES = 80_000, 64 << 20
"""Records per call of the store: few at first, so that sending starts early and overlaps with encoding, then more,
because a store that keeps its keys in order is faster with many of them at once."""

Batches = Iterator[Writes]


@dataclass(frozen=True, slots=True)
class Publication:
    """What one publish did."""

    counts: Published
    version: TableVersion
    """The version that was read."""
    is_complete: bool
    """False when rows dated after now were held back: the version is not fully published yet."""


def publish(
    workspace: Workspace,
    registered: RegisteredView,
    *,
    after: int | None,
    everything: bool = False,
    authoritative: bool = False,
    check: Callable[[], None],
) -> Publication:
    """Bring the table's rows online: the changes after version ``after``; all rows with None or ``everything``.

    The entity's next best row replaces the record of a row that left the table since then, or the record is deleted.
    With ``authoritative`` the same happens to every record that is newer than its entity's rows in the table, from any
    origin. ``check`` is called before each batch and may raise. Raises OnlineStoreUnavailableError and
    OnlineStoreFullError; records written until then stay, and are right. The table must exist.
    """
    publisher = _Publisher(workspace, registered, check)
    workspace.engine.prepare()
    with step("publish", f"publish {registered.view.name}", unit="entities") as running:
        # Read the online records before the log: a record that comes later belongs to a later version.
        online = publisher.records_online() if authoritative else None
        version = workspace.offline.current(registered.table)
        assert version is not None
        changes = workspace.offline.changes(registered.table, after, version.number)
        everything = everything or after is None
        if not everything and online is None and not changes.added and not changes.removed:
            return Publication(publisher.counts, version, is_complete=True)  # files were merged, no row is new
        if online is None and not _are_readable(workspace.offline, changes.removed):
            online = publisher.records_online()
        # The last of several rows with equal times counts, and a rewritten file may hold the earlier ones.
        everything = everything or online is not None or bool(changes.removed)
        workspace.offline.verify(version.files if everything else _deciding(version, changes.added))
        publisher.put_schema()
        repairs: list[Repair] = []
        newest = publisher.newest(version, None if everything else changes)
        publisher.send(newest if online is None else _watched(newest, online, repairs), running)
        if online is not None:
            publisher.repair([*repairs, *(Repair(key, version, replacement=None) for key, version in online.items())])
        elif changes.removed:
            for batch in publisher.replacements(version, changes):
                publisher.repair(batch)
        running.note(written=publisher.counts.written)
    held_back = any(max(file.max_event_us, file.max_created_us or 0) > publisher.now_us for file in changes.added)
    return Publication(publisher.counts, version, is_complete=not held_back)


def follow(
    workspace: Workspace, registered: RegisteredView, *, anew: bool, check: Callable[[], None], covered_us: int
) -> tuple[Publication, bool]:
    """Bring the online part of a view with aggregations to the table's newest version; with ``anew`` all of it.

    Also tells whether all records were made again. ``covered_us`` is until when the view's source was read. Raises as
    `publish`; what was written until then stays, and is right.
    """
    workspace.engine.prepare()
    with step("publish", f"publish {registered.view.name}", unit="entities") as running:
        version = workspace.offline.current(registered.table)
        assert version is not None
        follower = Follower(workspace, registered, version, check, covered_us=covered_us)
        follower.begin()
        done = follower.bring(anew=anew)
        assert done is not None
        written = done.placed if done.is_whole else done.appended
        running.note(written=written)
    foreign = tuple(key.decode() for key in done.foreign[:SHOWN_KEYS])
    counts = Published(
        written=written,
        repaired=done.replaced,
        deleted=done.removed,
        wrong_type=len(done.foreign),
        wrong_type_keys=foreign,
    )
    return Publication(counts, version, is_complete=True), done.is_whole


def _deciding(version: TableVersion, added: Sequence[DataFile]) -> list[DataFile]:
    """Return the files that may hold a row newer than the added ones: only these can have rows to publish."""
    since_us = min((file.min_event_us for file in added), default=MAX_INSTANT)
    return [file for file in version.files if file.max_event_us >= since_us]


def _are_readable(offline: TableReader, removed: Sequence[DataFile]) -> bool:
    """Tell whether files that left the table still exist: cleaning keeps them only for a while."""
    try:
        offline.verify(removed)
    except DamagedFileError:
        return False
    return True


def _watched(batches: Batches, online: dict[bytes, bytes], repairs: list[Repair]) -> Batches:
    """Pass batches on, and note which records in ``online`` are newer than the row that has to replace them.

    The records that are left in ``online`` at the end have no row at all.
    """
    for writes in batches:
        for write in writes:
            version = online.pop(write.key, None)
            if version is not None and version > record_version(write.record):
                repairs.append(Repair(write.key, version, replacement=write))
        yield writes


def _grouped(batches: Batches) -> Batches:
    """Join small batches into larger and larger ones."""
    group = Writes([], [], [])
    wanted = size = 0
    for writes in batches:
        group.extend(writes)
        size += sum(map(len, writes.records))
        if len(group) > wanted or size > MOST_BYTES:
            yield group
            wanted = min(2 * len(group), MOST_WRITES)
            group, size = Writes([], [], []), 0
    if group:
        yield group


class _Publisher:
    """One publish under way: it reads, encodes, sends and counts."""

    def __init__(self, workspace: Workspace, registered: RegisteredView, check: Callable[[], None]) -> None:
        self.engine, self.online, self._workspace = workspace.engine, workspace.online, workspace
        self.registered, self.view = registered, registered.view
        self.encoder = RecordEncoder(registered.layout)
        self.now_us = workspace.clock()
        self.counts = Published()
        self._check = check

    def put_schema(self) -> None:
        """Write the records' owner, and the schema that readers need, before the first record."""
        begin_part(self._workspace, self.registered)
        self.online.put(self.encoder.schema_key, self.encoder.schema_json)
        reached(SCHEMA_WRITTEN)

    def newest(self, version: TableVersion, changes: TableChanges | None) -> Batches:
        """Yield each entity's newest row as a write; with ``changes`` only for entities that have new rows."""
        batches = self.engine.log.latest(
            self.view,
            [file.path for file in (version.files if changes is None else changes.added)],
            first_sequence=0 if changes is None else changes.first_sequence,
            until_us=self.now_us,
            batch_rows=BATCH_ROWS,
        )
        return (self.encoder.encode_table(batch) for batch in batches)

    def replacements(self, version: TableVersion, changes: TableChanges) -> Iterator[Sequence[Repair]]:
        """Yield repairs of the records that removed rows may have left behind."""
        batches = self.engine.log.replacements(
            self.view,
            [file.path for file in version.files],
            removed=[file.path for file in changes.removed],
            added=[file.path for file in changes.added],
            until_us=self.now_us,
            batch_rows=BATCH_ROWS,
        )
        names = list(self.view.join_keys)
        for batch in batches:
            keys = self.encoder.keys.encode_columns({name: batch.column(name) for name in names})
            gone = time_columns(batch.column(GONE_EVENT), batch.column(GONE_CREATED))
            has_row = batch.column(EVENT).is_valid()
            writes = {write.key: write for write in self.encoder.encode_table(batch.filter(has_row))}
            versions = map(version_of, gone.event_us.tolist(), gone.created_us.tolist())
            yield [Repair(key, version, writes.get(key)) for key, version in zip(keys, versions, strict=True)]

    def records_online(self) -> dict[bytes, bytes]:
        """Return the version of every record of the view that is online."""
        batches = self.online.scan(self.encoder.keys.prefix)
        return {key: record_version(value) for pairs in batches for key, value in pairs if is_record(value)}

    def send(self, batches: Batches, running: RunningStep) -> None:
        """Write batches; one is under way while the next is encoded."""
        with ThreadPoolExecutor(1, thread_name_prefix="publish") as sender:
            under_way: tuple[Future[list[WriteResult]], Sequence[Write]] | None = None
            for writes in _grouped(batches):
                if under_way is not None:
                    self._count(*under_way, running)
                self._check()
                under_way = sender.submit(self.online.write, writes, now_us=self.now_us), writes
            if under_way is not None:
                self._count(*under_way, running)

    def _count(self, sent: Future[list[WriteResult]], writes: Sequence[Write], running: RunningStep) -> None:
        results = sent.result()
        reached(BATCH_WRITTEN)
        running.advance(len(results))
        written, stale, expired, wrong_type = map(results.count, WriteResult)
        keys: tuple[str, ...] = ()
        if wrong_type:
            found = zip(writes, results, strict=True)
            keys = tuple(write.key.decode() for write, result in found if result is WriteResult.WRONG_TYPE)
        self.counts += Published(written, stale, expired, wrong_type, wrong_type_keys=keys[:SHOWN_KEYS])

    def repair(self, repairs: Sequence[Repair]) -> None:
        """Replace or delete records that the log does not hold."""
        for start in range(0, len(repairs), BATCH_ROWS):
            self._check()
            batch = repairs[start : start + BATCH_ROWS]
            done = self.online.repair(batch, now_us=self.now_us)
            reached(REPAIRED)
            replaced = [repair.replacement is not None for repair, was in zip(batch, done, strict=True) if was]
            self.counts += Published(repaired=replaced.count(True), deleted=replaced.count(False))
