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
