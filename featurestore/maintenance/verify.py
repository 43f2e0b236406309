"""Checking every stored file and record against its checksum, and the stores against each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from featurestore.consistency.belonging import compare_part, compare_table, part_mismatch
from featurestore.consistency.waiting_rows import settled, waiting_rows
from featurestore.errors import DamagedFileError, DamagedRecordError, EngineError, OfflineStoreError, TableVersionError
from featurestore.following.lag import lag_of
from featurestore.ledger.runs import runs
from featurestore.ledger.saved_sets import (
    LostPin,
    blob_of,
    kept_blobs,
    list_sets,
    lost_pins,
    not_to_be_built,
    pinned_by,
)
from featurestore.ledger.watermarks import read_watermark
from featurestore.maintenance.sampling import Sample, compare_sample
from featurestore.offline.interface import DataFile, TableId, TableReader
from featurestore.online.interface import OnlineReader
from featurestore.online.records.keys import KeyEncoder
from featurestore.online.records.whole import is_intact
from featurestore.quarantine.files import files_of, read, reader_of
from featurestore.quarantine.held import lost_held
from featurestore.registered.snapshot import RegisteredView
from featurestore.served.retaining import check_files
from featurestore.steps import step
from featurestore.workspace import Readers

MOST_ROWS = 1_000_000
"""Of about so many of the newest rows it is checked whether they are online."""
_Pinned = Mapping[TableId, Mapping[int, set[str]]]


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked for one view, and what is wrong with it.

    A view that was deleted is here as long as a saved training set reads it. Under ``the served log of ...`` and ``the
    log of predictions of ...``, with generation 0, are the files of these.
    """

    view: str
    generation: int
    files: int
    """Files of the newest version, and of those that saved training sets are pinned to."""
    records: int
    compared: int
    """Entities of the offline table whose online record was compared with it."""
    online_only: int
    """How many of them have a newer record online than the table: pushed online only, or lost offline."""
    problems: tuple[str, ...]
    waiting: int = 0
    """Entities whose newest row is committed and not online, which is no problem: the next run publishes it. Counts
    events of a view with windows."""


def verify(workspace: Readers) -> list[Verification]:
    """Check the hash of every offline file and the checksum of every online record of the project.

    The files are those of the newest versions, and what saved training sets are built from: the versions that they are
    pinned to, and their entity frames. Also checks whether registry and stores belong together, and whether the online
    values of 1,000 entities, chosen by a seeded hash, are those of the offline table. Changes nothing. Raises
    OfflineStoreError or OnlineStoreError when a store cannot be read at all; all other faults are in the answer, with
    the command that repairs them.
    """
    lost, pinned, views = lost_pins(workspace), pinned_by(workspace), workspace.known_snapshot().views
    checked = [_check_view(workspace, registered, lost, pinned) for registered in views.values()]
    kept = {found.view for found in lost} | {table.view for table in pinned}
    checked += [_check_sets(workspace, view, lost, pinned) for view in sorted(kept - views.keys())]
    return checked + [Verification(log.what, 0, log.files, 0, 0, 0, log.problems) for log in check_files(workspace)]


def _check_view(
    workspace: Readers, registered: RegisteredView, lost: Sequence[LostPin], pinned: _Pinned
) -> Verification:
    with step("verify", f"verify {registered.view.name}") as running:
        table = compare_table(workspace, registered)
        part = part_mismatch(workspace, registered) if registered.view.online else None
        parts = [found for found in (table, part) if found is not None and found.kind != "unreadable"]
        problems = [f"{found.message} {found.hint}" for found in parts]
        problems += _lost(registered.view.name, lost)
        problems += _damaged_frames(workspace, registered.view.name, lost)
        files, damaged_files = _check_files(workspace.offline, registered.view.name, registered.table, pinned)
        records, waiting, sample = 0, 0, Sample()
        problems += [*damaged_files, *_damaged_quarantine(workspace, registered.table)]
        if registered.view.online:
            records, damaged = _check_records(workspace.online, registered)
            problems += damaged
            waiting = _waiting(workspace, registered)
            if not problems:
                sample = _compared(workspace, registered)
                problems += _differences(registered, sample)
        running.note(files=files, records=records)
    return Verification(
        registered.view.name,
        registered.generation,
        files,
        records,
        sample.compared,
        sample.newer,
        tuple(problems),
        waiting,
    )


def _check_sets(workspace: Readers, view: str, lost: Sequence[LostPin], pinned: _Pinned) -> Verification:
    """Check what saved sets need of a view that was deleted."""
    with step("verify", f"verify {view}") as running:
        files, damaged = _check_files(workspace.offline, view, None, pinned)
        running.note(files=files, records=0)
    generations = [found.generation for found in lost if found.view == view]
    generations += [table.generation for table in pinned if table.view == view]
    problems = (*_lost(view, lost), *_damaged_frames(workspace, view, lost), *damaged)
    return Verification(view, max(generations), files, 0, 0, 0, problems)


def _lost(view: str, lost: Sequence[LostPin]) -> list[str]:
    return [
        f"Training set {found.name} cannot be built again: {found.what} is gone. Restore the offline store "
        f"from a backup that holds it, or run `fs training-sets --delete {found.name}`."
        for found in lost
        if found.view == view
    ]


def _damaged_frames(workspace: Readers, view: str, lost: Sequence[LostPin]) -> Iterable[str]:
    """Check the entity frames of the saved sets whose first read is of a view; those that are gone are ``lost``."""
    gone = {found.name for found in lost}
    for saved in list_sets(workspace.ledger, workspace.project):
        if saved.name in gone or not saved.reads or saved.reads[0].view != view:
            continue
        what = f"the entity frame of training set {saved.name!r}"
        try:
            kept_blobs(workspace).get(blob_of(saved.frame), what, sha256=saved.frame.sha256)
        except DamagedFileError as error:
            yield f"{error} Without one, run `fs training-sets --delete {saved.name}` and save a new set."


def _damaged_quarantine(workspace: Readers, table: TableId) -> Iterable[str]:
    """Check the files of the rows that are set aside."""
    blobs = reader_of(workspace.offline, table)
    for file in files_of(blobs):
        try:
            read(blobs, table, file)
        except DamagedFileError as error:
            yield str(error)
    with suppress(DamagedFileError):  # told above
        if told := lost_held(workspace.ledger, workspace.offline, table):
            yield told


def _compared(workspace: Readers, registered: RegisteredView) -> Sample:
    """Compare a sample with the newest rows, or with the published ones where the newest are not published yet."""
    offline, table = workspace.offline, registered.table
    newest = offline.current(table)
    if newest is None:
        return Sample()
    sample = compare_sample(workspace, registered, newest)
    if registered.view.aggregations:
        return sample  # its marks say how much of the newest version is online
    part = compare_part(workspace, registered)
    if not (sample.missing or sample.older) or part.version is None:
        return sample
    changes = offline.changes(table, part.version, newest.number)
    if not changes.added and not changes.removed:
        return sample
    try:
        published = compare_sample(workspace, registered, offline.version(table, part.version))
    except TableVersionError:  # its files have been cleaned away
        published = replace(sample, missing=0, older=0)
    return replace(published, newer=sample.newer)


def _waiting(workspace: Readers, registered: RegisteredView) -> int:
    """Return how many committed rows are not online and nobody is bringing there."""
    history = runs(workspace.ledger, workspace.project, registered.view.name, now_us=workspace.clock())
    if any(run.state == "running" for run in history):
        return 0
    with suppress(OfflineStoreError, EngineError):  # a problem by itself
        if registered.view.aggregations:
            return lag_of(workspace, registered).events
        watermark = read_watermark(workspace.ledger, registered)
        found = waiting_rows(workspace, registered, watermark, most_rows=MOST_ROWS)
        return len(settled(workspace.online, found))
    return 0


def _differences(registered: RegisteredView, sample: Sample) -> Iterable[str]:
    found = {"missing": sample.missing, "older": sample.older, "with other values": sample.different}
    told = ", ".join(f"{count:,} {what}" for what, count in found.items() if count)
    if told:
        view, named = registered.view.name, f" ({'; '.join(sample.named)})" if sample.named else ""
        yield (
            f"Online records of {view} differ from the offline table: {told}, of {sample.compared:,} entities "
            f"compared{named}. Publish them again with `fs materialize --republish --view {view}`."
        )


def _check_files(offline: TableReader, view: str, table: TableId | None, pinned: _Pinned) -> tuple[int, list[str]]:
    """Check the files of a view's ``table``, and those that saved sets are pinned to, each once."""
    files: dict[str, DataFile] = {}
    needed_by: dict[str, set[str]] = {}
    problems = []
    try:
        newest = None if table is None else offline.current(table)
    except OfflineStoreError as error:
        newest = None
        problems.append(str(error))
    current = () if newest is None else newest.files
    files.update((file.path, file) for file in current)
    versions = [(kept, number, names) for kept in pinned if kept.view == view for number, names in pinned[kept].items()]
    for kept, number, names in versions:
        try:
            version = offline.version(kept, number)
        except OfflineStoreError as error:
            problems += [str(not_to_be_built(name, error)) for name in sorted(names)]
            continue
        for file in version.files:
            files[file.path] = file
            needed_by.setdefault(file.path, set()).update(names)
    for path, file in files.items():
        try:
            offline.verify([file], again=True)
        except DamagedFileError as error:
            problems += [str(error)] * (file in current)
            problems += [str(not_to_be_built(name, error)) for name in sorted(needed_by.get(path, ()))]
    return len(files), problems


def _check_records(online: OnlineReader, registered: RegisteredView) -> tuple[int, list[str]]:
    prefix = KeyEncoder(registered.layout).prefix
    count, damaged = 0, 0
    try:
        for batch in online.scan(prefix):
            count += len(batch)
            damaged += sum(not is_intact(key, record) for key, record in batch)
    except DamagedRecordError as error:
        return count, [str(error)]
    view = registered.view.name
    problem = (
        f"{damaged:,} online records of {view} are damaged. "
        f"Rebuild them with `fs materialize --republish --authoritative --view {view}`; it names keys that hold "
        "something else: delete those first."
    )
    return count, [problem] * (damaged > 0)
