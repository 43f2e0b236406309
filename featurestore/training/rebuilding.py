"""Building saved training sets again from what they are pinned to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from featurestore_registry.documents import LABEL
from featurestore_registry.records import Revision

from featurestore.engine.interface import AsOf
from featurestore.errors import CodeMismatchError, TableVersionError
from featurestore.ledger.saved_sets import KeptSet, SavedSet, blob_of, kept_blobs, read_kept, read_set
from featurestore.offline.interface import OfflineReader, TableId, TableVersion
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import ViewRead, from_references
from featurestore.request.on_demand import OnDemandFunction
from featurestore.tables import Form
from featurestore.training.certificate import Certificate, facts_of
from featurestore.training.frames import check_frame
from featurestore.training.joins import JoinedLabel, JoinedRows, PinnedRead, pin
from featurestore.training.labels import label_from
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
    full_names, documents = saved.full_feature_names, [dict(found) for found in saved.references]
    request = from_references(
        snapshot, [each for each in documents if LABEL not in each], full_feature_names=full_names
    )
    labels = [label_from(snapshot, each, full_feature_names=full_names) for each in documents if LABEL in each]
    own = from_kept(read_frame(workspace, saved), cast(Form, saved.frame.form))
    column = saved.frame.timestamp_column
    frame = check_frame(own, request, column)
    pins = _pins(workspace, saved, beside, [*request.reads, *(label.read for label in labels)])
    try:
        functions = [OnDemandFunction(snapshot, read.view) for read in request.on_demand]
    except CodeMismatchError as error:
        raise CodeMismatchError(
            f"Training set {name!r} cannot be built again: {error.message}",
            hint="Go back to the code that it was saved with.",
            **error.details,
        ) from None
    joins, offline = workspace.engine.joins, workspace.offline
    own_pins, others = pins[: len(request.reads)], pins[len(request.reads) :]
    counted = Certificate.from_dict(saved.certificate).labels
    beside_rows = [
        JoinedLabel(
            label, JoinedRows(joins, offline, (), label.request, label.frame(own, column), (pinned,)), facts_of(told)
        )
        for label, pinned, told in zip(labels, others, counted, strict=True)
    ]
    rows = JoinedRows(joins, offline, functions, request, frame, own_pins, labels=tuple(beside_rows))
    return TrainingSet(workspace, rows, saved=saved)


def _pins(
    workspace: Workspace, saved: SavedSet, beside: KeptSet | None, reads: Sequence[ViewRead]
) -> tuple[PinnedRead, ...]:
    """Pin reads to the versions that a set was saved with; raises TableVersionError where one is gone or another."""
    pins = []
    for read, kept in zip(reads, saved.reads, strict=True):
        table = read.registered.table
        version = None if kept.version is None else _pinned(workspace.offline, saved.name, table, kept.version)
        known = None if beside is None else beside.commits.get(kept.name)
        if version is not None and known is not None and version.identity != known:
            raise TableVersionError(
                f"Version {kept.version} of table {table} is not the commit that training set {saved.name!r} was saved "
                "with: the offline store was restored, and written to since.",
                hint="Restore the table from a backup that holds it.",
                table=str(table),
                version=kept.version,
            )
        pins.append(pin(read, cast(AsOf, kept.as_of), version))
    return tuple(pins)


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
