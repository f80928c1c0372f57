"""Sample ids to reads: which shards, in what order, and which ranges become one read. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShardReads:
    """What a batch needs of one shard."""

    shard_id: int
    """Number of the shard in the table."""
    local_ids: Int64
    """Samples of the shard, not falling (a sample asked for twice stands twice): int64 of shape (reads,)."""
    slots: Int64
    """Where in the batch each of them goes: int64 of shape (reads,)."""


def plan_by_shard(sample_ids: Int64, first_sample_ids: Int64) -> Iterator[ShardReads]:
    """Yields what each shard has to give for a batch, shards and samples in the order of the files.

    Args:
        sample_ids: int64 of shape (batch,), each within the dataset.
        first_sample_ids: the sample id at which each shard starts, and the total at the end; int64 of shape
            (shards + 1,).
    """
    if len(sample_ids) == 0:
        return
    slots = np.argsort(sample_ids, kind="stable")
    ordered = sample_ids[slots]
    shard_ids = np.searchsorted(first_sample_ids, ordered, side="right") - 1
    edges = np.flatnonzero(np.diff(shard_ids)) + 1
    starts = [0, *edges.tolist()]
    for start, stop in zip(starts, [*starts[1:], len(ordered)], strict=True):
        shard_id = int(shard_ids[start])
        yield ShardReads(shard_id, ordered[start:stop] - first_sample_ids[shard_id], slots[start:stop])


def merge_ranges(starts: Int64, stops: Int64, *, max_gap_bytes: int, max_read_bytes: int) -> list[tuple[int, int]]:
    """Returns the half-open runs of ranges that become one read each.

    Args:
        starts: first byte of each range, not falling; int64 of shape (ranges,).
        stops: byte after each range, not falling; int64 of shape (ranges,).
        max_gap_bytes: most bytes between two ranges that are read for nothing.
        max_read_bytes: a read is ended when it would exceed this, unless it is a single range.
    """
    runs: list[tuple[int, int]] = []
    first = 0
    for i in range(1, len(starts)):
        if starts[i] - stops[i - 1] > max_gap_bytes or stops[i] - starts[first] > max_read_bytes:
            runs.append((first, i))
            first = i
    if len(starts):
        runs.append((first, len(starts)))
    return runs


def join_ranges(groups: Int64, starts: Int64, lengths: Int64, *, max_gap_bytes: int) -> tuple[Int64, Int64, Int64]:
    """Returns ranges in the order of the files, joined where they touch or overlap, or nearly do.

    Args:
        groups: number of the file of each range: int64 of shape (ranges,).
        starts: first byte in it, likewise.
        lengths: bytes, likewise.
        max_gap_bytes: most bytes between two that are joined.

    Returns:
        The same three for the joined ranges.
    """
    if len(starts) < 2:
        return groups, starts, lengths
    order = np.lexsort((starts, groups))
    groups, starts, stops = groups[order], starts[order], starts[order] + lengths[order]
    # The furthest end so far within a file: those of files before lie below all starts of it.
    first_of_file = np.concatenate([[True], np.diff(groups) != 0])
    number = np.cumsum(first_of_file) - 1
    span = int(stops.max()) + 1
    reached = np.maximum.accumulate(stops + number * span) - number * span
    breaks = np.concatenate([[True], first_of_file[1:] | (starts[1:] > reached[:-1] + max_gap_bytes)])
    firsts = np.flatnonzero(breaks)
    lasts = np.concatenate([firsts[1:], [len(starts)]]) - 1
    return groups[firsts], starts[firsts], reached[lasts] - starts[firsts]
