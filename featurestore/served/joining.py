"""Predictions, and what was served for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.errors import NotFoundError
from featurestore.served.files import PREDICTED, joined, rows_between
from featurestore.served.keep import no_log, read_served, services_kept
from featurestore.served.predictions import schema_of
from featurestore.served.shape import AT, INSTANCE, MODEL, PREDICTED_AT, REQUEST_ID, ROW
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

LATEST_US = 86_400_000_000
"""A prediction is looked for so long after its request was served."""
CLOCKS_US = 300_000_000
"""How far apart the clocks may be of the servers that answered and that took the prediction."""
_PLACE, _SERVED = "fs_place", "fs_served"


@dataclass(frozen=True)
class PredictedRows:
    """Predictions, each beside what was served for it."""

    rows: pa.Table
    """The columns of `FeatureStore.read_served`, then ``predicted_at``, ``model`` and ``prediction.*``."""
    repeated: int
    """Predictions that a later one of the same request, row and model replaces."""
    without_served: int
    """Predictions of the span beside which nothing was served: their requests were not kept, or are gone."""
    lonely: pa.Table
    """These, as they were logged."""

    def counts(self) -> dict[str, int]:
        """Return the counts by name."""
        return {"repeated": self.repeated, "without_served": self.without_served}

    def notes(self) -> Iterator[str]:
        """Yield the counts that are not 0, in words."""
        if self.repeated:
            yield f"{self.repeated:,} predictions were logged again: the last one counts"
        if self.without_served:
            yield f"{self.without_served:,} predictions are of requests that are not in the served log"

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a frame."""
        return self.rows.to_pandas()


def read_predictions(workspace: Readers, service: str, start_us: int, end_us: int) -> pa.Table:
    """Return the predictions of [start, end), oldest first. See `FeatureStore.read_predictions`."""
    snapshot = workspace.snapshot()
    tables = list(rows_between(PREDICTED, workspace, service, start_us, end_us))
    definition = snapshot.services.get(service)
    if not tables and (definition is None or definition.log is None):
        kept = services_kept(workspace, PREDICTED)
        if service not in kept:
            raise no_log(snapshot, service, kept)
    return joined(PREDICTED, tables, schema_of({})).sort_by(PREDICTED.order)


def join_predictions(workspace: Readers, service: str, start_us: int, end_us: int) -> PredictedRows:
    """Return predictions beside what was served in [start, end). See `FeatureStore.join_predictions`."""
    import numpy as np
    import pyarrow as pa

    served = read_served(workspace, service, max(start_us - LATEST_US, 0), end_us + CLOCKS_US)
    try:
        logged = read_predictions(workspace, service, max(start_us - CLOCKS_US, 0), end_us + LATEST_US)
    except NotFoundError:  # of a service that is gone
        logged = schema_of({}).empty_table()
    last = _last(logged, [REQUEST_ID, ROW, MODEL])
    newest = _last(served, [REQUEST_ID, ROW])
    found = logged.take(last).select([REQUEST_ID, ROW]).append_column(_PLACE, last)
    known = served.take(newest).select([REQUEST_ID, ROW]).append_column(_SERVED, newest)
    pairs = found.join(known, [REQUEST_ID, ROW], join_type="left outer").sort_by(_PLACE)
    places = pairs.column(_PLACE).to_numpy()
    beside = pairs.column(_SERVED).fill_null(-1).to_numpy()
    served_us, logged_us = _instants(served, AT), _instants(logged, PREDICTED_AT)
    is_found = beside >= 0
    is_inside = np.zeros(len(places), bool)
    is_inside[is_found] = _within(served_us[beside[is_found]], start_us, end_us)
    is_lonely = ~is_found & _within(logged_us[places], start_us, end_us)
    columns = [name for name in logged.column_names if name not in (REQUEST_ID, ROW, INSTANCE)]
    rows = served.take(pa.array(beside[is_inside]))
    for name in columns:
        rows = rows.append_column(name, logged.column(name).take(pa.array(places[is_inside])))
    repeated = np.ones(logged.num_rows, bool)
    repeated[places] = False
    lonely = logged.take(pa.array(places[is_lonely]))
    count = int((repeated & _within(logged_us, start_us, end_us)).sum())
    return PredictedRows(rows.sort_by([*_ORDER]), count, lonely.num_rows, lonely)


_ORDER = [(AT, "ascending"), (REQUEST_ID, "ascending"), (ROW, "ascending"), (MODEL, "ascending")]


def _last(table: pa.Table, keys: list[str]) -> pa.Array:
    """Return the places of the last row of each key, in order."""
    import pyarrow as pa

    numbered = table.select(keys).append_column(_PLACE, pa.array(range(table.num_rows), pa.int64()))
    found = numbered.group_by(keys).aggregate([(_PLACE, "max")]).column(f"{_PLACE}_max")
    return found.combine_chunks().sort()


def _instants(table: pa.Table, name: str) -> npt.NDArray[np.int64]:

    found: npt.NDArray[np.int64] = table.column(name).cast("int64").to_numpy()
    return found


def _within(instants: npt.NDArray[np.int64], start_us: int, end_us: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (instants >= start_us) & (instants < end_us)
    return found
