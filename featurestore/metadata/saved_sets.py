"""Saved training sets: what is needed to build one again, identical. The ledger's kind ``training_set``, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurestore_registry.interface import Ledger
from featurestore_registry.records import LedgerEntry

from featurestore.backends import local_path
from featurestore.errors import NotFoundError, did_you_mean
from featurestore.metadata.records import understood
from featurestore.metadata.workspace import Workspace
from featurestore.offline.interface import TableId

KIND = "training_set"
_DELETED = {"deleted": True}
"""What the ledger, which only grows, holds of a set that is deleted. Its name is free again."""


@dataclass(frozen=True, slots=True)
class SavedRead:
    """One read of a saved set: the view as it is named there, and the table version it is pinned to."""

    name: str
    view: str
    generation: int
    version: int | None
    """None where nothing was committed when the set was saved."""
    as_of: str


@dataclass(frozen=True, slots=True)
class SavedFrame:
    """The kept entity frame."""

    form: str
    """``pandas``, ``arrow`` or ``polars``: what it was given as."""
    file: str
    """Below the offline store's folder."""
    sha256: str
    timestamp_column: str


@dataclass(frozen=True, slots=True)
class SavedSet:
    """A saved training set."""

    name: str
    registry_revision: int
    references: tuple[Mapping[str, Any], ...]
    """What was asked for, as `FeatureRequest.references`."""
    full_feature_names: bool
    reads: tuple[SavedRead, ...]
    frame: SavedFrame
    fingerprint: str
    """Of the feature columns."""
    certificate: Mapping[str, Any]

    def to_document(self) -> dict[str, Any]:
        """Return the set as the ledger keeps it."""
        return asdict(self)

    @classmethod
    @understood("a saved training set")
    def from_document(cls, document: Mapping[str, Any]) -> SavedSet:
        """Return the set of a ledger document."""
        return cls(
            **{
                **document,
                "references": tuple(document["references"]),
                "reads": tuple(SavedRead(**read) for read in document["reads"]),
                "frame": SavedFrame(**document["frame"]),
            }
        )


def find_set(ledger: Ledger, project: str, name: str) -> SavedSet | None:
    """Return a saved set, or None when there is none of the name."""
    entry = ledger.latest(project, KIND, name)
    return None if entry is None or _is_deleted(entry) else SavedSet.from_document(entry.document)


def read_set(ledger: Ledger, project: str, name: str) -> SavedSet:
    """Return a saved set; raises NotFoundError with the closest name."""
    found = find_set(ledger, project, name)
    if found is None:
        raise _not_found(ledger, project, name)
    return found


def list_sets(ledger: Ledger, project: str) -> list[SavedSet]:
    """Return every saved set, sorted by name."""
    found = [SavedSet.from_document(entry.document) for entry in ledger.scan(project, KIND) if not _is_deleted(entry)]
    return sorted(found, key=lambda saved: saved.name)


def add_set(ledger: Ledger, project: str, saved: SavedSet) -> None:
    """Register a set under a free name, durably; raises LedgerConflictError when the name is taken."""
    entry = ledger.latest(project, KIND, saved.name)
    version = entry.version if entry is not None and _is_deleted(entry) else 0
    ledger.append(project, KIND, saved.name, saved.to_document(), if_version=version)


def remove_set(ledger: Ledger, project: str, name: str) -> SavedSet:
    """Delete a set, durably, and return it; raises NotFoundError with the closest name."""
    entry = ledger.latest(project, KIND, name)
    if entry is None or _is_deleted(entry):
        raise _not_found(ledger, project, name)
    ledger.append(project, KIND, name, _DELETED, if_version=entry.version)
    return SavedSet.from_document(entry.document)


def _is_deleted(entry: LedgerEntry) -> bool:
    return entry.document == _DELETED


def _not_found(ledger: Ledger, project: str, name: str) -> NotFoundError:
    hint = did_you_mean(name, [saved.name for saved in list_sets(ledger, project)])
    return NotFoundError(
        f"There is no saved training set {name!r}.", hint=hint or "Save one with .save(name).", name=name
    )


def frames_folder(workspace: Workspace) -> Path:
    """Return where the entity frames of saved sets lie."""
    return frame_path(workspace, workspace.project) / "_training_sets"


def frame_path(workspace: Workspace, file: str) -> Path:
    """Return the path of a `SavedFrame.file`."""
    return local_path(workspace.settings.offline_store.url, workspace.root) / file


def frame_file(workspace: Workspace, path: Path) -> str:
    """Return what `frame_path` takes."""
    return path.relative_to(frame_path(workspace, "")).as_posix()


def pins(ledger: Ledger, project: str) -> dict[TableId, frozenset[int]]:
    """Return by table the versions that saved sets need: what cleaning must keep."""
    pinned: dict[TableId, set[int]] = {}
    for saved in list_sets(ledger, project):
        for read in saved.reads:
            if read.version is not None:
                pinned.setdefault(TableId(project, read.view, read.generation), set()).add(read.version)
    return {table: frozenset(versions) for table, versions in pinned.items()}
