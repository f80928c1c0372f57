"""Long stretches of a file read to many places of memory by one call, in the order of the file, as a plain reader does."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

_MAX_VECTORS = 1024
"""Pieces of memory that one call takes (IOV_MAX)."""


@lru_cache(maxsize=1)
def _preadv() -> Any:
    """Returns the C library's preadv, which takes addresses: Python's own takes no memory of byte strings."""
    function = ctypes.CDLL(None, use_errno=True).preadv
    function.restype = ctypes.c_ssize_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]
    return function


def read_run(descriptor: int, starts: Int64, lengths: Int64, addresses: Int64) -> bool:
    """Reads ranges that follow each other in a file.

    Args:
        descriptor: of the open file.
        starts: first byte of each range, not below the end of the one before it: int64 of shape (ranges,).
        lengths: bytes of each, likewise; what lies between two is read for nothing.
        addresses: where they go in memory, likewise.

    Returns:
        Whether all was read; not where the file has become shorter or its device fails.
    """
    if not len(starts):
        return True
    vectors, skipped = _vectors(starts, lengths, addresses)
    offset = int(starts[0])
    for first in range(0, len(vectors), _MAX_VECTORS):
        part = vectors[first : first + _MAX_VECTORS]
        wanted = int(part[:, 1].sum())
        if _preadv()(descriptor, part.ctypes.data, len(part), offset) != wanted:
            return False
        offset += wanted
    del skipped
    return True


def _vectors(starts: Int64, lengths: Int64, addresses: Int64) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Returns pieces of memory as the kernel takes them (struct iovec), of shape (pieces, 2), and memory for what is skipped."""
    gaps = starts[1:] - (starts[:-1] + lengths[:-1])
    skipped = np.empty(max(1, int(gaps.max(initial=0))), dtype=np.uint8)
    if not gaps.any():
        apart = np.flatnonzero(addresses[1:] != addresses[:-1] + lengths[:-1]) + 1
        firsts = np.concatenate([[0], apart])
        return _pairs(addresses[firsts], np.add.reduceat(lengths, firsts)), skipped
    vectors = np.empty((2 * len(starts) - 1, 2), dtype=np.uint64)
    vectors[::2] = _pairs(addresses, lengths)
    vectors[1::2, 0], vectors[1::2, 1] = skipped.ctypes.data, gaps
    return vectors[vectors[:, 1] > 0], skipped


def _pairs(addresses: Int64, lengths: Int64) -> NDArray[np.uint64]:
    return np.stack([addresses, lengths], axis=1).astype(np.uint64)


@lru_cache(maxsize=64)
def _read_ahead_of(device: int) -> int:
    try:
        with open(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb") as file:
            return int(file.read()) << 10
    except (OSError, ValueError):
        return 0


def read_ahead_bytes(descriptor: int) -> int:
    """Returns how many bytes the system reads ahead of who reads a file in its order; 0 where it does not tell."""
    return _read_ahead_of(os.fstat(descriptor).st_dev)
