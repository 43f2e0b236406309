"""What is counted of a training set when it is saved, and what is kept of that."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView, Field
from featurestore.errors import AuthError, DamagedFileError, FeatureStoreError, TrainingSetError
from featurestore.ledger.saved_sets import SavedSet, blob_of, kept_blobs, sample_of
from featurestore.request.features import FeatureRequest, OnDemandRead, OutputColumn
from featurestore.statistics.columns import PERSONAL, Column, is_personal
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
    return SetProfile(columns_of(rows.request), len(rows.frame))


def columns_of(request: FeatureRequest) -> list[SetColumn]:
    """Return the features of a training set as they are counted."""
    return [_column(request, output) for output in request.outputs]


def _column(request: FeatureRequest, output: OutputColumn) -> SetColumn:
    field = output.field
    if output.read is not None:
        read = request.reads[output.read]
        view, key = read.view, read.registered.ledger_key
        made_of, shown = _made_of(view, field.name), view.statistics
        shows_all = not isinstance(shown, bool) and field.name in shown
        column = Column(output.name, field.type, is_hidden=_is_hidden(field, made_of), shows_all=shows_all)
        return SetColumn(column, key, field.name, bool(view.aggregations))
    assert output.on_demand is not None
    computed = request.on_demand[output.on_demand]
    column = Column(
        output.name, field.type, is_hidden=_is_hidden(field, [each for _, each in _inputs(request, computed)])
    )
    return SetColumn(column, f"{computed.view.name}.0", field.name, makes_bins=True)


def _inputs(request: FeatureRequest, computed: OnDemandRead) -> Iterator[tuple[str, Field]]:
    """Yield the fields that an on-demand view's features may be made of, with the name of their view or "request"."""
    for argument in computed.inputs:
        if argument.read is None:
            yield "request", argument.field
        else:
            view = request.reads[argument.read].view
            for field in dict.fromkeys((argument.field, *_made_of(view, argument.name))):
                yield view.name, field


def left_out(request: FeatureRequest) -> dict[str, str]:
    """Return the features of which no values show in statistics and in a sample, and why, with the way out."""
    hidden = [
        output for output, each in zip(request.outputs, columns_of(request), strict=True) if each.column.is_hidden
    ]
    return {output.name: _why_hidden(request, output) for output in hidden}


def _why_hidden(request: FeatureRequest, output: OutputColumn) -> str:
    name = f"{output.name!r} is left out"
    if is_personal(output.field):
        return f"{name}: it is tagged {PERSONAL}."
    if output.read is not None:
        view = request.reads[output.read].view
        inputs = [(view.name, field) for field in _made_of(view, output.field.name)]
        other = ""
    else:
        assert output.on_demand is not None
        inputs = [*_inputs(request, request.on_demand[output.on_demand])]
        among = {view for view, field in inputs if is_personal(field)}
        fewer = {view: [each.name for of, each in inputs if of == view and not is_personal(each)] for view in among}
        selections = [f"{view}[{json.dumps(names)}]" for view, names in sorted(fewer.items()) if names]
        other = f", or let it select fewer inputs, such as {' and '.join(selections)}" if selections else ""
    personal = " and ".join(sorted({f"{view}:{field.name}" for view, field in inputs if is_personal(field)}))
    return (
        f"{name}: it may be made of {personal}, tagged {PERSONAL}. If its values may show, tag it "
        f'`{PERSONAL}: "false"`{other}.'
    )


def inherits(request: FeatureRequest) -> frozenset[str]:
    """Return on-demand features that are hidden for an input and not for a tag of their own."""
    return frozenset(
        output.name for output in request.outputs if output.on_demand is not None and not is_personal(output.field)
    ) & frozenset(left_out(request))


def _made_of(view: FeatureView, feature: str) -> list[Field]:
    names = view.made_of(feature)
    return [field for field in view.stored if field.name in names]


def _is_hidden(field: Field, made_of: list[Field]) -> bool:
    """Tell whether a feature is personal: it says so, or does not say and is made of something that is."""
    return is_personal(field) or (PERSONAL not in field.tags and any(map(is_personal, made_of)))


def keep_profile(workspace: Workspace, rows: JoinedRows, saved: SavedSet, profile: SetProfile) -> None:
    """Keep the statistics of a saved set in the ledger, and sampled rows next to its frame; no save fails for that."""
    try:
        hashes = workspace.registry.definitions.chain(workspace.project).hashes
        revision, code_hash = hashes[saved.registry_revision - 1], _code_hash(rows.request)
        keep_statistics(workspace, saved.name, profile, rows.schema, revision=revision, code_hash=code_hash)
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


def _code_hash(request: FeatureRequest) -> str:
    """Return the hash of the code of a set's on-demand features: the one, or one of all."""
    hashes = sorted(read.view.code_hash for read in request.on_demand)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


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
