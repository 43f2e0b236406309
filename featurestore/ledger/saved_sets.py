"""Saved training sets: what is needed to build one again, identical. The ledger's kind ``training_set``, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, overload

from featurestore_registry.documents import DELETED, SavedFrame, SavedRead, SavedSetDocument
from featurestore_registry.documents import TRAINING_SET as KIND
from featurestore_registry.interface import Ledger, LedgerReader
from featurestore_registry.records import LedgerEntry, Record, Revision, canonical_json, known_fields, record_from

from featurestore.definitions import FeatureView, OnDemandFeatureView
from featurestore.errors import (
    NotFoundError,
    OfflineStoreError,
    RecordNotFoundError,
    RegistryFormatError,
    did_you_mean,
)
from featurestore.offline.interface import BlobReader, Blobs, TableId
from featurestore.registered.records import understood, with_dependencies
from featurestore.workspace import Readers, Workspace

FRAME_KIND = "training_set_frame"
"""The ledger's note about an entity frame, by its file, before it gets its name: it identifies leftovers."""
FRAME = ".arrow"
"""The ending of the names of frames' blobs."""
_BLOBS = "training_sets"
_DELETED = DELETED[0]
"""The ledger's document for a deleted set. The set's name is free again."""


@dataclass(frozen=True, slots=True)
class SavedSet(SavedSetDocument):
    """A saved training set."""

    def to_document(self) -> dict[str, Any]:
        """Return the set as the ledger keeps it."""
        return asdict(self)

    @classmethod
    @understood("a saved training set")
    def from_document(cls, document: Mapping[str, Any], *, is_shown: bool = False) -> SavedSet:
        """Return the set of a ledger document; if it only ``is_shown``, without a newer version's additions."""
        part = known_fields if is_shown else lambda _, whole: whole
        return cls(
            **{
                **part(cls, document),
                "references": tuple(document["references"]),
                "reads": tuple(SavedRead(**part(SavedRead, read)) for read in document["reads"]),
                "frame": SavedFrame(**part(SavedFrame, document["frame"])),
            }
        )


def find_set(ledger: LedgerReader, project: str, name: str) -> SavedSet | None:
    """Return a saved set, or None if there is none with that name."""
    entry = ledger.latest(project, KIND, name)
    return None if entry is None or _is_deleted(entry) else SavedSet.from_document(entry.document)


def read_set(ledger: LedgerReader, project: str, name: str) -> SavedSet:
    """Return a saved set; raises NotFoundError with the closest name."""
    return SavedSet.from_document(_entry(ledger, project, name).document)


def list_sets(ledger: LedgerReader, project: str, *, are_shown: bool = False) -> list[SavedSet]:
    """Return every saved set, sorted by name; if they ``are_shown``, as far as this version understands them."""
    entries = [entry for entry in ledger.scan(project, KIND) if not _is_deleted(entry)]
    found = [SavedSet.from_document(entry.document, is_shown=are_shown) for entry in entries]
    return sorted(found, key=lambda saved: saved.name)


def add_set(ledger: Ledger, project: str, saved: SavedSet) -> None:
    """Register a set under a free name, durably; raises LedgerConflictError when the name is taken."""
    entry = ledger.latest(project, KIND, saved.name)
    version = entry.version if entry is not None and _is_deleted(entry) else 0
    ledger.append(project, KIND, saved.name, saved.to_document(), if_version=version)


def remove_set(ledger: Ledger, project: str, name: str) -> SavedSet:
    """Delete a set, durably, and return it; raises NotFoundError with the closest name."""
    entry = _entry(ledger, project, name)
    removed = SavedSet.from_document(entry.document)
    ledger.append(project, KIND, name, _DELETED, if_version=entry.version)
    return removed


def _is_deleted(entry: LedgerEntry) -> bool:
    return entry.document == _DELETED


def _entry(ledger: LedgerReader, project: str, name: str) -> LedgerEntry:
    """Return the newest entry of a saved set; raises NotFoundError with the closest name."""
    entry = ledger.latest(project, KIND, name)
    if entry is None or _is_deleted(entry):
        hint = did_you_mean(name, [other.key for other in ledger.scan(project, KIND) if not _is_deleted(other)])
        raise NotFoundError(
            f"There is no saved training set {name!r}.", hint=hint or "Save one with .save(name).", name=name
        )
    return entry


@overload
def kept_blobs(workspace: Workspace) -> Blobs: ...
@overload
def kept_blobs(workspace: Readers) -> BlobReader: ...
def kept_blobs(workspace: Readers) -> BlobReader:
    """Return the place of saved sets' entity frames, and of the documents kept with them."""
    return workspace.offline.blobs(workspace.project, _BLOBS)


def frame_file(project: str, blob: str) -> str:
    """Return the ledger's name of a frame's blob: its path in an offline store that is a folder."""
    return f"{project}/_{_BLOBS}/{blob}"


def blob_of(frame: SavedFrame) -> str:
    """Return the blob that holds a frame."""
    return frame.file.rpartition("/")[2]


def document_of(frame: str) -> str:
    """Return the blob that holds a set's document, from the blob of its frame."""
    return f"{frame.removesuffix(FRAME)}.json"


def sample_of(frame: str) -> str:
    """Return the blob that holds a set's sampled rows, from the blob of its frame."""
    return f"{frame.removesuffix(FRAME)}.sample"


def note_frame(ledger: Ledger, project: str, file: str) -> None:
    """Note, durably, that an entity frame is about to get its name."""
    ledger.append(project, FRAME_KIND, file, {}, if_version=0)


def known_frames(ledger: LedgerReader, project: str) -> frozenset[str]:
    """Return every frame that the ledger remembers, of sets that are saved, deleted, or were never finished."""
    found = {entry.key for entry in ledger.scan(project, FRAME_KIND)}
    for newest in ledger.scan(project, KIND):
        for entry in ledger.scan(project, KIND, key=newest.key):
            if not _is_deleted(entry):
                found.add(SavedSet.from_document(entry.document).frame.file)
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class KeptSet:
    """The document of a saved set next to its frame: the facts about it without the ledger."""

    saved: SavedSet
    commits: Mapping[str, str]
    """For each read, by name, the identity of the commit of its version."""
    revision: str
    """The hash of the revision that made it."""
    records: tuple[Record, ...]
    """The definitions that it reads, as of that revision."""


def read_kept(blobs: BlobReader, frame: str) -> KeptSet | None:
    """Return the document kept with a frame; None if there is none, or if it cannot be read."""
    try:
        document = json.loads(blobs.get(document_of(frame), "the document of a training set"))
        return KeptSet(
            SavedSet.from_document(document["set"]),
            dict(document["commits"]),
            str(document["revision"]),
            tuple(map(record_from, document["records"])),
        )
    except (OfflineStoreError, ValueError, KeyError, TypeError, RegistryFormatError):
        return None


def keep_document(workspace: Workspace, saved: SavedSet) -> None:
    """Write a set's facts next to its frame, for a registry that is restored to a time before the set was saved."""
    commits = {}
    for read in saved.reads:
        table = TableId(workspace.project, read.view, read.generation)
        commit = None if read.version is None else workspace.offline.find_commit(table, read.version)
        if commit is not None:
            commits[read.name] = commit.identity
    revision = workspace.registry.definitions.read(workspace.project, saved.registry_revision)
    document = {
        "format": 1,
        "set": saved.to_document(),
        "commits": commits,
        "revision": revision.chain.head,
        "records": [asdict(record) for record in _read_by(saved, revision)],
    }
    what = f"the document of training set {saved.name!r}"
    kept_blobs(workspace).put(document_of(blob_of(saved.frame)), canonical_json(document).encode(), what)


def _read_by(saved: SavedSet, revision: Revision) -> list[Record]:
    """Return the records of the definitions that a set reads, and of all that these depend on."""
    wanted = [f"{FeatureView.kind}:{read.view}" for read in saved.reads]
    wanted += [f"{OnDemandFeatureView.kind}:{name}" for name in saved.certificate["on_demand"]]
    return with_dependencies(wanted, {record.key: record for record in revision.records})


def keep_missing_documents(workspace: Workspace) -> None:
    """Write the documents of sets that have none: an earlier release saved them, or a save was cut off."""
    kept = _kept_names(workspace)
    for saved in list_sets(workspace.ledger, workspace.project):
        frame = blob_of(saved.frame)
        if frame in kept and document_of(frame) not in kept:
            with suppress(RecordNotFoundError):  # the set was registered again, but its revision was not
                keep_document(workspace, saved)


def forgotten_sets(workspace: Readers) -> list[KeptSet]:
    """Return the sets in the offline store that the ledger does not know, because it was restored or is new."""
    known = known_frames(workspace.ledger, workspace.project)
    blobs = kept_blobs(workspace)
    frames = [blob.name for blob in blobs.list() if blob.name.endswith(FRAME)]
    found = [read_kept(blobs, frame) for frame in frames if frame_file(workspace.project, frame) not in known]
    return [kept for kept in found if kept is not None]


def _kept_names(workspace: Readers) -> set[str]:
    return {blob.name for blob in kept_blobs(workspace).list()}


@dataclass(frozen=True, slots=True)
class LostPin:
    """A saved set that cannot be built again, because the offline store lacks its frame or a table version."""

    name: str
    view: str
    generation: int
    what: str
    """The missing piece."""


def lost_pins(workspace: Readers, *, are_shown: bool = False) -> list[LostPin]:
    """Return the saved sets whose frames or table versions are gone, with their view or with an older offline store."""
    found, kept = list[LostPin](), _kept_names(workspace)
    for saved in list_sets(workspace.ledger, workspace.project, are_shown=are_shown):
        if saved.reads and blob_of(saved.frame) not in kept:
            first = saved.reads[0]
            found.append(LostPin(saved.name, first.view, first.generation, "its entity frame"))
            continue
        for read in saved.reads:
            if read.version is not None and not _is_held(workspace, saved, read):
                table = TableId(workspace.project, read.view, read.generation)
                found.append(LostPin(saved.name, read.view, read.generation, f"version {read.version} of {table}"))
    return found


def _is_held(workspace: Readers, saved: SavedSet, read: SavedRead) -> bool:
    """Tell whether the offline store holds the commit that a read is pinned to, by its identity if that is known."""
    assert read.version is not None
    commit = workspace.offline.find_commit(TableId(workspace.project, read.view, read.generation), read.version)
    beside = read_kept(kept_blobs(workspace), blob_of(saved.frame))
    known = None if beside is None else beside.commits.get(read.name)
    return commit is not None and known in (None, commit.identity)


def pinned_by(workspace: Readers) -> dict[TableId, dict[int, set[str]]]:
    """Return the names of the sets that need a version, by table and version, also of sets that the ledger forgot.

    Without versions that the offline store does not hold: see `lost_pins`.
    """
    project = workspace.project
    pinned: dict[TableId, dict[int, set[str]]] = {}
    forgotten = [kept.saved for kept in forgotten_sets(workspace)]
    for saved in (*list_sets(workspace.ledger, project), *forgotten):
        for read in saved.reads:
            table = TableId(project, read.view, read.generation)
            if read.version is not None and _is_held(workspace, saved, read):
                pinned.setdefault(table, {}).setdefault(read.version, set()).add(saved.name)
    return pinned


def pins(workspace: Readers) -> dict[TableId, frozenset[int]]:
    """Return the versions that `pinned_by` finds, by table: cleaning keeps them."""
    return {table: frozenset(versions) for table, versions in pinned_by(workspace).items()}


def not_to_be_built(name: str, error: OfflineStoreError) -> OfflineStoreError:
    """Return the error for a set with a file that is damaged or gone: its own hint, a rebuild, would not help."""
    return type(error)(
        f"Training set {name!r} cannot be built again: {error.message}",
        hint="Restore the file from a backup. A rebuild does not bring it back, because the set is pinned to this "
        f"version of the table. Without a backup, run `fs training-sets --delete {name}` and save a new set.",
        **error.details,
    )
