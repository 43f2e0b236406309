"""Checking every stored file and record against its checksum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from featurestore.errors import DamagedFileError, DamagedRecordError, OfflineStoreError
from featurestore.metadata.snapshot import RegisteredView
from featurestore.metadata.workspace import Workspace
from featurestore.online.codec import is_intact
from featurestore.online.keys import KeyEncoder
from featurestore.steps import step


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked of one view, and what is wrong with it."""

    view: str
    generation: int
    files: int
    records: int
    problems: tuple[str, ...]


def verify(workspace: Workspace) -> list[Verification]:
    """Check the hash of every offline file and the checksum of every online record of the project. Changes nothing.

    Raises OfflineStoreError or OnlineStoreError when a store cannot be read at all; what is damaged is in the
    answer, with the command that repairs it.
    """
    checked = []
    for registered in workspace.snapshot().views.values():
        with step("verify", f"verify {registered.view.name}") as running:
            files, problems = _check_files(workspace, registered)
            records = 0
            if registered.view.online:
                records, damaged = _check_records(workspace, registered)
                problems += damaged
            running.note(files=files, records=records)
        checked.append(Verification(registered.view.name, registered.generation, files, records, tuple(problems)))
    return checked


def _check_files(workspace: Workspace, registered: RegisteredView) -> tuple[int, list[str]]:
    try:
        version = workspace.offline.current(registered.table)
    except OfflineStoreError as error:
        return 0, [str(error)]
    if version is None:
        return 0, []
    problems = []
    for file in version.files:
        try:
            workspace.offline.verify([file], again=True)
        except DamagedFileError as error:
            problems.append(str(error))
    return len(version.files), problems


def _check_records(workspace: Workspace, registered: RegisteredView) -> tuple[int, list[str]]:
    prefix = KeyEncoder(registered.layout).prefix
    count, damaged = 0, 0
    try:
        for batch in workspace.online.scan(prefix):
            count += len(batch)
            damaged += sum(not is_intact(key, record) for key, record in batch)
    except DamagedRecordError as error:
        return count, [str(error)]
    return count, list(_damage(registered.view.name, damaged))


def _damage(view: str, damaged: int) -> Iterable[str]:
    if damaged:
        yield (
            f"{damaged:,} online records of {view} are damaged. "
            f"Rebuild them with `fs materialize --view {view} --republish --authoritative`; it names keys that hold "
            "something else, which are to be deleted first."
        )
