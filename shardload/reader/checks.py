"""When a block's checksum is compared, and which blocks have been."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_PAGE_BITS = 1 << 24
_MOST_BITS = 1 << 36
"""Blocks for whose bits addresses are taken at once: 8 GiB, as 7 * 10^10 samples have."""
_BITS_SET = np.array([number.bit_count() for number in range(256)], dtype=np.uint8)

Verify = Literal["auto", "always", "once", "off"]


def resolve_verify(verify: Verify, num_bytes: int | None) -> Verify:
    """Returns what `auto` means for a dataset of so many bytes now: `once` if it fits half the free memory.

    A dataset that fits stays in the page cache, so a block that was right stays right. One that does not is read from
    the device again and again, and each arrival is checked; so is one that is not on a file system (None).
    """
    if verify != "auto":
        return verify
    return "once" if num_bytes is not None and fits_in_memory(num_bytes) else "always"


def fits_in_memory(num_bytes: int) -> bool:
    """Tells whether a dataset of so many bytes stays in the page cache once it was read: in half of what is free."""
    return num_bytes <= free_memory_bytes() // 2


def free_memory_bytes() -> int:
    """Returns the memory that can be had without swapping, page cache included; the control group's limit counts."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo") as facts:
        free = next(int(line.split()[1]) * 1024 for line in facts if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as limit:
        free = min(free, int(limit.read()))
    return free


class CheckedBlocks:
    """Which blocks of one kind have been checked in this process: one bit a block.

    Memory is taken where a block is noted: how many blocks there are is only somebody's word. Where their number is known
    addresses are taken for the bits of all, so that a batch from anywhere among 10^9 is looked up at once, and its bits cost no
    zeros but those of the system's pages that they lie in. Else memory comes by pages of bits.

    Two threads may lose each other's bits; then a block is checked once more.
    """

    def __init__(self, num_blocks: int | None = None) -> None:
        """Notes none.

        Args:
            num_blocks: how many there are, of which each is noted some day; None where nobody knows.
        """
        self._pages: dict[int, NDArray[np.uint8]] = {}
        self._page_bits = _PAGE_BITS
        if num_blocks is not None and _PAGE_BITS < num_blocks <= _MOST_BITS:
            # Where the system has no room for so many addresses, or is told to promise none, pages do as well.
            with contextlib.suppress(OSError):
                self._pages[0], self._page_bits = _zeros_at_need(-(-num_blocks // 8)), num_blocks
        self._num_blocks = num_blocks
        self._num_added = 0
        self._complete = False

    def due(self, numbers: NDArray[np.int64], verify: Verify) -> NDArray[np.bool_]:
        """Returns which blocks are to be checked now: bool of shape (blocks,)."""
        return self.missing(numbers) if verify == "once" else np.full(len(numbers), verify == "always")

    def missing(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns which of the blocks have not been checked: bool of shape (blocks,)."""
        if self._complete:
            return np.zeros(len(numbers), dtype=np.bool_)
        unset = np.ones(len(numbers), dtype=np.bool_)
        for page, slots, bits in self._by_page(numbers):
            if page in self._pages:
                set_ = self._pages[page][bits >> 3] >> (bits & 7).astype(np.uint8)
                unset[slots] = set_ & np.uint8(1) == 0
        return unset

    def add(self, numbers: NDArray[np.int64]) -> None:
        """Notes blocks as checked."""
        if not len(numbers):
            return
        for page, _, bits in self._by_page(numbers):
            flags = self._pages.get(page)
            if flags is None:
                flags = self._pages[page] = np.zeros(self._page_bytes(page), dtype=np.uint8)
            np.bitwise_or.at(flags, bits >> 3, np.uint8(1) << (bits & 7).astype(np.uint8))
        self._num_added += len(numbers)
        if self._num_blocks is not None and self._num_added >= self._num_blocks:
            # Blocks that were noted twice, or got lost, are found by counting, which is done again after some more.
            num_noted = sum(_num_set(flags) for flags in self._pages.values())
            self._complete = num_noted == self._num_blocks
            self._num_added = num_noted - self._num_blocks // 16

    def _page_bytes(self, page: int) -> int:
        """Returns how many bytes a page takes: the last one's bits end with the blocks, and so does the work of counting them."""
        if self._num_blocks is None:
            return _PAGE_BITS // 8
        return min(_PAGE_BITS, -(-(self._num_blocks - page * _PAGE_BITS) // 8) * 8) // 8

    def _by_page(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, Any, NDArray[np.int64]]]:
        """Yields the pages of some blocks, with the slots of the blocks and their bits in the page."""
        if not len(numbers):
            return
        first = int(numbers.min()) // self._page_bits
        if first == int(numbers.max()) // self._page_bits:
            yield first, slice(None), numbers - first * self._page_bits
            return
        pages = numbers // self._page_bits
        for page in np.unique(pages).tolist():
            slots = np.flatnonzero(pages == page)
            yield page, slots, numbers[slots] - page * self._page_bits


def _zeros_at_need(num_bytes: int) -> NDArray[np.uint8]:
    """Returns zeros that take memory where they are written.

    Raises:
        OSError: the system has no room for so many addresses.
    """
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Bits are set all over it: of large pages each would take 2 MiB, and the time to clear them, for a single block.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)


def _num_set(flags: NDArray[np.uint8]) -> int:
    """Returns the number of bits that are set."""
    step = _PAGE_BITS // 8
    return sum(int(_BITS_SET[flags[at : at + step]].sum(dtype=np.int64)) for at in range(0, len(flags), step))
