"""Blocks of stored files on a local disk, shared by all processes that use a directory, without locks between them.

What is read is compared with its sum each time, and the sum has in it whose block it is: so a write that was cut short, two
processes that took the same slot, a slot that was given away while it was read, and a damaged disk all come to the same, a block
that is not there. Data are written before the entry that vouches for them.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardload.errors import StorageError
from shardload.storage.cache_index import CacheIndex, Found
from shardload.storage.cache_writes import BlockWrites, gathered, places_in
from shardload.storage.slots import BLOCK_BYTES, CELL_BYTES, Blocks, Geometry, Places, blocks_in, is_whole, places_of
from shardload.storage.uses import ExpectedUses, joined_uses, used_at, used_next
from shardload.telemetry import CacheStats

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

_GRACE = 8
"""Part of an epoch by which ranks may be apart."""
_MAX_BLOCKS = 2048
"""Read at a time."""
_TOUCH_MILLISECONDS = 100
"""The last use of a block is noted no more exactly than this."""


class Missing(NamedTuple):
    """Bytes of a range that are not there."""

    number: int
    """Of the range."""
    start: int
    """First byte in the file."""
    stop: int


@dataclass(slots=True)
class _Coming:
    """Bytes of files that are to be kept."""

    keys: UInt64
    starts: Int64
    pieces: Sequence[NDArray[np.uint8]]
    written: bool = False


class Cache:
    """An open cache. Safe for several threads; belongs to the process that opened it.

    A file system that fails ends its use, with one warning: then nothing is found, and nothing is kept.
    """

    def __init__(self, path: str, limit_bytes: int) -> None:
        """Opens a cache, or makes it.

        Raises:
            StorageError: the directory is refused; see `CacheDirectory`.
        """
        self.process_id = os.getpid()
        self.path = path
        self.stats = CacheStats()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._coming: deque[_Coming] = deque()
        self._expected = ExpectedUses()
        self._index: CacheIndex | None = None
        try:
            self._index = CacheIndex(path, limit_bytes)
        except StorageError:
            raise
        except OSError as error:
            self._give_up(error)

    @property
    def held_bytes(self) -> int:
        """Bytes that its files take on the disk now, by whichever process; 0 after a failure."""
        index = self._index
        return 0 if index is None else index.held_bytes

    @property
    def data_bytes(self) -> int:
        """Bytes of blocks that it can hold; 0 after a failure."""
        index = self._index
        return 0 if index is None else Geometry(index.num_sets).data_bytes

    def will_need(self, keys: UInt64, starts: Int64, stops: Int64) -> NDArray[np.bool_]:
        """Tells of which ranges the index has all bytes, and has the operating system bring them from the disk.

        Args:
            keys: of their files: shape (ranges, 2).
            starts: first byte of each: shape (ranges,).
            stops: byte after the last; above it.

        Returns:
            bool of shape (ranges,).
        """
        index = self._usable()
        if index is None or not len(starts):
            return np.zeros(len(starts), dtype=np.bool_)
        blocks = blocks_in(starts, stops)
        found = index.find(places_of(keys[blocks.owners], blocks.numbers, index.num_sets))
        there = np.ones(len(starts), dtype=np.bool_)
        there[blocks.owners[found.words & blocks.cells != blocks.cells]] = False
        index.advise(found.slots[there[blocks.owners]])
        return there

    def told(self) -> CacheStats:
        """Returns what this process has done, and what the files take."""
        return replace(self.stats, held_bytes=self.held_bytes)

    def read(
        self, keys: UInt64, starts: Int64, targets: Sequence[NDArray[np.uint8]], *, needed: bool = True
    ) -> list[Missing]:
        """Fills what it has of ranges.

        Args:
            keys: of their files: shape (ranges, 2).
            starts: first byte of each: shape (ranges,).
            targets: for each, uint8 of shape (bytes,), contiguous and not empty: filled as far as its bytes are there.
            needed: whether somebody uses them now; False where they only lie between what is fetched.

        Returns:
            What is not there, range by range in their order, rising within each.
        """
        lengths = np.array([len(target) for target in targets], dtype=np.int64)
        groups = np.cumsum(-(-lengths // BLOCK_BYTES) + 1) // _MAX_BLOCKS
        edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(targets)]
        missing: list[Missing] = []
        for low, high in pairwise(edges):
            part = slice(low, high)
            missing += self._read_some(keys[part], starts[part], lengths[part], targets[part], low, needed)
        return missing

    def write(self, keys: UInt64, starts: Int64, pieces: Sequence[NDArray[np.uint8]]) -> None:
        """Keeps bytes of files, as far as there is room that nothing needs sooner.

        Args:
            keys: of the file of each piece: shape (pieces, 2).
            starts: first byte of each, of a cell: shape (pieces,).
            pieces: for each, uint8 of shape (bytes,), not empty: whole cells, or up to the end of the file.
        """
        if self._index is None or not len(pieces):
            return
        assert not (starts % CELL_BYTES).any()
        coming = _Coming(keys, starts, pieces)
        self._coming.append(coming)
        # Whoever has the lock writes for all that wait for it: many blocks take little longer than a few.
        with self._writing:
            while not coming.written:
                self._write_some()

    def count(self, num_hits: int, num_misses: int) -> None:
        """Counts blocks that were needed."""
        with self._lock:
            self.stats.num_hits += num_hits
            self.stats.num_misses += num_misses

    def drop(self, key: UInt64, start: int, stop: int) -> bool:
        """Gives up all blocks in which bytes of a range lie; returns whether there were any."""
        index = self._usable()
        if index is None or start >= stop:
            return False
        numbers = np.arange(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        slots = index.find(places_of(key, numbers, index.num_sets)).slots
        try:
            index.clear(slots[slots >= 0])
        except OSError as error:
            self._give_up(error)
        return bool((slots >= 0).any())

    def expect(self, keys: UInt64, starts: Int64, stops: Int64, current: Int64, following: Int64) -> None:
        """Takes in when ranges are used, and when after that: those that are not needed soon give way to others.

        Args:
            keys: of their files: shape (ranges, 2).
            starts: first byte of each: shape (ranges,).
            stops: byte after the last; above it.
            current: the position at which each is used the next time, counted over all epochs.
            following: the position at which it is used after that.
        """
        index = self._usable()
        if index is not None and len(starts):
            blocks = blocks_in(starts, stops)
            places = places_of(keys[blocks.owners], blocks.numbers, index.num_sets)
            with self._lock:
                self._expected.add(places.tags, current[blocks.owners], following[blocks.owners])

    def used(self, keys: UInt64, starts: Int64, stops: Int64) -> None:
        """Notes that ranges were used, whose bytes did not come from here; some may be here all the same.

        Args:
            keys: of their files: shape (ranges, 2).
            starts: first byte of each: shape (ranges,).
            stops: byte after the last; above it.
        """
        index = self._usable()
        if index is None or self._expected.usual is None or not len(starts):
            return
        blocks = blocks_in(starts, stops)
        places = places_of(keys[blocks.owners], blocks.numbers, index.num_sets)
        with self._lock:
            known = self._expected.knows(places.tags)
        if known.any():
            places = places[known]
            found = index.find(places)
            try:
                self._touch(index, places, found, found.slots >= 0)
            except OSError as error:
                self._give_up(error)

    def tell(self, job: int, cursor: int, num_positions: int) -> None:
        """Tells all processes how far a job has come; the positions of `expect` are its own from now on.

        Args:
            job: what tells it from others: above 0, the same in all its processes.
            cursor: the position up to which it has read what it needs, counted over all epochs.
            num_positions: of an epoch.
        """
        index = self._usable()
        if index is None:
            return
        try:
            with self._lock:
                self._expected.job = index.jobs.tell(job, cursor, num_positions // _GRACE)
                # What came only because it lies between two ranges takes what is free, and drives out nothing that is needed
                # at a known place: that is at most two epochs away, or is not needed on this node.
                self._expected.usual = cursor + 2 * num_positions
        except OSError as error:
            self._give_up(error)

    def _write_some(self) -> None:
        """Writes what came first, and as much of what came after it as is written at a time."""
        some = [self._coming.popleft()]
        try:
            room = _MAX_BLOCKS * BLOCK_BYTES - sum(map(len, some[0].pieces))
            while self._coming and room > 0:
                some.append(self._coming.popleft())
                room -= sum(map(len, some[-1].pieces))
            index = self._usable()
            if index is not None:
                self._write_together(index, some)
        except OSError as error:
            self._give_up(error)
        finally:
            for one in some:
                one.written = True

    def _write_together(self, index: CacheIndex, some: Sequence[_Coming]) -> None:
        keys, starts = np.concatenate([one.keys for one in some]), np.concatenate([one.starts for one in some])
        pieces = [piece for one in some for piece in one.pieces]
        blocks = blocks_in(starts, starts + np.array([len(piece) for piece in pieces]))
        content = gathered(blocks, starts, pieces)
        left = np.arange(len(blocks))
        while len(left):
            places = places_of(keys[blocks.owners[left]], blocks.numbers[left], index.num_sets)
            # A block that stands several times, with other cells each time, is written as often.
            first = np.sort(np.unique(places.tags, return_index=True)[1])
            part, places = blocks[left[first]], places[first]
            with self._lock:
                uses, current = self._uses_of(places)
            writes = BlockWrites(index, part, places, content[left[first]], uses, current)
            num_evicted = writes.carry_out()
            with self._lock:
                self.stats.num_evicted += num_evicted
            left = np.delete(left, first)

    def _uses_of(self, places: Places) -> tuple[UInt64, Int64]:
        """Returns when blocks that come are used next, and where they are used now."""
        expected = self._expected
        if expected.usual is None:
            unknown = np.uint64(used_at(time.time()))
        else:
            unknown = used_next(expected.job, np.array([expected.usual]))[0]
        taken = expected.take(places.tags)
        if taken is None:
            return np.full(len(places.tags), unknown), np.full(len(places.tags), -1)
        return np.where(taken[0] == 0, unknown, taken[0]), taken[1]

    def _usable(self) -> CacheIndex | None:
        """Returns the index, unless the cache is gone: someone may have removed the directory."""
        index = self._index
        if index is not None:
            try:
                index.check()
            except OSError as error:
                self._give_up(error)
                return None
        return index

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            if self.stats.num_failures:
                return
            self.stats.num_failures = 1
            # Other threads may be at its files: they stay open until those are done.
            self._index = None
        message = f"cache_dir={self.path!r} cannot be used, going on without it: {error.strerror or error}"
        warnings.warn(message, UserWarning, stacklevel=2)

    def _read_some(
        self,
        keys: UInt64,
        starts: Int64,
        lengths: Int64,
        targets: Sequence[NDArray[np.uint8]],
        first: int,
        needed: bool,
    ) -> list[Missing]:
        """Fills what it has of as many ranges as are read at a time; they are numbered from `first`."""
        stops = starts + lengths
        blocks = blocks_in(starts, stops)
        there = np.zeros(len(blocks), dtype=np.bool_)
        index = self._usable()
        if index is not None:
            places = places_of(keys[blocks.owners], blocks.numbers, index.num_sets)
            found = index.find(places)
            there = found.words & blocks.cells == blocks.cells
            try:
                content = self._checked(index, places, found, there)
                if needed:
                    self._touch(index, places, found, there)
            except OSError as error:
                self._give_up(error)
                there[:] = False
            else:
                flat = content.reshape(-1)
                for begin, target in zip(places_in(blocks, starts), targets, strict=True):
                    target[:] = flat[begin : begin + len(target)]
        return [] if there.all() else _missing(blocks, ~there, starts, stops, first)

    def _checked(self, index: CacheIndex, places: Places, found: Found, there: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Returns the blocks that are `there`; those that are not as they were written are taken from `there`."""
        held = np.flatnonzero(there)
        if len(held) == 0:
            return np.empty((len(there), BLOCK_BYTES), dtype=np.uint8)
        # Blocks that follow each other in the cache come by one read.
        content = index.read_blocks(found.slots[held], np.flatnonzero(np.diff(found.slots[held]) != 1) + 1)
        words, seeds = found.words[held].tolist(), places.seeds[held].tolist()
        for i, block, word, seed in zip(held.tolist(), content, words, seeds, strict=True):
            if not is_whole(word, seed, block):
                there[i] = False
                self._lost(index, places[i : i + 1], int(found.slots[i]), word)
        if len(held) < len(there):
            spread = np.empty((len(there), BLOCK_BYTES), dtype=np.uint8)
            spread[held] = content
            return spread
        return content

    def _lost(self, index: CacheIndex, place: Places, slot: int, word: int) -> None:
        """Gives up a block that does not have its sum, unless another has come there meanwhile."""
        found = index.find(place)
        if found.slots[0] == slot and found.words[0] == word:
            self.stats.num_damaged += 1
            index.clear(found.slots)

    def _touch(self, index: CacheIndex, places: Places, found: Found, there: NDArray[np.bool_]) -> None:
        """Notes that blocks were used, and when they are used next."""
        with self._lock:
            taken = self._expected.take(places.tags[there])
        if taken is not None:
            uses, current = taken
            told, mine = uses != 0, np.flatnonzero(there)
            joined = joined_uses(found.uses[mine[told]], uses[told], current[told])
            index.write_uses(found.slots[mine[told]], joined)
            there = there.copy()
            there[mine[told]] = False
        now = np.uint64(used_at(time.time()))
        # A job's own word on the next use says more than the last one.
        due = there & (found.uses >> np.uint64(56) == 0) & (found.uses + np.uint64(_TOUCH_MILLISECONDS) < now)
        index.write_uses(found.slots[due], np.full(int(due.sum()), now))


def _missing(blocks: Blocks, flags: NDArray[np.bool_], starts: Int64, stops: Int64, first: int) -> list[Missing]:
    """Returns the bytes of ranges in flagged blocks."""
    held = np.flatnonzero(flags)
    breaks = np.flatnonzero((np.diff(held) != 1) | (np.diff(blocks.owners[held]) != 0)) + 1
    lows, highs = held[[0, *breaks]], held[[*(breaks - 1), -1]]
    owners = blocks.owners[lows]
    begins = np.maximum(blocks.numbers[lows] * BLOCK_BYTES, starts[owners])
    ends = np.minimum((blocks.numbers[highs] + 1) * BLOCK_BYTES, stops[owners])
    return [Missing(*facts) for facts in zip((owners + first).tolist(), begins.tolist(), ends.tolist(), strict=True)]
