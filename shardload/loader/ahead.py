"""How far reads go ahead of the batches that the training loop gets."""

from __future__ import annotations

import os
from dataclasses import dataclass

from shardload.memory.ranges import COPIES_UNLOCKED


@dataclass(frozen=True, slots=True)
class Ahead:
    """How far reads go ahead of batches."""

    burst_batches: int
    """Batches that are read together."""
    hinted_batches: int
    """Batches that are announced to the storage at a time; 0 for none."""
    early: bool = False
    """Whether batches are announced when those announced before them are begun; else when half of these were read."""
    num_threads: int = 0
    """Threads that read bursts while batches are made of earlier ones; 0: one thread does both."""


_BURST_BYTES, _MAX_BURST_BATCHES = 32 << 20, 32
_MAX_STRING_BURST_BATCHES = 16
"""Of byte strings and texts, each of which is an object: those of more batches are out of the processor's caches before the next
step on their way comes to them (texts of 1 KB by 256 took 0.68 us each in bursts of 16, 0.77 in bursts of 8 and of 32)."""
_FAR_BURST_BYTES, _MAX_FAR_BURST_BATCHES = 8 << 20, 8
"""Of a store: a burst waits for the last of its requests."""
_HINTED_BATCHES = 64
_HINTED_BYTES = 64 << 20
_FAR_HINTED_BATCHES = 1024
"""Of a store: the more is announced at a time, the nearer its ranges lie to each other, and the fewer requests they take."""
_SMALL_BYTES = 4096
"""Of smaller samples the making of a byte string costs as much as its bytes."""


def plan_ahead(
    batch_bytes: float,
    prefetch_batches: int,
    num_threads: int | None,
    most_threads: int = 4,
    far: bool = False,
    prefetch_bytes: int = _BURST_BYTES,
    strings: bool = False,
) -> Ahead:
    """Returns how far reads go ahead for batches of about so many bytes.

    A burst shares what a read costs beside its bytes, and hand-overs between threads: of batches of some MiB, too, as the
    processor's caches hold nothing of the program once one was copied. What is announced keeps the device's queue full; it is
    held by the page cache, not by the process.

    Args:
        batch_bytes: bytes of a batch as stored.
        prefetch_batches: finished batches that may wait; 0 where each is read when it is asked for.
        num_threads: threads that read; None for as many as there are cores for this process, but `most_threads`.
        most_threads: see `useful_threads`.
        far: whether batches are a request away.
        prefetch_bytes: bytes of finished batches that may wait.
        strings: whether samples hold byte strings or texts.
    """
    if prefetch_batches == 0:
        return Ahead(1, 0)
    if num_threads is None:
        # On a single core a thread of its own only adds the switching.
        cores = len(os.sched_getaffinity(0))
        num_threads = min(most_threads, cores) if cores > 1 else 0
    most_bytes, most_batches = (_FAR_BURST_BYTES, _MAX_FAR_BURST_BATCHES) if far else (_BURST_BYTES, _MAX_BURST_BATCHES)
    most_bytes = min(most_bytes, prefetch_bytes)
    most_batches = min(most_batches, _MAX_STRING_BURST_BATCHES) if strings else most_batches
    burst = int(min(prefetch_batches, most_batches, max(1, most_bytes // max(batch_bytes, 1.0))))
    hinted = int(min(_FAR_HINTED_BATCHES if far else _HINTED_BATCHES, max(2, _HINTED_BYTES // max(batch_bytes, 1.0))))
    return Ahead(burst, hinted, far, num_threads)


def useful_threads(
    sample_bytes: float, *, plain_strings: bool, in_memory: bool, unlocked: bool = COPIES_UNLOCKED
) -> int:
    """Returns how many threads may read before they only wait for each other.

    Byte strings and texts that are stored as they are come from memory with the interpreter's lock held, by whoever makes the
    batches as well as by another thread; large ones come faster by several from a device, and where they are copied without it.

    Args:
        sample_bytes: mean bytes of a sample.
        plain_strings: whether samples are such strings.
        in_memory: whether the dataset stays in memory once it was read.
        unlocked: whether the interpreter's lock is released where byte strings are copied from memory.
    """
    if not plain_strings:
        return 4
    if sample_bytes < _SMALL_BYTES:
        return 0 if in_memory else 1
    return 0 if in_memory and not unlocked else 4
