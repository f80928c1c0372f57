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
        left = self._fill(np.flatnonzero(~present))
        # A row that gives way is the place of something needed as late in each of its columns.
        waiting, num_evicted = self._runs(left, self._uses[left[1:]] != self._uses[left[:-1]]), 0
        while waiting:
            num_blocks, firsts = waiting.popitem()
            split, again, evicted = self._place(firsts, num_blocks)
            num_evicted += evicted
            half = num_blocks // 2
            for size, some in ((half, split), (num_blocks - half, split + half), (num_blocks, again)):
                if len(some):
                    waiting[size] = np.concatenate([waiting.get(size, some[:0]), some])
        return num_evicted

    def _fill(self, numbers: Int64) -> Int64:
        """Puts blocks into rows of free slots, whenever each is used next; returns those for whose run there is no such row."""
        waiting, left = self._runs(numbers), []
        while waiting:
            num_blocks, firsts = waiting.popitem()
            chosen = choose_rows(self._waits(firsts, num_blocks)[0], np.full(len(firsts), np.inf))
            free = chosen >= 0
            left.append((firsts[~free, None] + np.arange(num_blocks)).reshape(-1))
            mine, again = self._taken(firsts[free], chosen[free])
            self._put(firsts[free][mine], num_blocks, self._slots(firsts[free][mine], chosen[free][mine]))
            if len(again):
                waiting[num_blocks] = again
        return np.sort(np.concatenate([numbers[:0], *left]))

    def _runs(self, numbers: Int64, apart: NDArray[np.bool_] | None = None) -> dict[int, Int64]:
        """Returns runs of blocks side by side in a stripe: length -> where those of it begin.

        Args:
            numbers: of the blocks, rising.
            apart: between which of them a run ends in any case.
        """
        if not len(numbers):
            return {}
        ends = (np.diff(numbers) != 1) | (np.diff(self._blocks.owners[numbers]) != 0)
        # Blocks between two of them may be among others that are written before or after these.
        ends |= (np.diff(self._blocks.numbers[numbers]) != 1) | (self._places.columns[numbers[1:]] == 0)
        breaks = np.flatnonzero(ends if apart is None else ends | apart) + 1
        edges = np.concatenate([[0], breaks, [len(numbers)]])
        firsts, lengths = numbers[edges[:-1]], np.diff(edges)
        return {int(length): firsts[lengths == length] for length in np.unique(lengths)}

    def _place(self, firsts: Int64, num_blocks: int) -> tuple[Int64, Int64, int]:
        """Puts runs of one length where they belong.

        Returns:
            Those that have to be split; those whose row another one has just got; how many blocks gave way.
        """
        waits, used = self._waits(firsts, num_blocks)
        own = self._own[firsts[:, None] + np.arange(num_blocks)].min(axis=1)
        chosen = choose_rows(waits, own)
        assert ((chosen >= 0) | (chosen == SPLIT) | (chosen == OUTSIDE)).all()
        taken = np.flatnonzero(chosen >= 0)
        mine, again = self._taken(firsts[taken], chosen[taken])
        taken = taken[mine]
        slots = self._slots(firsts[taken], chosen[taken])
        evicted = used[taken, chosen[taken] // ROWS, chosen[taken] % ROWS]
        for slot in slots[evicted.any(axis=1)].tolist():
            self._index.write_entries(slot, np.zeros((num_blocks, 3), dtype=np.uint64))
        self._put(firsts[taken], num_blocks, slots)
        return firsts[chosen == SPLIT], again, int(evicted.sum())

    def _waits(self, firsts: Int64, num_blocks: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Returns how long what lies where runs may go will wait, infinite for free slots, and which slots are not free.

        Returns:
            Arrays of shape (runs, choices, rows, blocks of a run).
        """
        entries = self._index.candidates(self._places.sets[firsts], self._places.columns[firsts], num_blocks)
        used = entries[..., TAG] != 0
        waits = np.full(used.shape, np.inf)
        # A cache that fills up has few.
        waits[used] = waits_of(entries[used][:, USE], self._jobs, self._now)
        return waits, used

    def _taken(self, firsts: Int64, chosen: Int64) -> tuple[Int64, Int64]:
        """Returns which runs get the row that they chose, and those that chose one which another one gets."""
        sets = self._places.sets[firsts, chosen // ROWS]
        # One of them a row, though their columns may be others: those that are left look once more.
        _, mine = np.unique(sets * ROWS + chosen % ROWS, return_index=True)
        return mine, np.delete(firsts, mine)

    def _slots(self, firsts: Int64, chosen: Int64) -> Int64:
        sets = self._places.sets[firsts, chosen // ROWS]
        return self._index.slots(sets, chosen % ROWS, self._places.columns[firsts])

    def _put(self, firsts: Int64, num_blocks: int, slots: Int64) -> None:
        """Writes runs of new blocks into slots side by side, for which no entry vouches meanwhile."""
        numbers = firsts[:, None] + np.arange(num_blocks)
        entries = np.empty((len(firsts), num_blocks, 3), dtype=np.uint64)
        entries[..., TAG], entries[..., USE] = self._places.tags[numbers], self._uses[numbers]
        facts = self._places.seeds[numbers].reshape(-1).tolist(), self._blocks.cells[numbers].reshape(-1).tolist()
        words = [
            added_cells(0, seed, cells, self._content[number])
            for number, seed, cells in zip(numbers.reshape(-1).tolist(), *facts, strict=True)
        ]
        entries[..., WORD] = np.array(words, dtype=np.uint64).reshape(-1, num_blocks)
        for first, slot, mine in zip(firsts.tolist(), slots.tolist(), entries, strict=True):
            self._index.write_content(slot, 0, self._content[first : first + num_blocks])
            self._index.write_entries(slot, mine)

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
