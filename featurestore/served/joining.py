"""Predictions, and what was served for them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.errors import NotFoundError, did_you_mean
from featurestore.served.files import PREDICTED, rows_between
from featurestore.served.joined import joined
from featurestore.served.keep import no_log, read_served, services_kept
from featurestore.served.kinds import apart, is_other, is_prediction, other_kind
from featurestore.served.predictions import schema_of
from featurestore.served.shape import AT, MODEL, PREDICTED_AT, PREDICTION, REQUEST_ID, ROW
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

    Places = npt.NDArray[np.int64]

LATEST_US = 86_400_000_000
"""A prediction is looked for so long after its request was served."""
CLOCKS_US = 300_000_000
"""How far apart the clocks may be of the servers that answered and that took the prediction."""
_ORDER = [(AT, "ascending"), (REQUEST_ID, "ascending"), (ROW, "ascending"), (MODEL, "ascending")]


@dataclass(frozen=True)
class PredictedRows:
    """Predictions, each beside what was served for it."""

    rows: pa.Table
    """The columns of `FeatureStore.read_served`, then ``predicted_at``, ``model`` and ``prediction.*``."""
    repeated: int
    """Predictions that a later one of the same request, row, model and name replaces."""
    without_served: int
    """Predictions of the span beside which nothing was served: their requests were not kept, or are gone."""
    lonely: pa.Table
    """These, as they were logged."""
    other_kind: int = 0
    """Values of the span that are of another kind than most of their name: each kind has a column of its own."""
    same_id: int = 0
    """Served rows of the span that have predictions and the request id of a later one, beside which these stand."""

    def counts(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: getattr(self, name) for name in ("repeated", "without_served", "other_kind", "same_id")}

    def notes(self) -> Iterator[str]:
        """Yield the counts that are not 0, in words."""
        if self.repeated:
            yield f"{self.repeated:,} predictions were logged again: the last one counts"
        if self.without_served:
            yield f"{self.without_served:,} predictions are of requests that are not in the served log"
        if self.other_kind:
            yield f"{self.other_kind:,} values are of another kind than most of their name, in columns of their own"
        if self.same_id:
            yield same_id_text(self.same_id)

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a frame."""
        return self.rows.to_pandas()


def same_id_text(rows: int) -> str:
    """Return a note of served rows whose requests chose the id of another."""
    return (
        f"{rows:,} served rows have the request id of a later one: predictions stand beside the later one. Give each "
        "request an X-Request-ID of its own, or none"
    )


def read_predictions(workspace: Readers, service: str, start_us: int, end_us: int) -> pa.Table:
    """Return the predictions of [start, end), oldest first. See `FeatureStore.read_predictions`."""
    return _in_order(apart(_tables(workspace, service, start_us, end_us)))


def join_predictions(
    workspace: Readers,
    service: str,
    start_us: int,
    end_us: int,
    *,
    only: str | None = None,
    fitting: Collection[str] = (),
) -> PredictedRows:
    """Return predictions beside what was served in [start, end). See `FeatureStore.join_predictions`.

    ``only`` is the one name to read, of the kinds in ``fitting`` first, as `kinds.apart`; raises NotFoundError if
    nobody logged it. Models that log other names alone are left out then, and values of another kind too.
    """
    import numpy as np
    import pyarrow as pa

    served = read_served(workspace, service, start_us - LATEST_US, end_us + CLOCKS_US)
    try:
        tables = _tables(workspace, service, start_us - CLOCKS_US, end_us + LATEST_US)
    except NotFoundError:  # of a service that is gone
        tables = []
    tables, name = apart(tables, fitting), None if only is None else PREDICTION + only
    others = sum(other_kind(table, name, start_us, end_us) for table in tables)
    logged = _in_order(tables if name is None else _only(tables, name))
    names = [*filter(is_prediction, logged.column_names)]
    codes = _codes(served, logged)
    keys = np.unique(np.stack([codes[1], _numbers(logged, MODEL)]), axis=1, return_inverse=True)[1].reshape(-1)
    count = int(keys.max(initial=-1)) + 1
    last = _last(keys, np.arange(logged.num_rows), count)
    values = {name: _last(keys, np.flatnonzero(logged.column(name).is_valid().to_numpy()), count) for name in names}
    beside = _beside(*codes, last)
    served_us, logged_us = _instants(served, AT), _instants(logged, PREDICTED_AT)
    is_found = beside >= 0
    is_inside = np.zeros(count, bool)
    is_inside[is_found] = _within(served_us[beside[is_found]], start_us, end_us)
    is_lonely = ~is_found & _within(logged_us[last], start_us, end_us)
    rows = served.take(pa.array(beside[is_inside]))
    for name in (PREDICTED_AT, MODEL):
        rows = rows.append_column(name, logged.column(name).take(pa.array(last[is_inside])))
    for name in names:  # of names that were logged apart each has its own last row
        chosen = np.where(values[name] < 0, last, values[name])[is_inside]
        rows = rows.append_column(name, logged.column(name).take(pa.array(chosen)))
    is_used = np.zeros(logged.num_rows, bool)
    for places in (last, *values.values()):
        is_used[places[places >= 0]] = True
    repeated = int((~is_used & _within(logged_us, start_us, end_us)).sum())
    same_id = _earlier(*codes, _within(served_us, start_us, end_us))
    lonely = logged.take(pa.array(last[is_lonely]))
    return PredictedRows(rows.sort_by(_ORDER), repeated, lonely.num_rows, lonely, others, same_id)


def _tables(workspace: Readers, service: str, start_us: int, end_us: int) -> list[pa.Table]:
    """Return the predictions of [start, end) file by file; raises NotFoundError for a service without a log."""
    snapshot = workspace.snapshot()
    tables = rows_between(PREDICTED, workspace, service, start_us, end_us, list)
    definition = snapshot.services.get(service)
    if not tables and (definition is None or definition.log is None):
        kept = services_kept(workspace, PREDICTED)
        if service not in kept:
            raise no_log(snapshot, service, kept)
    return tables


def _in_order(tables: list[pa.Table]) -> pa.Table:
    return joined(PREDICTED, tables, schema_of({})).sort_by(PREDICTED.order)


def _only(tables: list[pa.Table], name: str) -> list[pa.Table]:
    """Return tables with one prediction, without the models that have it nowhere and others somewhere.

    Rows in which it is of another kind are left out.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    having, others = set[str](), set[str]()
    names = {column for table in tables for column in table.column_names if is_prediction(column)}
    if names and name not in names:
        known = sorted(column.removeprefix(PREDICTION) for column in names if not is_other(column))
        wanted = name.removeprefix(PREDICTION)
        raise NotFoundError(
            f"No model logged a prediction {wanted!r} in this span.",
            hint=did_you_mean(wanted, known) or f"There are {', '.join(known)}.",
            name=wanted,
        )
    for table in tables:
        for column in filter(is_prediction, table.column_names):
            models = table.column(MODEL).filter(table.column(column).is_valid()).unique().to_pylist()
            (having if column == name else others).update(models)
    left_out = pa.array(sorted(others - having), pa.string())
    found = []
    for table in tables:
        is_out = pc.is_in(table.column(MODEL), left_out)
        for column in table.column_names:
            if is_other(column, name):
                is_out = pc.or_(is_out, table.column(column).is_valid())
        chosen = [*schema_of({}).names, *(column for column in table.column_names if column == name)]
        found.append(table.filter(pc.invert(is_out)).select(chosen))
    return found


def _numbers(table: pa.Table, name: str) -> Places:
    """Return a number for each different text of a column."""
    column = table.column(name).combine_chunks().dictionary_encode()
    found: Places = column.indices.cast("int64").to_numpy(zero_copy_only=False)
    return found


def _codes(served: pa.Table, logged: pa.Table) -> tuple[Places, Places]:
    """Return for each row of both a number of its request and row: equal ones are one."""
    import numpy as np
    import pyarrow as pa

    both = pa.concat_tables([table.select([REQUEST_ID, ROW]) for table in (served, logged)])
    rows = both.column(ROW).to_numpy().astype(np.int64)
    codes = _numbers(both, REQUEST_ID) * (int(rows.max(initial=0)) + 1) + rows
    return codes[: served.num_rows], codes[served.num_rows :]


def _last(keys: Places, places: Places, count: int) -> Places:
    """Return for each key the last of some rows in order, -1 where it has none of them."""
    import numpy as np

    found = np.full(count, -1, np.int64)
    found[keys[places]] = places  # of equal keys the last assignment stays
    return found


def _beside(served: Places, logged: Places, last: Places) -> Places:
    """Return for each last prediction the place of the newest row that was served for it, -1 for none."""
    import numpy as np

    known, place = _newest(served)
    wanted = logged[last]
    at = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    return np.where(known[at] == wanted, place[at], -1)


def _newest(served: Places) -> tuple[Places, Places]:
    """Return each number of a request and row once, with the place of the newest row that was served for it."""
    import numpy as np

    known, place = np.unique(served[::-1], return_index=True)
    return known, len(served) - 1 - place


def _earlier(served: Places, logged: Places, is_inside: npt.NDArray[np.bool_]) -> int:
    """Return how many served rows have predictions, and a later row of their number."""
    import numpy as np

    is_earlier = is_inside & np.isin(served, logged)
    is_earlier[_newest(served)[1]] = False
    return int(is_earlier.sum())


def _instants(table: pa.Table, name: str) -> Places:
    found: Places = table.column(name).cast("int64").to_numpy()
    return found


def _within(instants: Places, start_us: int, end_us: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (instants >= start_us) & (instants < end_us)
    return found
