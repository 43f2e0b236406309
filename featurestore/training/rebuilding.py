"""Building saved training sets again from what they are pinned to."""

from __future__ import annotations

from typing import cast

from featurestore_registry.records import Revision

from featurestore.engine.interface import AsOf
from featurestore.errors import CodeMismatchError, TableVersionError
from featurestore.ledger.saved_sets import KeptSet, SavedSet, blob_of, kept_blobs, read_kept, read_set
from featurestore.offline.interface import OfflineReader, TableId, TableVersion
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import from_references
from featurestore.request.on_demand import OnDemandFunction
from featurestore.tables import Form
from featurestore.training.frames import check_frame
from featurestore.training.joins import JoinedRows, pin
from featurestore.training.saving import from_kept, read_frame
from featurestore.training.training_set import TrainingSet
from featurestore.workspace import Readers, Workspace


def get_training_set(workspace: Workspace, name: str) -> TrainingSet:
    """Build a saved set again from its pinned versions.

    Its rows are compared with the saved hash when they are first asked for (TrainingSetChangedError). Raises
    NotFoundError, CodeMismatchError naming the on-demand view whose code has changed, TableVersionError and
    DamagedFileError if a table version or file that it is pinned to is gone.
    """
    saved = read_set(workspace.ledger, workspace.project, name)
    beside = read_kept(kept_blobs(workspace), blob_of(saved.frame))
    snapshot = Snapshot.of(_revision(workspace, saved, beside)).with_code(workspace.code)
    request = from_references(
        snapshot, [dict(found) for found in saved.references], full_feature_names=saved.full_feature_names
    )
    own = from_kept(read_frame(workspace, saved), cast(Form, saved.frame.form))
    frame = check_frame(own, request, saved.frame.timestamp_column)
    pins = []
    for read, kept in zip(request.reads, saved.reads, strict=True):
        table = read.registered.table
        version = None if kept.version is None else _pinned(workspace.offline, name, table, kept.version)
        known = None if beside is None else beside.commits.get(kept.name)
        if version is not None and known is not None and version.identity != known:
            raise TableVersionError(
                f"Version {kept.version} of table {table} is not the commit that training set {name!r} was saved with: "
                "the offline store was restored, and written to since.",
                hint="Restore the table from a backup that holds it.",
                table=str(table),
                version=kept.version,
            )
        pins.append(pin(read, cast(AsOf, kept.as_of), version))
    try:
        functions = [OnDemandFunction(snapshot, read.view) for read in request.on_demand]
    except CodeMismatchError as error:
        raise CodeMismatchError(
            f"Training set {name!r} cannot be built again: {error.message}",
            hint="Go back to the code that it was saved with.",
            **error.details,
        ) from None
    rows = JoinedRows(workspace.engine.joins, workspace.offline, functions, request, frame, tuple(pins))
    return TrainingSet(workspace, rows, saved=saved)


def _pinned(offline: OfflineReader, name: str, table: TableId, number: int) -> TableVersion:
    try:
        return offline.version(table, number)
    except TableVersionError as error:
        raise TableVersionError(
            f"Training set {name!r} cannot be built again: {error.message}",
            hint="Its view was deleted, or the offline store restored: bring the table back from a backup, or delete "
            f"the set with `fs training-sets --delete {name}`.",
            **error.details,
        ) from None


def _revision(workspace: Readers, saved: SavedSet, beside: KeptSet | None) -> Revision:
    """Return the definitions that made a set; from next to its frame if the registry has another history."""
    chain = workspace.registry.definitions.chain(workspace.project)
    if beside is not None and beside.revision not in chain:
        return Revision(workspace.project, saved.registry_revision, beside.records, chain)
    return workspace.registry.definitions.read(workspace.project, saved.registry_revision)
