"""Parts of what is read together, and what they are read into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def pieces_of(lengths: Int64, targets: Sequence[NDArray[np.uint8]]) -> list[memoryview]:
    """Returns for each range the memory it goes to."""
    pieces: list[memoryview] = []
    views, sizes, i = iter(targets), lengths.tolist(), 0
    # Of no bytes, but writable: who reads an empty range into it must not be refused.
    view, offset = memoryview(bytearray()), 0
    while i < len(sizes):
        if offset + sizes[i] > len(view):
            view, offset = next(views).data, 0
            continue
        pieces.append(view[offset : offset + sizes[i]])
        offset += sizes[i]
        i += 1
    return pieces


def runs_within(sizes: Int64, most: int) -> list[slice]:
    """Returns runs of sizes that come to so much at most together, or of one that is larger."""
    if int(sizes.sum()) <= most:
        return [slice(0, len(sizes))]
    runs, first, total = [], 0, 0
    for i, size in enumerate(sizes.tolist()):
        if i > first and total + size > most:
            runs.append(slice(first, i))
            first, total = i, 0
        total += size
    return [*runs, slice(first, len(sizes))]


def inverse(order: Int64) -> Int64:
    """Returns the places at which the numbers from 0 on stand in a permutation of them."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places
