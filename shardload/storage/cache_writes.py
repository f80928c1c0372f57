"""How blocks come into a cache: where they go is planned for all of them together, and what gives way is named first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shardload.storage.cache_index import CacheIndex
from shardload.storage.slots import (
    BLOCK_BYTES,
    CELL_BYTES,
    ROWS,
    TAG,
    USE,
    WORD,
    Blocks,
    Places,
    added_cells,
    cell_flags,
    runs_of,
)
from shardload.storage.uses import OUTSIDE, SPLIT, Jobs, choose_rows, joined_uses, waits_of

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]


class BlockWrites:
    """Blocks that are to be kept, with the cells that are at hand. For one thread of a process at a time."""

    def __init__(
        self,
        index: CacheIndex,
        blocks: Blocks,
        places: Places,
        content: NDArray[np.uint8],
        uses: UInt64,
        current: Int64,
    ) -> None:
        """Describes them.

        Args:
            index: of the cache.
            blocks: which.
            places: where they may lie.
            content: uint8 of shape (blocks, BLOCK_BYTES): zero outside of the cells at hand.
            uses: when each is used next: shape (blocks,).
            current: the position at which it is used now; below 0 if nobody has told of it.
        """
        self._index = index
        self._blocks = blocks
        self._places = places
        self._content = content
        self._uses = uses
        self._current = current
        self._jobs: Jobs = index.jobs.read()
        self._now = time.time()
        # What no known order uses has just been used, and comes before what was used as lately.
        self._own = np.where(uses >> np.uint64(56) == 0, -1.0, waits_of(uses, self._jobs, self._now))

    def carry_out(self) -> int:
        """Writes them. Returns how many others gave way."""
        found = self._index.find(self._places)
        present = found.slots >= 0
        if present.any():
            uses = joined_uses(found.uses, self._uses, self._current)
            # Another process may have brought them in the meantime, not knowing who needs them.
            told = present & (self._current >= 0)
            self._index.write_uses(found.slots[told], uses[told])
            more = present & (self._blocks.cells & ~found.words != 0)
            for i in np.flatnonzero(more).tolist():
                self._add_cells(i, int(found.slots[i]), int(found.words[i]), uses[i])
        num_evicted = 0
        absent = found.slots < 0
        # The same block may stand twice: what comes second is put in the next time.
        absent[np.delete(np.arange(len(absent)), np.unique(self._places.tags, return_index=True)[1])] = False
        waiting = self._runs(np.flatnonzero(absent))
        while waiting:
            num_blocks, firsts = waiting.popitem()
            split, again, evicted = self._place(firsts, num_blocks)
            num_evicted += evicted
            half = num_blocks // 2
            for size, some in ((half, split), (num_blocks - half, split + half), (num_blocks, again)):
                if len(some):
                    waiting[size] = np.concatenate([waiting.get(size, some[:0]), some])
        return num_evicted

    def _runs(self, numbers: Int64) -> dict[int, Int64]:
        """Returns runs of blocks side by side in a stripe that are used next together: length -> where those of it begin."""
        if not len(numbers):
            return {}
        apart = (np.diff(numbers) != 1) | (np.diff(self._blocks.owners[numbers]) != 0)
        # A row that gives way is the place of something needed as late in each of its columns.
        apart |= self._uses[numbers[1:]] != self._uses[numbers[:-1]]
        breaks = np.flatnonzero(apart | (self._places.columns[numbers[1:]] == 0)) + 1
        edges = np.concatenate([[0], breaks, [len(numbers)]])
        firsts, lengths = numbers[edges[:-1]], np.diff(edges)
        return {int(length): firsts[lengths == length] for length in np.unique(lengths)}

    def _place(self, firsts: Int64, num_blocks: int) -> tuple[Int64, Int64, int]:
        """Puts runs of one length where they belong.

        Returns:
            Those that have to be split; those whose row another one has just got; how many blocks gave way.
        """
        sets, columns = self._places.sets[firsts], self._places.columns[firsts]
        entries = self._index.candidates(sets, columns, num_blocks)
        used = entries[..., TAG] != 0
        waits = np.where(used, waits_of(entries[..., USE], self._jobs, self._now), np.inf)
        own = self._own[firsts[:, None] + np.arange(num_blocks)].min(axis=1)
        chosen = choose_rows(waits, own)
        taken = np.flatnonzero(chosen >= 0)
        choices, rows = chosen[taken] // ROWS, chosen[taken] % ROWS
        own_sets = sets[taken, choices]
        _, mine = np.unique(own_sets * ROWS + rows, return_index=True)
        slots = self._index.slots(own_sets, rows, columns[taken])
        evicted = used[taken, choices, rows]
        for i in mine.tolist():
            self._put(int(firsts[taken[i]]), num_blocks, int(slots[i]), bool(evicted[i].any()))
        assert ((chosen >= 0) | (chosen == SPLIT) | (chosen == OUTSIDE)).all()
        return firsts[chosen == SPLIT], firsts[np.delete(taken, mine)], int(evicted[mine].sum())

    def _put(self, first: int, num_blocks: int, slot: int, evicts: bool) -> None:
        """Writes new blocks into slots side by side. Nobody's entry vouches for the slots meanwhile."""
        part = slice(first, first + num_blocks)
        entries = np.zeros((num_blocks, 3), dtype=np.uint64)
        if evicts:
            self._index.write_entries(slot, entries)
        self._index.write_content(slot, 0, self._content[part])
        seeds, cells = self._places.seeds[part].tolist(), self._blocks.cells[part].tolist()
        entries[:, TAG], entries[:, USE] = self._places.tags[part], self._uses[part]
        entries[:, WORD] = [
            added_cells(0, seed, some, block) for seed, some, block in zip(seeds, cells, self._content[part])
        ]
        self._index.write_entries(slot, entries)

    def _add_cells(self, i: int, slot: int, word: int, use: np.uint64) -> None:
        """Adds cells to a block that is there with others."""
        cells = int(self._blocks.cells[i])
        for low, high in runs_of(cell_flags(cells)):
            low, high = low * CELL_BYTES, high * CELL_BYTES
            self._index.write_content(slot, low, self._content[i, low:high])
        word = added_cells(word, int(self._places.seeds[i]), cells, self._content[i])
        self._index.write_entries(slot, np.array([self._places.tags[i], word, use], dtype=np.uint64))


def gathered(blocks: Blocks, starts: Int64, pieces: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Returns the blocks in which pieces of files lie, zero outside of them: uint8 of shape (blocks, BLOCK_BYTES)."""
    content = np.zeros(len(blocks) * BLOCK_BYTES, dtype=np.uint8)
    for begin, piece in zip(places_in(blocks, starts), pieces, strict=True):
        content[begin : begin + len(piece)] = piece
    return content.reshape(-1, BLOCK_BYTES)


def places_in(blocks: Blocks, starts: Int64) -> Iterator[int]:
    """Returns where ranges begin in the content of their blocks, in bytes."""
    firsts = np.searchsorted(blocks.owners, np.arange(len(starts)))
    return iter((firsts * BLOCK_BYTES + starts % BLOCK_BYTES).tolist())
