"""Ranges that are in memory, read where they lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.memory.ranges import slices

Int64 = NDArray[np.int64]

_LONG_BYTES = 4096
"""Of longer ranges a view is made sooner than a copy."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """Memory that ranges lie in, to be read at once.

    What was read counts only if `whole` says so afterwards: of a file that was cut meanwhile zeros have come. A failure to make
    sense of it may be due to that, too.
    """

    data: Any
    """A buffer whose slices are byte strings; far longer than the ranges."""
    starts: Int64
    """First byte of each range in it: int64 of shape (ranges,)."""
    stops: Int64
    """Byte after each, likewise."""
    whole: Callable[[], bool]
    """Tells whether the files that the ranges are from still have their ends."""

    def values(self) -> list[bytes]:
        """Returns the bytes of each range."""
        return slices(self.data, self.starts, self.stops)

    def joined(self) -> bytes:
        """Returns the bytes of all ranges, one after another."""
        if not len(self.starts) or (self.stops - self.starts).mean() < _LONG_BYTES:
            return b"".join(self.values())
        data = memoryview(self.data)
        return b"".join(
            [data[start:stop] for start, stop in zip(self.starts.tolist(), self.stops.tolist(), strict=True)]
        )
