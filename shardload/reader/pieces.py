"""Memory that ranges are read into, one after another."""

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
