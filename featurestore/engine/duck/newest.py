"""The point-in-time rule on arrays: of a key's rows that are available at an instant, the newest.

A row's rank is its place in the order (event, created, sequence), so the answer is the greatest rank among a
key's rows whose availability lies at or before the instant. With the rows laid out by (key, rank), let each row
carry the least availability from itself to the end of its key: this never falls along the key, and a row carries
at most t exactly when it or a later one is available at t. So the last row that carries at most t is the answer,
and one binary search per entity row finds it. Nothing depends on how the rows were laid out before: not on files,
threads, or how events are spread over keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]

KEY_SHIFT = 32
"""Keys and places share one integer in the sort: at most 2**31 keys and 2**32 rows at once."""
RANK_MASK = (1 << KEY_SHIFT) - 1
COMPOSITE_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a view, one array each; keys are small integers."""

    keys: Int64s
    events: Int64s
    createds: Int64s
    """Null created times count as the event time."""
    sequences: Int64s


def newest(
    asked_keys: Int64s,
    asked_times: Int64s,
    rows: Rows,
    *,
    available: bool,
    ttl_us: int | None,
    from_us: Int64s | None = None,
) -> Int64s:
    """Return for each asked (key, time) the index of the row that answers it, -1 where none does.

    With ``available`` a row counts from the later of its event and created time on, else from its event time, and not
    before ``from_us``; with ``ttl_us`` until its event time plus that, inclusive.
    """
    answers = np.full(len(asked_keys), -1, np.int64)
    if not len(rows.keys) or not len(asked_keys):
        return answers
    order = ranked(rows)
    # Arrays are long: steps work in place where they can, because new memory costs more than the arithmetic.
    layout = (rows.keys if order is None else rows.keys[order]).astype(np.int64)
    # One integer per row, the key in its high bits and the rank in the low ones: sorting lays the rows out.
    layout <<= KEY_SHIFT
    layout |= np.arange(len(layout), dtype=np.int64)
    layout.sort()
    starts = np.maximum(rows.events, rows.createds) if available else rows.events
    if from_us is not None:
        starts = np.maximum(starts, from_us)
    starts = (starts if order is None else starts[order])[layout & RANK_MASK]
    places = _search(layout, starts, asked_keys, asked_times)
    hits = np.flatnonzero(places >= 0)
    ranks = layout[places[hits]] & RANK_MASK
    answers[hits] = ranks if order is None else order[ranks]
    if ttl_us is not None:
        # The newest has the greatest event time of all candidates: if it is too old, so are the others.
        expired = rows.events[answers[hits]] < asked_times[hits] - ttl_us
        answers[hits[expired]] = -1
    return answers


def ranked(rows: Rows) -> Int64s | None:
    """Return the indices of rows in (event, created, sequence) order, None when they are in it already."""
    later = rows.events[1:] > rows.events[:-1]
    tied = rows.events[1:] == rows.events[:-1]
    if np.all(later | tied):
        ties = np.flatnonzero(tied)
        before, after = (rows.createds[ties], rows.createds[ties + 1])
        sequenced = (before == after) & (rows.sequences[ties] < rows.sequences[ties + 1])
        if np.all((before < after) | sequenced):
            return None
    # A stable sort merges runs, and rows from sorted files are a few runs.
    order = np.argsort(rows.events, kind="stable")
    events = rows.events[order]
    # Only rows with equal events need the other sort keys.
    tied = events[1:] == events[:-1]
    members = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
    some = order[members]
    order[members] = some[np.lexsort((rows.sequences[some], rows.createds[some], rows.events[some]))]
    return order


def _search(layout: Int64s, starts: Int64s, asked_keys: Int64s, asked_times: Int64s) -> Int64s:
    """Return for each asked (key, time) the last place of the key with a start at or before time, -1 without one.

    Key and time are compared as one integer, over as many keys at once as fit into it. Overwrites ``starts``.
    """
    low, high = int(asked_times.min()), int(asked_times.max())
    # Starts before the first question count as its time, and those after the last one as one microsecond later.
    span = high - low + 2
    np.clip(starts, low, high + 1, out=starts)
    starts -= low
    found = np.full(len(asked_keys), -1, np.int64)
    by_key = np.argsort(asked_keys, kind="stable")
    keys = int(asked_keys[by_key[-1]]) + 1
    step = min(keys, max(1, COMPOSITE_LIMIT // span))
    edges = np.arange(0, keys + step, step)
    places = np.searchsorted(layout, edges << KEY_SHIFT)
    askeds = np.searchsorted(asked_keys, edges, sorter=by_key)
    for number, first in enumerate(edges[:-1]):
        begin, end = places[number : number + 2]
        some = by_key[askeds[number] : askeds[number + 1]]
        if begin == end or not len(some):
            continue
        composite = starts[begin:end]
        composite += ((layout[begin:end] >> KEY_SHIFT) - first) * span
        # The least start from each row to the end of its key: all composites of the next key are greater.
        np.minimum.accumulate(composite[::-1], out=composite[::-1])
        wanted = (asked_keys[some] - first) * span + (asked_times[some] - low)
        # Sorted, the searches walk through memory instead of jumping.
        sorted_wanted = np.argsort(wanted)
        some, wanted = some[sorted_wanted], wanted[sorted_wanted]
        last = begin + np.searchsorted(composite, wanted, side="right") - 1
        hit = (last >= begin) & (layout[last] >> KEY_SHIFT == asked_keys[some])
        found[some[hit]] = last[hit]
    return found
