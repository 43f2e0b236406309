"""Saving training sets, and deleting saved ones."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from featurestore_registry.documents import SavedFrame, SavedRead

from featurestore.definitions.base import check_object_name
from featurestore.errors import (
    InputError,
    LedgerConflictError,
    TrainingSetError,
)
from featurestore.ledger.saved_sets import (
    FRAME,
    SavedSet,
    add_set,
    blob_of,
    document_of,
    find_set,
    frame_file,
    keep_document,
    kept_blobs,
    note_frame,
    read_set,
    remove_set,
    sample_of,
)
from featurestore.statistics.sets import SetProfile, forget_statistics
from featurestore.steps import crash_point, reached
from featurestore.tables import Form
from featurestore.training.certificate import Certificate
from featurestore.training.frames import OwnColumns
from featurestore.training.joins import JoinedRows, PinnedRead
from featurestore.training.profiling import keep_profile, lacks_profile
from featurestore.workspace import Readers, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

FRAME_KEPT = crash_point("training_set.frame_kept", "the entity frame is durable, no set names it yet")
SAVED = crash_point("training_set.saved", "the set is in the ledger")
DOCUMENT_KEPT = crash_point("training_set.document_kept", "the set's document is next to its frame")

DELETED = crash_point("training_set.deleted", "no set names the entity frame any more, but it still exists")


def save(
    workspace: Workspace, rows: JoinedRows, name: str, content: Callable[[], tuple[str, Certificate, SetProfile]]
) -> None:
    """Register a set under a name; see `TrainingSet.save`.

    ``content`` gives its fingerprint and certificate, and what was counted of it.
    """
    try:
        check_object_name(name)
    except ValueError as error:
        raise InputError(f"{name!r} is not a name for a training set: {error}.", name=name) from None
    if rows.direct:
        raise TrainingSetError(
            "A direct training set cannot be saved: nothing keeps the rows that it was made from.",
            hint="Run `fs materialize` and make it again without direct=True.",
        )
    fingerprint, certificate, profile = content()
    table = to_kept(rows.frame.own)
    existing = find_set(workspace.ledger, workspace.project, name)
    if existing is None:
        saved = _describe(rows, name, fingerprint, certificate, _keep(workspace, name, rows, table))
        reached(FRAME_KEPT)
        try:
            add_set(workspace.ledger, workspace.project, saved)
        except LedgerConflictError:
            existing = read_set(workspace.ledger, workspace.project, name)
        else:
            reached(SAVED)
            keep_document(workspace, saved)
            reached(DOCUMENT_KEPT)
            keep_profile(workspace, rows, saved, profile)
            return
    wanted = _describe(rows, name, fingerprint, certificate, existing.frame)
    kept, given = (OwnColumns("arrow", found) for found in (read_frame(workspace, existing), table))
    same = _content(wanted) == _content(existing) and kept.names == given.names and not _first_difference(given, kept)
    if not same or rows.frame.own.form != existing.frame.form:
        raise TrainingSetError(
            f"There is another training set called {name!r}.", hint="Save this one under a name of its own.", name=name
        )
    if lacks_profile(workspace, existing):
        keep_profile(workspace, rows, existing, profile)


def delete_training_set(workspace: Workspace, name: str) -> None:
    """Delete a saved set and its entity frame; the next cleaning removes what only it pinned.

    Raises NotFoundError.
    """
    saved = remove_set(workspace.ledger, workspace.project, name)
    reached(DELETED)
    forget_statistics(workspace, name)
    blobs, frame = kept_blobs(workspace), blob_of(saved.frame)
    for blob in (sample_of(frame), document_of(frame), frame):
        blobs.delete(blob, _frame_of(name))


def _frame_of(name: str) -> str:
    return f"the entity frame of training set {name!r}"


def _describe(rows: JoinedRows, name: str, fingerprint: str, certificate: Certificate, frame: SavedFrame) -> SavedSet:
    reads = tuple(
        SavedRead(
            name=name,
            view=pinned.read.view.name,
            generation=pinned.read.registered.generation,
            version=None if pinned.version is None else pinned.version.number,
            as_of=pinned.as_of,
        )
        for name, pinned in named_pins(rows)
    )
    return SavedSet(
        name=name,
        registry_revision=rows.request.revision,
        references=(*rows.request.references, *(label.label.document() for label in rows.labels)),
        full_feature_names=rows.request.full_feature_names,
        reads=reads,
        frame=SavedFrame(frame.form, frame.file, frame.sha256, rows.frame.timestamp_column),
        fingerprint=fingerprint,
        certificate=certificate.to_dict(),
    )


def named_pins(rows: JoinedRows) -> Iterator[tuple[str, PinnedRead]]:
    """Yield the reads under names that differ: those of the features, then a label's, whose name no view can have."""
    yield from ((pinned.read.name, pinned) for pinned in rows.pins)
    for place, label in enumerate(rows.labels):
        yield from ((f"label {place} {pinned.read.name}", pinned) for pinned in label.rows.pins)


def _content(saved: SavedSet) -> dict[str, Any]:
    """Return what makes two sets equal: everything but the certificate, which depends on when it was made."""
    document = saved.to_document()
    del document["certificate"], document["registry_revision"]
    return document


def _keep(workspace: Workspace, name: str, rows: JoinedRows, table: pa.Table) -> SavedFrame:
    """Write the entity frame next to the offline tables, durably: in Arrow's file format, which changes no type."""
    content = _to_file(table).to_pybytes()
    # A unique file name: it can be removed with its set while another set of that name is saved.
    file = frame_file(workspace.project, f"{name}-{secrets.token_hex(8)}{FRAME}")
    sha256 = hashlib.sha256(content).hexdigest()
    frame = SavedFrame(rows.frame.own.form, file, sha256, rows.frame.timestamp_column)
    note_frame(workspace.ledger, workspace.project, file)
    kept_blobs(workspace).put(blob_of(frame), content, _frame_of(name))
    return frame


def read_frame(workspace: Readers, saved: SavedSet) -> pa.Table:
    """Return the kept entity frame of a saved set; raises DamagedFileError when it has changed."""
    frame = saved.frame
    return _from_file(kept_blobs(workspace).get(blob_of(frame), _frame_of(saved.name), sha256=frame.sha256))


def to_kept(own: OwnColumns) -> pa.Table:
    """Return an entity frame as the Arrow table to keep.

    Raises TrainingSetError naming a column that would come back changed.
    """
    import pyarrow as pa

    if own.form != "pandas":
        table = own.to_arrow()
    else:
        try:
            table = pa.Table.from_pandas(own.table)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise TrainingSetError(
                f"The entity frame cannot be kept: {str(error).splitlines()[0]}.",
                hint="Save a set whose frame has columns of one type each.",
            ) from None
    back = _from_file(_to_file(table))
    changed = _first_difference(own, from_kept(back, own.form))
    if changed is not None:
        raise TrainingSetError(
            f"The entity frame cannot be kept: {changed} would come back changed.",
            hint="Leave it out of the frame, or give it a type that Arrow has.",
        )
    return back


def from_kept(table: pa.Table, form: Form) -> OwnColumns:
    """Return the kept entity frame in its original form."""
    if form == "pandas":
        return OwnColumns("pandas", table.to_pandas())
    if form == "polars":
        import polars as pl

        return OwnColumns("polars", pl.from_arrow(table))
    return OwnColumns("arrow", table)


def _to_file(table: pa.Table) -> pa.Buffer:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    # A file holds one dictionary for each column.
    table = table.unify_dictionaries().combine_chunks()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _from_file(content: bytes | pa.Buffer) -> pa.Table:
    import pyarrow as pa

    with pa.ipc.open_file(pa.BufferReader(content)) as file:
        return file.read_all()


def _first_difference(given: OwnColumns, back: OwnColumns) -> str | None:
    """Return what differs between a frame and its kept copy, None if nothing does."""
    one, other = given.table, back.table
    if given.form == "pandas":
        if not (one.index.equals(other.index) and one.index.names == other.index.names):
            return "its index"
        if not one.columns.equals(other.columns):
            return "the names of its columns"
        pairs = [(name, one.iloc[:, place], other.iloc[:, place]) for place, name in enumerate(given.names)]
        return next((f"column {n!r}" for n, a, b in pairs if a.dtype != b.dtype or not a.equals(b)), None)
    if given.form == "polars":
        pairs = [(name, one.get_column(name), other.get_column(name)) for name in given.names]
        return next((f"column {n!r}" for n, a, b in pairs if a.dtype != b.dtype or not a.equals(b)), None)
    pairs = [(name, one.column(name), other.column(name)) for name in given.names]
    return next((f"column {n!r}" for n, a, b in pairs if a.type != b.type or not _same(a, b)), None)


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Tell whether two columns are equal; NaN, which equals nothing, included."""
    return bool(one.equals(other)) or repr(one.to_pylist()) == repr(other.to_pylist())
