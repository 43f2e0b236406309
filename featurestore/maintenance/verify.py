"""Checking every stored file and record against its checksum, and the stores against each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from featurestore.consistency.belonging import compare_part, compare_table, part_mismatch
from featurestore.errors import DamagedFileError, DamagedRecordError, OfflineStoreError, TableVersionError
from featurestore.ledger.saved_sets import lost_pins
from featurestore.maintenance.sampling import Sample, compare_sample
from featurestore.offline.interface import TableReader
from featurestore.online.interface import OnlineReader
from featurestore.online.records.codec import is_intact
from featurestore.online.records.keys import KeyEncoder
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import step
from featurestore.workspace import Readers


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked for one view, and what is wrong with it."""

    view: str
    generation: int
    files: int
    records: int
    compared: int
    """Entities whose online record was compared with the offline table."""
    online_only: int
    """How many of them have a newer record online than the table: pushed online only, or lost offline."""
    problems: tuple[str, ...]


def verify(workspace: Readers) -> list[Verification]:
    """Check the hash of every offline file and the checksum of every online record of the project.

    Also checks whether registry and stores belong together, and whether the online values of 1,000 entities, chosen by
    a seeded hash, are those of the offline table. Changes nothing. Raises OfflineStoreError or OnlineStoreError when a
    store cannot be read at all; all other faults are in the answer, with the command that repairs them.
    """
    checked = []
    lost = lost_pins(workspace)
    for registered in workspace.known_snapshot().views.values():
        with step("verify", f"verify {registered.view.name}") as running:
            table = compare_table(workspace, registered)
            part = part_mismatch(workspace, registered) if registered.view.online else None
            parts = [found for found in (table, part) if found is not None and found.kind != "unreadable"]
            problems = [f"{found.message} {found.hint}" for found in parts]
            problems += [
                f"Training set {found.name} cannot be built again: {found.what} is gone. Restore the offline store "
                f"from a backup that holds it, or run `fs training-sets --delete {found.name}`."
                for found in lost
                if found.view == registered.view.name
            ]
            files, damaged_files = _check_files(workspace.offline, registered)
            records, sample = 0, Sample()
            problems += damaged_files
            if registered.view.online:
                records, damaged = _check_records(workspace.online, registered)
                problems += damaged
                if not problems:
                    sample = _compared(workspace, registered)
                    problems += _differences(registered, sample)
            running.note(files=files, records=records)
        checked.append(
            Verification(
                registered.view.name,
                registered.generation,
                files,
                records,
                sample.compared,
                sample.newer,
                tuple(problems),
            )
        )
    return checked


def _compared(workspace: Readers, registered: RegisteredView) -> Sample:
    """Compare a sample with the newest rows, or with the published ones where the newest are not published yet."""
    offline, table = workspace.offline, registered.table
    newest = offline.current(table)
    if newest is None:
        return Sample()
    sample = compare_sample(workspace, registered, newest)
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


def _differences(registered: RegisteredView, sample: Sample) -> Iterable[str]:
    found = {"missing": sample.missing, "older": sample.older, "with other values": sample.different}
    told = ", ".join(f"{count:,} {what}" for what, count in found.items() if count)
    if told:
        view = registered.view.name
        yield (
            f"Online records of {view} differ from the offline table: {told}, of {sample.compared:,} entities "
            f"compared. Publish them again with `fs materialize --view {view} --republish`."
        )


def _check_files(offline: TableReader, registered: RegisteredView) -> tuple[int, list[str]]:
    try:
        version = offline.current(registered.table)
    except OfflineStoreError as error:
        return 0, [str(error)]
    if version is None:
        return 0, []
    problems = []
    for file in version.files:
        try:
            offline.verify([file], again=True)
        except DamagedFileError as error:
            problems.append(str(error))
    return len(version.files), problems


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
        f"Rebuild them with `fs materialize --view {view} --republish --authoritative`; it names keys that hold "
        "something else: delete those first."
    )
    return count, [problem] * (damaged > 0)
