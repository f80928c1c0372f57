"""Checksums of many blocks at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format.checksum import block_sums
from shardload.memory.ranges import SUMS, add_up

Int64 = NDArray[np.int64]
UInt32 = NDArray[np.uint32]


def range_sums(data: Any, starts: Int64, stops: Int64, before: UInt32) -> UInt32:
    """Returns the checksums of half-open ranges of a buffer.

    Args:
        data: the buffer.
        starts: int64 of shape (ranges,).
        stops: likewise.
        before: what each is continued from: uint32 of shape (ranges,).
    """
    if SUMS:
        return add_up(data, starts, stops, before)
    return np.array(block_sums(data, starts.tolist(), stops.tolist(), before.tolist()), dtype=np.uint32)
