"""What is counted of a training set when it is saved, and what is kept of that."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from featurestore.errors import AuthError, DamagedFileError, FeatureStoreError, TrainingSetError
from featurestore.ledger.saved_sets import SavedSet, blob_of, kept_blobs, sample_of
from featurestore.request.features import FeatureRequest, OutputColumn
from featurestore.request.personal import is_hidden
from featurestore.served.shape import code_hash
from featurestore.statistics.columns import Column
from featurestore.statistics.sets import SetColumn, SetProfile, keep_statistics, kept_sample, statistics_of_set
from featurestore.steps import crash_point, reached
from featurestore.training.frames import TIME, engine_column
from featurestore.training.joins import JoinedRows
from featurestore.workspace import Readers, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("featurestore")

COUNTED = crash_point("training_set.counted", "the ledger has the set's statistics, its sampled rows are not kept yet")
SAMPLED = crash_point("training_set.sampled", "the set's sampled rows are next to its frame")


def profile_of(rows: JoinedRows) -> SetProfile:
    """Return what counts a training set while its batches pass."""
    return SetProfile(columns_of(*rows.requests), len(rows.frame))


def columns_of(*requests: FeatureRequest) -> list[SetColumn]:
    """Return the features and labels of a training set as they are counted."""
    return [_column(request, output) for request in requests for output in request.outputs]


def _column(request: FeatureRequest, output: OutputColumn) -> SetColumn:
    field = output.field
    if output.read is not None:
        read = request.reads[output.read]
        view, key = read.view, read.registered.ledger_key
        shows_all = not isinstance(view.statistics, bool) and field.name in view.statistics
        column = Column(output.name, field.type, is_hidden=is_hidden(request, output), shows_all=shows_all)
        return SetColumn(column, key, field.name, bool(view.aggregations))
    assert output.on_demand is not None
    computed = request.on_demand[output.on_demand]
    column = Column(output.name, field.type, is_hidden=is_hidden(request, output))
    return SetColumn(column, f"{computed.view.name}.0", field.name, makes_bins=True)


def keep_profile(workspace: Workspace, rows: JoinedRows, saved: SavedSet, profile: SetProfile) -> None:
    """Keep the statistics of a saved set in the ledger, and sampled rows next to its frame; no save fails for that."""
    try:
        hashes = workspace.registry.definitions.chain(workspace.project).hashes
        revision, code = hashes[saved.registry_revision - 1], code_hash(rows.request)
        keep_statistics(workspace, saved.name, profile, rows.schema, revision=revision, code_hash=code)
        reached(COUNTED)
        keys = {
            name: (types[0], rows.frame.keys.column(engine_column(name, types[0])))
            for name, types in rows.request.key_types.items()
        }
        sample = kept_sample(profile, rows.schema, keys, rows.frame.keys.column(TIME))
        what = f"the sampled rows of training set {saved.name!r}"
        kept_blobs(workspace).put(sample_of(blob_of(saved.frame)), _to_file(sample), what)
        reached(SAMPLED)
    except Exception as error:
        is_strange = not isinstance(error, FeatureStoreError)
        logger.warning("training set %s has no statistics: %s", saved.name, error, exc_info=is_strange)


def lacks_profile(workspace: Readers, saved: SavedSet) -> bool:
    """Tell whether a set has no statistics or no sample: an earlier release saved it, or the save was cut off."""
    kept = {blob.name for blob in kept_blobs(workspace).list() if blob.is_whole}
    try:
        return sample_of(blob_of(saved.frame)) not in kept or statistics_of_set(workspace, saved.name) is None
    except AuthError:  # a registry's server of an earlier release keeps none
        return False


def _to_file(sample: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, sample.schema, options=options) as writer:
        writer.write_table(sample)
    return bytes(sink.getvalue())


def read_sample(workspace: Readers, saved: SavedSet) -> pa.Table:
    """Return the sampled rows that were kept with a set; raises TrainingSetError where there are none."""
    import pyarrow as pa

    what = f"the sampled rows of training set {saved.name!r}"
    try:
        content = kept_blobs(workspace).get(sample_of(blob_of(saved.frame)), what)
        with pa.ipc.open_file(pa.BufferReader(content)) as file:
            return file.read_all()
    except (DamagedFileError, pa.ArrowException) as error:
        raise TrainingSetError(
            f"Training set {saved.name!r} has no sampled rows: {error}.",
            hint="An earlier release saved it, or the save was cut off: save it again under its name.",
            name=saved.name,
        ) from None
