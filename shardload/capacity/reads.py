"""What reading a dataset from an object store costs: requests, bytes beside those needed, and what a cache has to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Columns = tuple[Int64, Int64, Int64]
"""Files, first bytes and lengths of ranges: int64 of shape (ranges,) each."""


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What samples cost that are announced window by window, each window planned by itself."""

    shuffle: str
    """The order: `full` or `block`."""
    num_samples: int
    """Samples that were looked at."""
    num_requests: int
    needed_bytes: int
    """Bytes of the samples, each once a window."""
    requested_bytes: int
    """Bytes that the requests bring."""
    window_bytes: int
    """Most bytes that the requests of one window bring."""
    cache_bytes: int
    """What a cache has to hold for each byte to be fetched once: two windows where a window's bytes are not asked for again in
    the epoch, else the whole dataset."""

    @property
    def amplification(self) -> float:
        """Bytes that come for each one that is needed."""
        return self.requested_bytes / self.needed_bytes if self.needed_bytes else 0.0

    @property
    def requests_per_sample(self) -> float:
        """Requests for each sample."""
        return self.num_requests / self.num_samples if self.num_samples else 0.0


def plan_reads(
    shuffle: str,
    windows: Iterable[Int64],
    ranges_of: Callable[[Int64], Columns],
    plan: Callable[[Int64, Int64, Int64], Columns],
    dataset_bytes: int,
) -> ReadPlan:
    """Returns what the windows of an order cost.

    Args:
        shuffle: name of the order; `block` if windows hold whole blocks, so that what is read beside a sample belongs to others
            of the same window.
        windows: the samples that are announced together: int64 of shape (samples,) each.
        ranges_of: where samples lie.
        plan: the requests for ranges: disjoint, covering them.
        dataset_bytes: bytes of all shards.
    """
    num_samples = num_requests = needed = requested = largest = 0
    for ids in windows:
        files, starts, lengths = ranges_of(ids)
        sizes = plan(files, starts, lengths)[2]
        num_samples += len(ids)
        num_requests += len(sizes)
        needed += _covered(files, starts, lengths)
        requested += int(sizes.sum())
        largest = max(largest, int(sizes.sum()))
    whole = 2 * largest if shuffle == "block" else dataset_bytes
    return ReadPlan(shuffle, num_samples, num_requests, needed, requested, largest, min(whole, dataset_bytes))


def _covered(files: Int64, starts: Int64, lengths: Int64) -> int:
    """Returns the bytes of ranges, those in several of them once."""
    if not len(files):
        return 0
    order = np.lexsort((starts, files))
    span = int((starts + lengths).max()) + 1
    low = files[order] * span + starts[order]
    high = np.maximum.accumulate(low + lengths[order])
    before = np.concatenate([[0], high[:-1]])
    return int(np.maximum(0, high - np.maximum(low, before)).sum())
