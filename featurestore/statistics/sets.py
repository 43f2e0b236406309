"""Statistics of saved training sets, and sampled rows that are kept beside them.

Windowed and on-demand features are in no log: what is known of their values comes from training sets.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from featurestore_registry.documents import BinsDocument, ColumnStatistics, EdgesDocument, StatisticsDocument

from featurestore.engine.profiles import Sample
from featurestore.errors import AuthError, LedgerConflictError
from featurestore.ledger.statistics import newest_statistics, read_edges, write_edges, write_statistics
from featurestore.statistics.bins import count_in, make_bins, must_be_made
from featurestore.statistics.columns import Column, statistics_of, without_bins
from featurestore.statistics.counting import Counted, count
from featurestore.statistics.totals import Totals
from featurestore.types import ValueType
from featurestore.types.values import to_json
from featurestore.workspace import Readers, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

KEPT_ROWS = 20_000
"""How many rows of a saved set are kept as a sample, at most."""
SALT = b"featurestore_salt"
"""In the metadata of a kept sample: the key of the hashes of its join keys."""
TIMES = "event_timestamp"
_SEED = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class SetColumn:
    """One feature of a training set."""

    column: Column
    """Under its name in the set."""
    key: str
    """The key of the bins of its view, as `featurestore_registry.documents.EDGES` says."""
    feature: str
    """Its name there."""
    makes_bins: bool
    """Whether training sets make its bins, because no run sees its values."""


def sampled_rows(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return ``most`` of ``count`` row numbers in order, chosen by a seeded hash; all if there are fewer.

    Fewer ones are among more.
    """
    rows = np.arange(count, dtype=np.uint64)
    if count > most:
        mixed = (rows + np.uint64(1)) * np.uint64(_SEED)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        rows = np.sort(np.argpartition(mixed ^ (mixed >> np.uint64(27)), most)[:most])
    return rows.astype(np.int64)


def thinned(tables: Iterable[pa.Table], most: int) -> list[pa.Table]:
    """Return tables as they come; of more than ``most`` rows so many, chosen by a seeded hash."""
    kept, rows, share = list[Any](), 0, 1.0
    for table in tables:
        kept.append(_some(table, share))
        rows += kept[-1].num_rows
        if rows > 2 * most:  # no more is held at once, however many there are
            kept = [_some(each, 0.5) for each in kept]
            rows, share = sum(each.num_rows for each in kept), share / 2
    return [_some(each, min(most / rows, 1.0)) for each in kept] if rows else kept


def _some(table: pa.Table, share: float) -> pa.Table:
    return table if share == 1.0 else table.take(sampled_rows(table.num_rows, round(share * table.num_rows)))


class SetProfile:
    """Counts a training set while its batches pass."""

    def __init__(self, columns: Sequence[SetColumn], rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.places = sampled_rows(rows, round(Sample.within(len(columns)).of(rows) * rows))
        """The numbers of the rows in ``sample``."""
        self._totals = [Totals(each.column.kind) for each in columns]
        self._taken: list[pa.RecordBatch] = []
        self._fault: Exception | None = None

    def seeing(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass batches of the features on, in the order of the columns; a fault in counting stops none of them."""
        done = 0
        for batch in batches:
            try:
                self._see(batch, done)
            except Exception as error:
                self._fault = self._fault or error
            done += batch.num_rows
            yield batch

    def _see(self, batch: pa.RecordBatch, done: int) -> None:
        import pyarrow as pa

        first, last = np.searchsorted(self.places, [done, done + batch.num_rows])
        self._taken.append(batch.take(pa.array(self.places[first:last] - done)))
        for totals, array in zip(self._totals, batch.columns, strict=True):
            totals.see(array)

    def sample(self, schema: pa.Schema) -> pa.Table:
        """Return the features of the sampled rows; raises what went wrong in counting."""
        import pyarrow as pa

        if self._fault is not None:
            raise self._fault

        return pa.Table.from_batches(self._taken, schema)

    def statistics(self, schema: pa.Schema, bins: _Bins) -> Iterator[ColumnStatistics]:
        """Yield the statistics of each column."""
        for each, totals, values in zip(self.columns, self._totals, self.sample(schema).columns, strict=True):
            counted, column = count(each.column.kind, values), each.column
            made = counts = None
            if not column.is_hidden and column.kind.item is None and counted.held:
                made = bins.fitting(each, counted, self.rows)
                counts = None if made is None else count_in(counted, made)
            found = statistics_of(column, self.rows, counted, totals.found(None), made, counts)
            yield replace(found, feature=f"{each.key}:{each.feature}")


class _Bins:
    """The bins of views that a set's features come from."""

    def __init__(self, workspace: Workspace, made_us: int) -> None:
        self._workspace, self._made_us = workspace, made_us
        self._known: dict[str, tuple[EdgesDocument, int]] = {}
        self._made: dict[str, dict[str, BinsDocument]] = {}

    def fitting(self, each: SetColumn, counted: Counted, rows: int) -> BinsDocument | None:
        """Return the bins of a feature; made of the set's values where no run makes them, or too few lie in them."""
        if each.key not in self._known:
            self._known[each.key] = read_edges(self._workspace.ledger, self._workspace.project, each.key)
        bins = self._made.get(each.key, {}).get(each.feature) or self._known[each.key][0].columns.get(each.feature)
        counts = None if bins is None else count_in(counted, bins)
        if not each.makes_bins or not must_be_made(bins, counts, counted.held, rows):
            return bins
        version = 1 if bins is None else bins.version + 1
        made = make_bins(counted, rows=rows, made_us=self._made_us, version=version, shows_all=each.column.shows_all)
        self._made.setdefault(each.key, {})[each.feature] = made
        return made

    def write(self) -> frozenset[tuple[str, str]]:
        """Write new bins; return which are not there, because others were written meanwhile."""
        lost = set[tuple[str, str]]()
        for key, made in self._made.items():
            before, entry = self._known[key]
            document = EdgesDocument({**before.columns, **made})
            try:
                write_edges(self._workspace.ledger, self._workspace.project, key, document, if_version=entry)
            except LedgerConflictError:
                lost |= {(key, feature) for feature in made}
        return frozenset(lost)


def set_key(name: str) -> str:
    """Return the key of a saved set's statistics."""
    return f"training_set:{name}"


def keep_statistics(
    workspace: Workspace, name: str, profile: SetProfile, schema: pa.Schema, *, revision: str, code_hash: str
) -> None:
    """Write the statistics of a saved set into the ledger."""
    made_us, bins = workspace.clock(), _Bins(workspace, workspace.clock())
    columns = [*profile.statistics(schema, bins)]
    if lost := bins.write():
        without = {f"{key}:{feature}" for key, feature in lost}
        columns = [without_bins(each) if each.feature in without else each for each in columns]
    document = StatisticsDocument(
        made_us, profile.rows, len(profile.places), tuple(columns), revision=revision, code_hash=code_hash
    )
    write_statistics(workspace.ledger, workspace.project, set_key(name), document)


def forget_statistics(workspace: Workspace, name: str) -> None:
    """Leave no statistics to a later set of a deleted one's name."""
    with suppress(AuthError):  # a registry's server of an earlier release keeps none
        if newest_statistics(workspace.ledger, workspace.project, set_key(name)) is not None:
            write_statistics(workspace.ledger, workspace.project, set_key(name), StatisticsDocument(0, 0, 0, ()))


def statistics_of_set(workspace: Readers, name: str) -> StatisticsDocument | None:
    """Return the statistics of a saved set; None where it has none, as one of an earlier release."""
    found = newest_statistics(workspace.ledger, workspace.project, set_key(name))
    return None if found is None or not found.columns else found


def hashed(values: Iterable[Any], kind: ValueType, salt: bytes) -> list[str]:
    """Return keys as hashes that only the salt tells apart from others: BLAKE2b, 128 bits, of their JSON."""
    encode = msgspec.json.encode
    return [blake2b(encode(to_json(kind, value)), digest_size=16, key=salt).hexdigest() for value in values]


def kept_sample(
    profile: SetProfile, schema: pa.Schema, keys: Mapping[str, tuple[ValueType, pa.Array]], times: pa.Array
) -> pa.Table:
    """Return at most `KEPT_ROWS` rows of a set: hashed keys, ``event_timestamp``, features that are not personal.

    ``keys`` and ``times`` are those of all rows of the set.
    """
    import pyarrow as pa

    places = sampled_rows(profile.rows, min(KEPT_ROWS, len(profile.places)))
    salt = secrets.token_bytes(32)
    columns = {
        name: pa.array(hashed(values.take(pa.array(places)).to_pylist(), kind, salt), pa.string())
        for name, (kind, values) in keys.items()
    }
    taken = profile.sample(schema).take(pa.array(np.searchsorted(profile.places, places)))
    columns[TIMES] = times.take(pa.array(places))
    columns |= {
        each.column.name: taken.column(place) for place, each in enumerate(profile.columns) if not each.column.is_hidden
    }
    return pa.table(columns).replace_schema_metadata({SALT: salt.hex().encode()})
