"""What identifies a training set, and what other programs keep of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from featurestore_registry.records import canonical_json

from featurestore.errors import FeatureStoreError
from featurestore.ledger.saved_sets import SavedSet, blob_of, kept_blobs, read_kept
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest, resolve
from featurestore.request.meaning import definition_hash
from featurestore.served.shape import code_hash
from featurestore.training.certificate import Certificate
from featurestore.training.fingerprints import TableFingerprint
from featurestore.training.joins import JoinedRows
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

PREFIX = "featurestore."
SCHEMA, CERTIFICATE = "schema.json", "certificate.json"
"""The documents about a set that go with its facts."""


def set_id(identity: str, rows: JoinedRows, fingerprint: str) -> str:
    """Return the id of a set: BLAKE2b-256, as hex, of its project, what its features come from, and all its columns.

    ``identity`` is the project's, ``fingerprint`` that of the features and labels. It does not depend on when the set
    was made, on the revision, or on how the offline store keeps its rows.
    """
    own = rows.frame.own.to_arrow()
    document = {
        "project": identity,
        "definition": definition_hash(rows.request),
        "full_feature_names": rows.request.full_feature_names,
        "timestamp_column": rows.frame.timestamp_column,
        "labels": [label.label.document() for label in rows.labels],
        "own": [[name, _digest(column)] for name, column in zip(own.column_names, own.columns, strict=True)],
        "features": fingerprint,
    }
    return hashlib.blake2b(canonical_json(document).encode(), digest_size=32).hexdigest()


def _digest(column: pa.ChunkedArray) -> str:
    """Return the hash of one of the caller's columns, which may have any type: of its values, in whichever library."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as is_

    if is_.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    with suppress(pa.ArrowException):  # instants that are no whole microseconds stay as they are
        column = column.cast(_common(column.type))
    kind, name = column.type, ""
    if is_.is_float32(kind) or is_.is_float64(kind):  # pandas has one for both
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
    plain = is_.is_string, is_.is_integer, is_.is_floating, is_.is_boolean, is_.is_timestamp, is_.is_date32
    if not any(each(kind) for each in plain):
        column, name = pa.chunked_array([[repr(value) for value in column.to_pylist()]], pa.string()), str(kind)
    taken = TableFingerprint(pa.schema([(name, column.type)]))
    for chunk in column.chunks:
        taken.update(pa.RecordBatch.from_arrays([chunk], [name]))
    return taken.hexdigest()


def _common(kind: pa.DataType) -> pa.DataType:
    """Return the one type of those in which libraries keep equal values."""
    import pyarrow as pa
    import pyarrow.types as is_

    if is_.is_large_string(kind) or is_.is_string_view(kind):
        return pa.string()
    if is_.is_large_binary(kind) or is_.is_binary_view(kind):
        return pa.binary()
    if is_.is_timestamp(kind):
        return pa.timestamp("us", None if kind.tz is None else "UTC")
    if is_.is_date64(kind):
        return pa.date32()
    if is_.is_list(kind) or is_.is_large_list(kind):
        return pa.list_(_common(kind.value_type))
    return kind


def _services(workspace: Readers, request: FeatureRequest, *, is_known: bool) -> tuple[str, ...]:
    """Return the services that were asked for; of a saved set, which keeps features alone, those that are the same."""
    if request.services or not is_known:
        return tuple(dict.fromkeys(request.services))
    snapshot = Snapshot.of(workspace.registry.definitions.read(request.project, request.revision))
    return tuple(name for name in snapshot.services if _references(snapshot, name) == request.references)


def _references(snapshot: Snapshot, service: str) -> tuple[dict[str, Any], ...] | None:
    try:
        return resolve(snapshot, snapshot.services[service], full_feature_names=True).references
    except FeatureStoreError:  # it no longer fits what it reads
        return None


def facts_of(
    workspace: Readers,
    rows: JoinedRows,
    certificate: Certificate,
    id: str,
    saved: SavedSet | None,
    saved_as: str | None,
) -> dict[str, str | int]:
    """Return a set's facts: see `TrainingSet.facts`."""
    return {PREFIX + name: value for name, value in _facts(workspace, rows, certificate, id, saved, saved_as)}


def _facts(
    workspace: Readers,
    rows: JoinedRows,
    certificate: Certificate,
    id: str,
    saved: SavedSet | None,
    saved_as: str | None,
) -> Iterator[tuple[str, str | int]]:
    request = rows.request
    chain = workspace.registry.definitions.chain(request.project)
    beside = None if saved is None else read_kept(kept_blobs(workspace), blob_of(saved.frame))
    revision = chain.hashes[request.revision - 1] if 0 < request.revision <= chain.number else ""
    if beside is not None:  # its registry may have been restored since, and have another history
        revision = beside.revision
    yield "training_set", id
    if saved_as is not None:
        yield "saved_as", saved_as
    yield "project", request.project
    yield "project_id", chain.identity
    if services := _services(workspace, request, is_known=revision in chain):
        yield "service", ", ".join(services)
    yield "revision", request.revision
    yield "revision_hash", revision
    yield "definition", definition_hash(request)
    if code := code_hash(request):
        yield "code", code
    if rows.direct:
        yield "direct", "true"
    yield "rows", certificate.rows
    yield "features", len(certificate.features)
    yield "labels", len(certificate.labels)
    yield "left_out", certificate.left_out
    yield "recomputed_rows", certificate.recomputed_rows
    yield "certified_at", certificate.certified_at


def schema_of(rows: JoinedRows, own: pa.Schema) -> dict[str, Any]:
    """Return the columns of a set, and what was asked for, as JSON: what makes the same request again."""
    columns = [{"name": field.name, "type": str(field.type), "role": "own"} for field in own]
    columns += [
        {"name": output.name, "type": str(output.field.type), "role": "feature", "feature": output.reference}
        for output in rows.request.outputs
    ]
    columns += [
        {"name": output.name, "type": str(output.field.type), "role": "label", "feature": output.reference}
        for label in rows.labels
        for output in label.rows.request.outputs
    ]
    return {
        "columns": columns,
        "timestamp_column": rows.frame.timestamp_column,
        "references": list(rows.request.references),
        "full_feature_names": rows.request.full_feature_names,
    }
