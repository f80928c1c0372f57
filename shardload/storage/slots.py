"""Where blocks of stored files may lie in a cache, and which of them gives way to another. Pure: no I/O.

A file is cut into blocks of 4 KiB, those into cells of 128 bytes: of a block any cells may be there, so that a record is fetched
with hardly more than its own bytes. 16 blocks in a row make a stripe. The cache is one file of slots of a block each, as many as
its limit allows, in sets of 32 rows of 16 slots: the n-th block of a stripe lies in the n-th slot of one row of one of two sets,
which a hash gives. So nothing is ever counted, searched for or made room for over all processes: the file cannot grow past its
limit, and what stands in a slot is told by its entry in the index: a tag, a sum with the cells, and the next use.

Two sets to choose from fill evenly (Azar, Broder, Karlin, Upfal: Balanced Allocations, 1994): a data set of nearly the limit
fits, where a single choice would turn away several percent of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from google_crc32c import extend
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

BLOCK_BYTES = 4096
CELL_BYTES = 128
COLUMNS = 16
"""Blocks of a stripe, and slots of a row."""
ROWS = 32
CHOICES = 2
TAG, WORD, USE = range(3)
"""The three numbers of an entry: who lies there; sum and cells; when it is used next."""
ENTRY_BYTES = 24
ALL_CELLS = (1 << (BLOCK_BYTES // CELL_BYTES)) - 1

_SET_SLOTS = ROWS * COLUMNS
_SET_BYTES = _SET_SLOTS * (BLOCK_BYTES + ENTRY_BYTES)
_ROOM = 64
"""One part in so many of the limit is left to the file system's own notes of the files."""
MIN_LIMIT_BYTES = 8 << 20

_NOTHING = bytes(BLOCK_BYTES)
_FULL = np.uint64(ALL_CELLS)
_LOW = np.uint64(0xFFFFFFFF)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_HALF, _STRIPE = np.uint64(32), np.uint64(COLUMNS.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How large a cache is."""

    num_sets: int

    @classmethod
    def within(cls, limit_bytes: int) -> Geometry:
        """Returns the largest whose files are no longer than a limit, which is at least `MIN_LIMIT_BYTES`."""
        return cls((limit_bytes - limit_bytes // _ROOM - (1 << 17)) // _SET_BYTES)

    @property
    def data_bytes(self) -> int:
        """Bytes of all slots."""
        return self.num_sets * _SET_SLOTS * BLOCK_BYTES

    @property
    def index_bytes(self) -> int:
        """Bytes of all entries."""
        return self.num_sets * _SET_SLOTS * ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks in which ranges of bytes lie, one range after another: arrays of shape (blocks,)."""

    owners: Int64
    """Which range each is of; they do not fall."""
    numbers: Int64
    """Its number in the file."""
    cells: UInt64
    """Its cells in which bytes of the range lie, cell n as bit n."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, part: NDArray[Any]) -> Blocks:
        return Blocks(self.owners[part], self.numbers[part], self.cells[part])


def blocks_in(starts: Int64, stops: Int64) -> Blocks:
    """Returns the blocks of ranges: half-open and none of them empty, int64 of shape (ranges,)."""
    first = starts // BLOCK_BYTES
    counts = -(-stops // BLOCK_BYTES) - first
    edges = np.cumsum(counts)
    owners = np.repeat(np.arange(len(starts)), counts)
    numbers = np.arange(len(owners)) + np.repeat(first - edges + counts, counts)
    cells = np.full(len(owners), _FULL)
    skipped = (starts - first * BLOCK_BYTES) // CELL_BYTES
    cells[edges - counts] = _FULL >> skipped.astype(np.uint64) << skipped.astype(np.uint64)
    left = -(-(-stops % BLOCK_BYTES - CELL_BYTES + 1) // CELL_BYTES)
    cells[edges - 1] &= _FULL >> left.astype(np.uint64)
    return Blocks(owners, numbers, cells)


def num_blocks(starts: Int64, stops: Int64) -> int:
    """Returns in how many blocks the bytes of ranges lie, those of each range counted by themselves."""
    return int((-(-stops // BLOCK_BYTES) - starts // BLOCK_BYTES)[stops > starts].sum())


@dataclass(frozen=True, slots=True)
class Places:
    """Where blocks may lie: arrays of shape (blocks,)."""

    tags: UInt64
    """What names each block in its entry; never 0."""
    seeds: UInt64
    """What its sum starts with, so that another block does not pass for it: below 2^32."""
    sets: Int64
    """The two sets of each: shape (blocks, 2)."""
    columns: Int64
    """The slot in a row."""

    def __getitem__(self, part: slice | NDArray[Any]) -> Places:
        return Places(self.tags[part], self.seeds[part], self.sets[part], self.columns[part])


def key_of(digest: bytes, num_bytes: int) -> UInt64:
    """Returns what stands for a file in the names of its blocks: uint64 of shape (2,).

    Args:
        digest: of its content, or of what else tells it from all others.
        num_bytes: its length: one who lies about it gets blocks of his own.
    """
    both = hashlib.sha256(digest + num_bytes.to_bytes(8, "little")).digest()
    return np.frombuffer(both[:16], dtype="<u8").astype(np.uint64)


def places_of(keys: UInt64, numbers: Int64, num_sets: int) -> Places:
    """Returns where blocks may lie.

    Args:
        keys: of the file of each: shape (blocks, 2), or (2,) for blocks of one file.
        numbers: of the blocks in their files: int64 of shape (blocks,).
        num_sets: of the cache.
    """
    low, high = keys[..., 0], keys[..., 1]
    blocks = numbers.astype(np.uint64)
    with np.errstate(over="ignore"):
        tags = _mixed(low + blocks * _ODD)
        hashes = _mixed(high + (blocks >> _STRIPE) * _ODD)
        seeds = _mixed(high ^ tags) & _LOW
    tags[tags == 0] = 1
    sets = np.empty((len(blocks), CHOICES), dtype=np.int64)
    sets[:, 0] = (hashes & _LOW) * np.uint64(num_sets) >> _HALF
    sets[:, 1] = (hashes >> _HALF) * np.uint64(num_sets) >> _HALF
    return Places(tags, seeds, sets, numbers % COLUMNS)


def _mixed(values: UInt64) -> UInt64:
    """Returns values with each bit depending on all of them (SplitMix64; Steele, Lea, Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64 = values ^ (values >> np.uint64(31))
    return mixed


def widened(start: int, stop: int, num_bytes: int) -> tuple[int, int]:
    """Returns the bytes of all cells in which those of a range lie, in a file of so many bytes."""
    return start // CELL_BYTES * CELL_BYTES, min(-(-stop // CELL_BYTES) * CELL_BYTES, num_bytes)


def pack_word(sum_: int, cells: int) -> int:
    """Returns sum and cells as one number; 0 stands for nothing."""
    return sum_ << 32 | cells


def added_cells(word: int, seed: int, cells: int, block: NDArray[np.uint8]) -> int:
    """Returns the word of a block to which cells have come.

    A sum covers the whole block, cells that are not there as zeros. Cells are put in without what is there being read: for equal
    lengths `crc(a ^ b) = crc(a) ^ crc(b) ^ crc(0)`.

    Args:
        word: the one before; 0 for an empty block.
        seed: of the block's sums.
        cells: those that come. Of those that are there the bytes are the same.
        block: uint8 of shape (BLOCK_BYTES,), zero outside of the cells that come.
    """
    there = word & ALL_CELLS
    if there & ~cells == 0:
        return pack_word(int(extend(seed, block)), cells)
    if there & cells:
        block = block.copy()
        block.reshape(-1, CELL_BYTES)[cell_flags(there)] = 0
    change = int(extend(0, block)) ^ int(extend(0, _NOTHING))
    return pack_word(word >> 32 ^ change, there | cells)


def is_whole(word: int, seed: int, block: NDArray[np.uint8]) -> bool:
    """Tells whether the cells of a block are as they were when its word was made; zeroes the others.

    Args:
        word: sum and cells.
        seed: of the block's sums.
        block: uint8 of shape (BLOCK_BYTES,), as read.
    """
    cells = word & ALL_CELLS
    if cells != ALL_CELLS:
        block.reshape(-1, CELL_BYTES)[~cell_flags(cells)] = 0
    return int(extend(seed, block)) == word >> 32


def cell_flags(cells: int) -> NDArray[np.bool_]:
    """Returns which cells are among some: bool of shape (cells of a block,)."""
    return np.unpackbits(np.array([cells], dtype="<u4").view(np.uint8), bitorder="little").astype(np.bool_)


def runs_of(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Returns the half-open runs in which flags are set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
