"""Many ranges of one piece of memory by one call: copied one behind the other, as byte strings, as text, and their CRC32C."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from shardload.memory import _ranges
except ImportError:
    # Built where a C compiler was found.
    _ranges = None  # type: ignore[assignment]

Int64 = NDArray[np.int64]
UInt32 = NDArray[np.uint32]

COPIES_UNLOCKED = _ranges is not None
"""Whether other threads run while much is copied."""

SUMS = _ranges is not None and bool(_ranges.SUMS)
"""Whether sums are made here: where this processor has an instruction for them."""


def gather(memory: Any, starts: Int64, stops: Int64, target: NDArray[np.uint8], sums: UInt32 | None = None) -> None:
    """Copies half-open ranges of bytes of a buffer one behind the other, only if `COPIES_UNLOCKED`; other threads run meanwhile.

    Args:
        memory: the buffer.
        starts: int64 of shape (ranges,).
        stops: likewise.
        target: where they go: uint8 of shape (bytes,), C-contiguous and writable, as long as all of them.
        sums: filled with the CRC32C of each as it was copied, only if `SUMS`: uint32 of shape (ranges,), C-contiguous. None where
            nobody asks for them.
    """
    if sums is not None:
        sums[...] = 0
    _ranges.gather(memory, np.ascontiguousarray(starts), np.ascontiguousarray(stops), target, sums)


def slices(memory: Any, starts: Int64, stops: Int64) -> list[bytes]:
    """Returns new byte strings, each a copy of a half-open range of bytes of a buffer.

    Args:
        memory: the buffer; slices of it must be byte strings.
        starts: int64 of shape (ranges,).
        stops: likewise.
    """
    if _ranges is not None:
        return _ranges.slices(memory, np.ascontiguousarray(starts), np.ascontiguousarray(stops))
    return [memory[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def texts(memory: Any, starts: Int64, stops: Int64) -> list[str]:
    """Returns what half-open ranges of bytes of a buffer are as text; arguments as of `slices`.

    Raises:
        UnicodeDecodeError: one of them is no UTF-8.
    """
    if _ranges is not None:
        return _ranges.texts(memory, np.ascontiguousarray(starts), np.ascontiguousarray(stops))
    return [str(memory[start:stop], "utf-8") for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def add_up(memory: Any, starts: Int64, stops: Int64, sums: UInt32) -> UInt32:
    """Returns the CRC32C of half-open ranges of bytes of a buffer, only if `SUMS`.

    Args:
        memory: the buffer.
        starts: int64 of shape (ranges,).
        stops: likewise.
        sums: what each is continued from: uint32 of shape (ranges,).
    """
    totals = np.array(sums, dtype=np.uint32)
    _ranges.add_up(memory, np.ascontiguousarray(starts), np.ascontiguousarray(stops), totals)
    return totals


def copied_and_added_up(
    memory: Any, starts: Int64, stops: Int64, head_bytes: int, sums: UInt32, as_text: bool
) -> tuple[list[bytes] | list[str], UInt32]:
    """Returns `slices` or `texts` and, of the same bytes as they were copied, what `add_up` returns; only if `SUMS`.

    Args:
        memory: as of `slices`.
        starts: likewise.
        stops: likewise.
        head_bytes: so many bytes before each range belong to its sum.
        sums: as of `add_up`.
        as_text: whether the ranges are UTF-8, to be decoded.

    Raises:
        UnicodeDecodeError: one of them is none.
    """
    totals, heads = np.array(sums, dtype=np.uint32), np.full(len(starts), head_bytes, dtype=np.int64)
    copy = _ranges.texts if as_text else _ranges.slices
    return copy(memory, np.ascontiguousarray(starts), np.ascontiguousarray(stops), heads, totals), totals
