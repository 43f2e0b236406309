"""The instants of many keys in one sorted array, so that one binary search answers for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]

MOST_CODES = 1 << 62


@dataclass(frozen=True, slots=True)
class Timeline:
    """Instants of numbered keys as codes: an offset that grows from key to key, plus the time within the key.

    It codes the instants that it was made of exactly, and any other so that comparing with those stays right.
    """

    first_us: Int64s
    """The least instant of each key."""
    last_us: Int64s
    offsets: Int64s

    @classmethod
    def of(cls, starts: Int64s, times_us: Int64s) -> Timeline:
        """Make the codes for keys whose ``times_us`` lie at ``[starts[key], starts[key + 1])``, in any order.

        The caller takes so few keys at once that the codes fit: see `shares`.
        """
        filled = np.flatnonzero(starts[1:] > starts[:-1])
        first, last = np.zeros(len(starts) - 1, np.int64), np.zeros(len(starts) - 1, np.int64)
        if len(filled):
            first[filled] = np.minimum.reduceat(times_us, starts[filled])
            last[filled] = np.maximum.reduceat(times_us, starts[filled])
        assert (last - first + 3.0).sum() < 2.0**63, "more keys, or further apart, than `shares` yields"
        offsets = np.zeros(len(first), np.int64)
        np.cumsum(last[:-1] - first[:-1] + 3, out=offsets[1:])
        return cls(first, last, offsets)

    def codes(self, keys: Int64s, times_us: Int64s) -> Int64s:
        """Return the code of an instant of each key."""
        first = self.first_us[keys]
        # An instant before the key's first one, or after its last, is next to it.
        coded = np.minimum(times_us, self.last_us[keys] + 1)
        np.maximum(coded, first - 1, out=coded)
        coded -= first - 1
        coded += self.offsets[keys]
        return coded


def order_of(codes: Int64s) -> Int64s:
    """Return the stable order of codes, which are not negative.

    Sorting plain integers is ten times as fast as sorting positions by them, so a position stands in the low bits of
    each code. Bits of the codes that find no room then matter only where the others are equal.
    """
    if not len(codes):
        return np.zeros(0, np.int64)
    low = len(codes).bit_length()
    excess = max(0, int(codes.max()).bit_length() + low - 63)
    packed = codes >> excess
    packed <<= low
    packed |= np.arange(len(codes))
    packed.sort()
    order = packed & ((1 << low) - 1)
    if excess:
        packed >>= low
        tied = packed[1:] == packed[:-1]
        members = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
        some = order[members]
        order[members] = some[np.argsort(codes[some], kind="stable")]
    return order


def shares(counts: Int64s, span_us: int, most_events: int) -> Iterator[slice]:
    """Yield ranges of keys, with at most so many events each if no single key has more, whose codes fit.

    ``span_us`` is how far the instants of one key can be apart at most.
    """
    most_keys = max(1, MOST_CODES // (span_us + 3))
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        before = int(ends[begin - 1]) if begin else 0
        fitting = int(np.searchsorted(ends, before + most_events, "right"))
        end = min(max(fitting, begin + 1), begin + most_keys, len(counts))
        yield slice(begin, end)
        begin = end
