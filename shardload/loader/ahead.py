"""How far a loader reads ahead of the batches that it makes."""

from __future__ import annotations

import os
from dataclasses import dataclass

_BURST_BYTES = 8 << 20
_MAX_BURST_BATCHES = 8
_HINTED_BATCHES = 16
_HINTED_BYTES = 64 << 20
_MAX_DEFAULT_THREADS = 4


@dataclass(frozen=True, slots=True)
class Ahead:
    """How far reads go ahead of batches."""

    burst_batches: int
    """Batches that are read together."""
    hinted_batches: int
    """Batches that are announced to the storage at a time; 0 for none."""
    num_threads: int = 0
    """Threads that read bursts while batches are made of earlier ones; 0: one thread does both."""


def plan_ahead(batch_bytes: float, prefetch_batches: int, num_threads: int | None) -> Ahead:
    """Returns how far reads go ahead for batches of about so many bytes.

    A burst of small batches shares the costs of a read, one of large batches would only come later. What is announced keeps
    the device's queue full; it is held by the page cache, not by the process.

    Args:
        batch_bytes: bytes of a batch as stored.
        prefetch_batches: finished batches that may wait; 0 where each is read when it is asked for.
        num_threads: threads that read; None for as many as there are cores for this process, but 4.
    """
    if prefetch_batches == 0:
        return Ahead(1, 0)
    if num_threads is None:
        # On a single core a thread of its own only adds the switching.
        cores = len(os.sched_getaffinity(0))
        num_threads = min(_MAX_DEFAULT_THREADS, cores) if cores > 1 else 0
    burst = int(min(prefetch_batches, _MAX_BURST_BATCHES, max(1, _BURST_BYTES // max(batch_bytes, 1.0))))
    hinted = int(min(_HINTED_BATCHES, max(2, _HINTED_BYTES // max(batch_bytes, 1.0))))
    return Ahead(burst, hinted, num_threads)
