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
        num_bytes, num_ranges = int(lengths.sum()), len(starts)
        if num_bytes < _MIN_RUN_BYTES or num_ranges < 2:
            return False
        num_runs = 1 + int(np.count_nonzero(_breaks(shard_ids, starts, lengths)))
        if num_bytes < _MIN_RUN_BYTES * num_runs or num_ranges < 2 * num_runs:
            return False
        shard_ids, starts, lengths = _closed_up(shard_ids, starts, lengths)
        edges = np.concatenate([[0], np.flatnonzero(_breaks(shard_ids, starts, lengths)) + 1, [len(starts)]])
        numbers, starts, lengths, addresses = _placed(starts, lengths, targets)
        with self._lock:
            for first, last in pairwise(edges.tolist()):
                file, part = self._file(int(shard_ids[first])), slice(*numbers.searchsorted([first, last]).tolist())
                if file is None or not read_run(file.descriptor, starts[part], lengths[part], addresses[part]):
                    return False
        return True

    def follow(self, sample_ids: Int64, num_bytes: int, first_sample_ids: Int64) -> bool:
        """Tells whether the system reads far enough ahead by itself of who reads columns of samples.

        Args:
            sample_ids: the samples.
            num_bytes: what they take of the narrowest column.
            first_sample_ids: of each shard: int64 of shape (shards + 1,).
        """
        if len(sample_ids) < _MIN_FOLLOWED_RANGES or num_bytes < _MIN_FOLLOWED_BYTES:
            return False
        if sample_ids[-1] - sample_ids[0] != len(sample_ids) - 1 or (np.diff(sample_ids) != 1).any():
            return False
        first, last = (np.searchsorted(first_sample_ids, sample_ids[[0, -1]], side="right") - 1).tolist()
        if num_bytes < _MIN_FOLLOWED_RUN_BYTES * (last - first + 1):
            return False
        files = map(self._file, {first, last})
        return all(file is not None and read_ahead_bytes(file.descriptor) >= _MIN_READ_AHEAD_BYTES for file in files)

    def _file(self, shard_id: int) -> FileReader | None:
        file = self._file_of(shard_id)
        return file if isinstance(file, FileReader) else None


def _closed_up(shard_ids: Int64, starts: Int64, lengths: Int64) -> tuple[Int64, Int64, Int64]:
    """Returns ranges, those that follow each other without a gap as one."""
    seams = (starts[1:] != starts[:-1] + lengths[:-1]) | (shard_ids[1:] != shard_ids[:-1])
    firsts = np.concatenate([[0], np.flatnonzero(seams) + 1])
    return shard_ids[firsts], starts[firsts], np.add.reduceat(lengths, firsts)


def _breaks(shard_ids: Int64, starts: Int64, lengths: Int64) -> NDArray[np.bool_]:
    """Returns whether a stretch ends before each range but the first: bool of shape (ranges - 1,)."""
    gaps = starts[1:] - (starts[:-1] + lengths[:-1])
    breaks: NDArray[np.bool_] = (gaps < 0) | (gaps > _MAX_GAP_BYTES) | (shard_ids[1:] != shard_ids[:-1])
    return breaks


def _placed(starts: Int64, lengths: Int64, targets: Sequence[tuple[int, int]]) -> tuple[Int64, Int64, Int64, Int64]:
    """Returns pieces of ranges that each go to one place: the number of the range, first byte, bytes, and address."""
    memory = np.array(targets, dtype=np.int64)
    own, there = np.cumsum(lengths) - lengths, np.cumsum(memory[:, 1]) - memory[:, 1]
    cuts = np.unique(np.concatenate([own[lengths > 0], there]))
    # Of ranges that begin at one byte all but the last are empty.
    numbers, place = np.searchsorted(own, cuts, side="right") - 1, np.searchsorted(there, cuts, side="right") - 1
    sizes = np.diff(cuts, append=lengths.sum())
    return numbers, starts[numbers] + cuts - own[numbers], sizes, memory[place, 0] + cuts - there[place]
