"""When a block's checksum is compared, and which blocks have been."""

from __future__ import annotations

import contextlib
import os
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Verify = Literal["auto", "always", "once", "off"]


def resolve_verify(verify: Verify, num_bytes: int) -> Verify:
    """Returns what `auto` means for a dataset of so many bytes now: `once` if it fits half the free memory.

    A dataset that fits stays in the page cache, so a block that was right stays right. One that does not is read from
    the device again and again, and each arrival is checked.
    """
    if verify != "auto":
        return verify
    return "once" if num_bytes <= free_memory_bytes() // 2 else "always"


def free_memory_bytes() -> int:
    """Returns the memory that can be had without swapping, page cache included; the control group's limit counts."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo") as facts:
        free = next(int(line.split()[1]) * 1024 for line in facts if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as limit:
        free = min(free, int(limit.read()))
    return free


class CheckedBlocks:
    """Which samples' blocks of one kind in one shard have been checked in this process: one bit a sample.

    Two threads may lose each other's bits; then a block is checked once more.
    """

    def __init__(self, num_samples: int) -> None:
        self._bits = np.zeros(-(-num_samples // 8), dtype=np.uint8)

    def missing(self, local_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns which of the samples have not been checked: bool of shape (samples,)."""
        unset: NDArray[np.bool_] = (self._bits[local_ids >> 3] >> (local_ids & 7).astype(np.uint8)) & np.uint8(1) == 0
        return unset

    def add(self, local_ids: NDArray[np.int64]) -> None:
        """Notes samples as checked."""
        np.bitwise_or.at(self._bits, local_ids >> 3, np.uint8(1) << (local_ids & 7).astype(np.uint8))
