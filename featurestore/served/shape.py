"""The form of the served log: which columns a service's answers have at one revision."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureService, FeatureView, Field, ServedLog
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest, OutputColumn, ViewRead
from featurestore.request.personal import is_hidden
from featurestore.served.hashing import KEYS_HINT, NO_KEY, LogKey, LogKeys, keys_of
from featurestore.statistics.columns import is_personal
from featurestore.statuses import Status
from featurestore.types import ValueType
from featurestore.types.arrow import arrow_type
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

REQUEST_ID, ROW, AT, REVISION, CODE = "request_id", "row", "served_at", "revision", "code"
SAMPLE, INSTANCE, KEY_ID = "sample", "instance", "key_id"
"""Columns of every log. A row is one entity row of a request; ``row`` is its place in it; ``key_id`` tells with which
secret join keys are hashed, and is empty where they are plain."""
PREDICTED_AT, MODEL, PREDICTION = "predicted_at", "model", "prediction."
"""Columns of logs of predictions: when a server took it, of which model (version), and what their names begin with."""
REGISTRY_AHEAD, STORE_AHEAD = "registry_ahead_us", "online_store_ahead_us"
"""How far clocks were ahead of the server's, as far as it knew."""
KEY, REQUEST, VALUE, STATUS, VIEW = "key.", "request.", "value.", "status.", "view."
"""What the names of other columns begin with."""
EVENT, CREATED, SCHEMA, CRC, GENERATION = "event_timestamp", "created_timestamp", "schema", "crc", "generation"
"""What is kept of each record: ``view.{read}.event_timestamp`` and so on."""
STATUSES = (Status.PRESENT, Status.NULL_VALUE, Status.NOT_FOUND, Status.OUTSIDE_MAX_AGE)
"""In the order of their codes in the columns of statuses."""

SECRET_HINT = f'{KEYS_HINT} Or declare ServedLog(keys="plain").'
"""What to do without a secret."""


@dataclass(frozen=True)
class ServedShape:
    """One service at one revision, as its answers are kept."""

    service: str
    log: ServedLog
    request: FeatureRequest
    """Resolved from the service."""
    project: str
    """The project's identity."""
    revision: str
    """The hash of the revision."""
    key: LogKey
    """Of the hashes of join keys; `NO_KEY` where they are plain."""

    @cached_property
    def code(self) -> str:
        """The hash of the code of the service's on-demand features, of all where there are several."""
        return code_hash(self.request)

    @property
    def key_id(self) -> str:
        """What tells the secret of the hashes of join keys from others; empty where they are plain."""
        return self.key.id

    @cached_property
    def outputs(self) -> dict[str, OutputColumn]:
        """The features under the names of their columns: bare, and with their view's where two are called alike."""
        return named_outputs(self.request)

    @cached_property
    def shown(self) -> frozenset[str]:
        """The features of which values are kept, by the names of `outputs`."""
        return frozenset(name for name, output in self.outputs.items() if not is_hidden(self.request, output))

    @cached_property
    def request_fields(self) -> dict[str, Field]:
        """The request data that is kept."""
        return {name: field for name, field in self.request.request_fields.items() if not is_personal(field)}

    @cached_property
    def keys(self) -> dict[str, ValueType]:
        """The columns of join keys."""
        return {name: types[0] for name, types in self.request.key_types.items()}

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the log."""
        import pyarrow as pa

        instant, is_plain = pa.timestamp("us", "UTC"), self.log.keys == "plain"
        columns: list[tuple[str, pa.DataType]] = [
            (REQUEST_ID, pa.string()),
            (ROW, pa.int32()),
            (AT, instant),
            (REVISION, pa.string()),
            (CODE, pa.string()),
            (SAMPLE, pa.float64()),
            (INSTANCE, pa.string()),
            (KEY_ID, pa.string()),
            (REGISTRY_AHEAD, pa.int64()),
            (STORE_AHEAD, pa.int64()),
        ]
        columns += [(KEY + name, arrow_type(kind) if is_plain else pa.string()) for name, kind in self.keys.items()]
        columns += [(REQUEST + name, arrow_type(field.type)) for name, field in self.request_fields.items()]
        for name, output in self.outputs.items():
            if name in self.shown:
                columns.append((VALUE + name, arrow_type(output.field.type)))
            columns.append((STATUS + name, pa.dictionary(pa.int8(), pa.string())))
        for read in self.request.reads:
            of_record = (EVENT, instant), (CREATED, instant), (SCHEMA, pa.string()), (CRC, pa.uint32())
            columns += [(view_column(read, name), kind) for name, kind in (*of_record, (GENERATION, pa.int32()))]
        return pa.schema(columns)


def lack_of_secret(workspace: Readers, services: Iterable[FeatureService]) -> str | None:
    """Return what is wrong where a log keeps join keys hashed and the settings have no secret, None where all is well.

    A server does not start so.
    """
    wanting = sorted(each.name for each in services if each.log and each.log.keys == "hashed")
    if not wanting or keys_of(workspace).is_known:
        return None
    return f"The log of {', '.join(wanting)} keeps join keys hashed, and the settings have no secret."


def has_checksums(log: ServedLog, view: FeatureView) -> bool:
    """Tell whether the checksums of a view's records are kept.

    Not beside plain join keys where a field is personal: its value could be found by trying.
    """
    return log.keys == "hashed" or not any(map(is_personal, view.stored))


def view_column(read: ViewRead, name: str) -> str:
    """Return the name of a column about the records of a view."""
    return f"{VIEW}{read.name}.{name}"


def named_outputs(request: FeatureRequest) -> dict[str, OutputColumn]:
    """Return a request's features under names that differ, also in more than case."""
    counts = Counter(output.field.name.lower() for output in request.outputs)
    return {
        output.field.name if counts[output.field.name.lower()] == 1 else f"{output.alias}__{output.field.name}": output
        for output in request.outputs
    }


def code_hash(request: FeatureRequest) -> str:
    """Return the hash of the code of a request's on-demand features: the one, or one of all; empty without any."""
    hashes = sorted(read.view.code_hash for read in request.on_demand)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


def shape_of(
    snapshot: Snapshot, request: FeatureRequest, service: str, keys: LogKeys | None = None
) -> ServedShape | None:
    """Return how a service's answers are kept, None where they are not; ``keys`` are for those who write."""
    log = snapshot.services[service].log
    if log is None:
        return None
    key = keys.own if keys is not None and log.keys == "hashed" else NO_KEY
    return ServedShape(service, log, request, snapshot.chain.identity, snapshot.chain.head, key)
