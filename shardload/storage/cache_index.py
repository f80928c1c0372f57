"""The open files of a cache: what is looked up in its index, and what is read and written by slot."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shardload.storage.cache_directory import CacheDirectory
from shardload.storage.job_table import JobTable
from shardload.storage.mapping import MappedFiles
from shardload.storage.slots import BLOCK_BYTES, CHOICES, COLUMNS, ENTRY_BYTES, ROWS, TAG, USE, WORD, Geometry, Places

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Found:
    """What the index tells of blocks: arrays of shape (blocks,)."""

    slots: Int64
    """Where each lies; -1 where it is not there."""
    words: UInt64
    """Its sum and cells; 0 where it is not there."""
    uses: UInt64
    """When it is used next, as far as is known."""


class CacheIndex:
    """Entries and slots. The index is mapped to be looked at; it is changed by writes, to which a full disk is only an error.

    Other processes change both files at any time: an entry is a claim, which the sum of what is read bears out or not.
    """

    def __init__(self, path: str, limit_bytes: int) -> None:
        """Opens the files of a cache directory.

        Raises:
            StorageError: the directory is refused.
            OSError: the file system does not allow it.
        """
        self._directory = directory = CacheDirectory(path, limit_bytes)
        self._blocks, self._index, jobs = directory.descriptors
        geometry = Geometry(directory.ledger.num_sets)
        self.num_sets = geometry.num_sets
        self.jobs = JobTable(jobs)
        self._entries: UInt64 = self._map(geometry.index_bytes).view(np.uint64).reshape(-1, ROWS, COLUMNS, 3)

    def _map(self, num_bytes: int) -> NDArray[np.uint8]:
        """Returns the bytes of the index as they are in the file, uint8 of shape (bytes,), read-only."""
        try:
            # Where a page of it cannot be read zeros come, and no signal: then nothing is there.
            self._mapped = MappedFiles(np.array([num_bytes], dtype=np.int64))
        except OSError:
            # Some sandboxes have no way to find out whether that works.
            return np.frombuffer(mmap.mmap(self._index, num_bytes, prot=mmap.PROT_READ), dtype=np.uint8)
        self._mapped.map(0, self._index)
        memory = (ctypes.c_uint8 * num_bytes).from_address(int(self._mapped.addresses[0]))
        return np.frombuffer(memoryview(memory).cast("B"), dtype=np.uint8)

    @property
    def held_bytes(self) -> int:
        """Bytes that the files take on the disk now."""
        return sum(os.fstat(descriptor).st_blocks * 512 for descriptor in self._directory.descriptors)

    def check(self) -> None:
        """Raises OSError if someone has removed the files, or cut the index."""
        facts = os.fstat(self._index)
        if not facts.st_nlink or facts.st_size < self._entries.nbytes or not os.fstat(self._blocks).st_nlink:
            raise OSError("its files were removed or cut")

    def find(self, places: Places) -> Found:
        """Looks blocks up."""
        entries = self._entries[places.sets, :, places.columns[:, None]].reshape(-1, CHOICES * ROWS, 3)
        same = entries[:, :, TAG] == places.tags[:, None]
        position, every = same.argmax(axis=1), np.arange(len(entries))
        there, entries = same[every, position], entries[every, position]
        slots = self.slots(places.sets[every, position // ROWS], position % ROWS, places.columns)
        return Found(np.where(there, slots, -1), entries[:, WORD] * there, entries[:, USE] * there)

    def slots(self, sets: Int64, rows: Int64, columns: Int64) -> Int64:
        """Returns the numbers of slots."""
        return (sets * ROWS + rows) * COLUMNS + columns

    def candidates(self, sets: Int64, columns: Int64, num_blocks: int) -> UInt64:
        """Returns the entries among which runs of blocks have the choice.

        Args:
            sets: of each run: int64 of shape (runs, choices).
            columns: of the first block of each run: int64 of shape (runs,).
            num_blocks: of each run.

        Returns:
            uint64 of shape (runs, choices, rows, blocks, 3).
        """
        rows = np.arange(ROWS)[:, None]
        beside = (columns[:, None] + np.arange(num_blocks))[:, None, None, :]
        entries: UInt64 = self._entries[sets[:, :, None, None], rows, beside]
        return entries

    def read_blocks(self, slots: Int64, breaks: Int64) -> NDArray[np.uint8]:
        """Returns the content of slots, of which those between breaks lie one after another: uint8 of shape (slots, block)."""
        content = np.empty((len(slots), BLOCK_BYTES), dtype=np.uint8)
        flat = content.reshape(-1).data
        edges = [0, *breaks.tolist(), len(slots)]
        for (low, high), slot in zip(pairwise(edges), slots[edges[:-1]].tolist(), strict=True):
            part = flat[low * BLOCK_BYTES : high * BLOCK_BYTES]
            if os.preadv(self._blocks, [part], slot * BLOCK_BYTES) < len(part):
                raise OSError("its files were cut")
        return content

    def advise(self, slots: Int64) -> None:
        """Tells the operating system that slots will be read; a file system may refuse that."""
        if not len(slots):
            return
        edges = [0, *(np.flatnonzero(np.diff(slots) != 1) + 1).tolist(), len(slots)]
        with contextlib.suppress(OSError):
            for low, high in pairwise(edges):
                offset, size = int(slots[low]) * BLOCK_BYTES, (high - low) * BLOCK_BYTES
                os.posix_fadvise(self._blocks, offset, size, os.POSIX_FADV_WILLNEED)

    def write_content(self, slot: int, skipped: int, data: NDArray[np.uint8]) -> None:
        """Writes into slots one after another, from a byte of the first."""
        _write(self._blocks, data, slot * BLOCK_BYTES + skipped)

    def write_entries(self, slot: int, entries: UInt64) -> None:
        """Writes the entries of slots one after another: uint64 of shape (slots, 3)."""
        _write(self._index, entries, slot * ENTRY_BYTES)

    def write_uses(self, slots: Int64, uses: UInt64) -> None:
        """Notes when blocks are used next."""
        for slot, use in zip(slots.tolist(), uses.tolist(), strict=True):
            os.pwrite(self._index, use.to_bytes(8, "little"), slot * ENTRY_BYTES + 8 * USE)

    def clear(self, slots: Int64) -> None:
        """Frees slots."""
        for slot in slots.tolist():
            os.pwrite(self._index, bytes(ENTRY_BYTES), slot * ENTRY_BYTES)


def _write(descriptor: int, data: NDArray[np.uint8] | UInt64, offset: int) -> None:
    """Writes all of an array; a full disk says so at the second try."""
    view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)
