"""Long stretches of shards that are read in their order: by plain reads, straight to where the bytes go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shardload.storage import FileReader, StoredFile
from shardload.storage.runs import read_ahead_bytes, read_run

Int64 = NDArray[np.int64]

_MAX_GAP_BYTES = 4096
_MIN_RUN_BYTES = 16 << 10
"""Shorter stretches are left to others."""
_MIN_FOLLOWED_BYTES, _MIN_FOLLOWED_RANGES = 1 << 20, 32
"""What is announced together is at most sixteen times what is read together: of so much each read is a stretch."""
_MIN_FOLLOWED_RUN_BYTES = 64 << 10
_MIN_READ_AHEAD_BYTES = 1 << 20
"""Of a system that reads less ahead by itself, announcements get more."""


class RunReader:
    """Reads what lies in long stretches. Safe for several threads.

    Of who reads a file in its order the system reads ahead, into large pages. To announce the same bytes takes some three times
    the processor time, as it then fetches pages of 4 KiB.
    """

    def __init__(self, file_of: Callable[[int], StoredFile]) -> None:
        """Describes it; `file_of` returns the open file of a number, of a shard or beside them."""
        self._file_of = file_of
        # Two threads that read one file in turn would not be taken for one who reads it in its order.
        self._lock = threading.Lock()

    def read(self, shard_ids: Int64, starts: Int64, lengths: Int64, targets: Sequence[tuple[int, int]]) -> bool:
        """Reads ranges, one after another, to memory.

        Args:
            shard_ids: the shard of each range: int64 of shape (ranges,).
            starts: its first byte in the shard, likewise.
            lengths: its bytes, likewise; none crosses from one target into the next.
            targets: address and bytes of each piece of memory, none of them empty.

        Returns:
            Whether all was read: False where the ranges do not lie in long stretches, or something is wrong with a file.
        """
        edges = _edges(shard_ids, starts, lengths, _MIN_RUN_BYTES)
        if not edges:
            return False
        addresses = _addresses(lengths, targets)
        with self._lock:
            for first, last in pairwise(edges):
                file, part = self._file(int(shard_ids[first])), slice(first, last)
                if file is None or not read_run(file.descriptor, starts[part], lengths[part], addresses[part]):
                    return False
        return True

    def follows(self, shard_ids: Int64, starts: Int64, lengths: Int64) -> bool:
        """Tells whether the system reads far enough ahead by itself of who reads ranges in their order."""
        if len(starts) < _MIN_FOLLOWED_RANGES or int(lengths.sum()) < _MIN_FOLLOWED_BYTES:
            return False
        if not _edges(shard_ids, starts, lengths, _MIN_FOLLOWED_RUN_BYTES):
            return False
        files = [self._file(shard_id) for shard_id in np.unique(shard_ids).tolist()]
        return all(file is not None and read_ahead_bytes(file.descriptor) >= _MIN_READ_AHEAD_BYTES for file in files)

    def _file(self, shard_id: int) -> FileReader | None:
        file = self._file_of(shard_id)
        return file if isinstance(file, FileReader) else None


def _edges(shard_ids: Int64, starts: Int64, lengths: Int64, min_run_bytes: int) -> list[int]:
    """Returns where stretches begin, and the number of ranges; nothing if they are not that long on average, or single ranges."""
    num_bytes = int(lengths.sum())
    if num_bytes < min_run_bytes or len(starts) < 2:
        return []
    gaps = starts[1:] - (starts[:-1] + lengths[:-1])
    breaks = np.flatnonzero((gaps < 0) | (gaps > _MAX_GAP_BYTES) | (shard_ids[1:] != shard_ids[:-1])) + 1
    num_runs = len(breaks) + 1
    if num_bytes < min_run_bytes * num_runs or len(starts) < 2 * num_runs:
        return []
    return [0, *breaks.tolist(), len(starts)]


def _addresses(lengths: Int64, targets: Sequence[tuple[int, int]]) -> Int64:
    """Returns where each range goes."""
    pieces = np.array(targets, dtype=np.int64)
    stops = np.cumsum(pieces[:, 1])
    positions = np.cumsum(lengths) - lengths
    # An empty range at the end has no piece, nor needs one.
    number = np.minimum(np.searchsorted(stops, positions, side="right"), len(pieces) - 1)
    addresses: Int64 = pieces[number, 0] + positions - (stops - pieces[:, 1])[number]
    return addresses
