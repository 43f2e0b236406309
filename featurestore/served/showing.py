"""What of a served log shows by the definitions of now: a field may have become personal since it was kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.definitions import FeatureService
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest, resolve
from featurestore.request.personal import is_hidden
from featurestore.served.hashing import is_second
from featurestore.served.shape import CRC, KEY_ID, REQUEST, VALUE, VIEW, named_outputs
from featurestore.statistics.columns import is_personal

if TYPE_CHECKING:
    import pyarrow as pa


def shown(snapshot: Snapshot, service: str, rows: pa.Table, *, with_checksums: bool) -> pa.Table:
    """Return rows without columns of what is personal now.

    Checksums that could tell values of a personal field are null, but ``with_checksums``: they are for comparing alone.
    """
    rows = rows.drop_columns(sorted({*rows.column_names} & _hidden(snapshot, service, rows)))
    if with_checksums:
        return rows
    reads = _request(snapshot, service).reads if service in snapshot.services else ()
    views = {read.name: read.view.name for read in reads}
    for place, name in enumerate(rows.column_names):
        if name.startswith(VIEW) and name.endswith(f".{CRC}"):
            view = name.removeprefix(VIEW).removesuffix(f".{CRC}")
            rows = rows.set_column(
                place, name, _safe(rows, name, is_open=not _has_personal(snapshot, views.get(view, view)))
            )
    return rows


def _request(snapshot: Snapshot, service: str) -> FeatureRequest:
    return resolve(snapshot, snapshot.get(FeatureService, service), full_feature_names=True)


def _hidden(snapshot: Snapshot, service: str, rows: pa.Table) -> set[str]:
    """Return the columns of features and request data that are personal."""
    hidden, known = set[str](), set[str]()
    if service in snapshot.services:
        request = _request(snapshot, service)
        outputs = named_outputs(request)
        known = {VALUE + name for name in outputs} | {REQUEST + name for name in request.request_fields}
        hidden = {VALUE + name for name, output in outputs.items() if is_hidden(request, output)}
        hidden |= {REQUEST + name for name, field in request.request_fields.items() if is_personal(field)}
    others = {name for name in rows.column_names if name.startswith((VALUE, REQUEST))} - known
    if not others:
        return hidden
    # Of a service that is gone, or had other features: by the name of the feature, whichever view it was of.
    names = _personal_names(snapshot)
    return hidden | {name for name in others if name.partition(".")[2].rpartition("__")[2] in names}


def _personal_names(snapshot: Snapshot) -> set[str]:
    """Return the names of everything that is personal in any view."""
    names = set[str]()
    for name in (*snapshot.views, *snapshot.on_demand):
        request = resolve(snapshot, [f"{name}:*"])
        names |= {output.field.name for output in request.outputs if is_hidden(request, output)}
        names |= {field.name for field in request.request_fields.values() if is_personal(field)}
    return names | {field.name for each in snapshot.views.values() for field in each.view.stored if is_personal(field)}


def _has_personal(snapshot: Snapshot, view: str) -> bool:
    """Tell whether a view may have a personal field; one that is gone may."""
    found = snapshot.views.get(view)
    return found is None or any(map(is_personal, found.view.stored))


def _safe(rows: pa.Table, name: str, *, is_open: bool) -> Any:
    """Return checksums without those that are not hashed, where keys are or a field is personal."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pc.unique(rows.column(KEY_ID)).to_pylist()
    safe = [each for each in ids if is_second(each) or (is_open and not each)]
    return pc.if_else(pc.is_in(rows.column(KEY_ID), value_set=pa.array(safe, pa.string())), rows.column(name), None)
