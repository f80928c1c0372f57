"""CRC32C of bytes, by the library that is fastest for their number.

google-crc32c holds the interpreter's lock, and of bytes that are not in the processor's caches sums 5 GB/s. The AWS common runtime
(extra `fast`, Apache licence) sums 10 of these and 50 of others, with the lock released, but is no faster for a few KiB.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from google_crc32c import extend
from numpy.typing import NDArray

LONG_BYTES = 12 << 10
"""From here on a call of the other library pays."""


def crc32c(start: int, data: bytes | NDArray[np.uint8]) -> int:
    """Returns the CRC32C over `data`, uint8 of one dimension, continued from `start`."""
    if len(data) >= LONG_BYTES and (long_sum := _long_sum()) is not None:
        return int(long_sum(data, start))
    return int(extend(start, data))


@functools.cache
def _long_sum() -> Callable[[Any, int], int] | None:
    try:
        from awscrt.checksums import crc32c
    except ImportError:
        return None
    found: Callable[[Any, int], int] = crc32c
    return found
