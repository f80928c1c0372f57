"""Lengths into bins of one capacity, by best fit: the longest first, each to where it leaves the least room."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

_BIN_BITS = 32
_BIN_MASK = (1 << _BIN_BITS) - 1


def best_fit(lengths: Int64, capacity: int) -> tuple[Int64, Int64]:
    """Returns which bin each length goes to, by best-fit decreasing (Johnson 1973).

    Of equal lengths the first comes first, and of equally full bins the one that was opened first is taken: the result is
    the same everywhere. A length costs one binary search.

    Args:
        lengths: int64 of shape (items,), each from 1 to `capacity`.
        capacity: the most that a bin holds.

    Returns:
        The bin of each, int64 of shape (items,), numbered from 0 as they were opened; and the item that opened each, its
        longest: int64 of shape (bins,).
    """
    decreasing = np.argsort(-lengths, kind="stable")
    sizes = lengths[decreasing].tolist()
    least = sizes[-1] if sizes else 0
    # Bins with room, in one sorted list: their room above, their number below. One search finds the tightest and the first.
    open_bins: list[int] = []
    bins: list[int] = []
    openers: list[int] = []
    for item, size in enumerate(sizes):
        place = bisect_left(open_bins, size << _BIN_BITS)
        if place < len(open_bins):
            tightest = open_bins.pop(place)
            number, room = tightest & _BIN_MASK, (tightest >> _BIN_BITS) - size
        else:
            number, room = len(openers), capacity - size
            openers.append(item)
        bins.append(number)
        if room >= least:
            insort(open_bins, room << _BIN_BITS | number)
    found = np.empty(len(sizes), dtype=np.int64)
    found[decreasing] = bins
    return found, decreasing[np.array(openers, dtype=np.int64)]
