"""All shards mapped: what is read is copied from there, as many ranges a call as there are."""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardload.errors import StorageError
from shardload.format import layout
from shardload.format.external import ExternalFile
from shardload.format.table import ShardTable
from shardload.memory.byte_strings import bytes_address, keep_freed_memory, new_bytes
from shardload.memory.ranges import COPIES_UNLOCKED, SUMS, gather
from shardload.planner import join_ranges
from shardload.reader.busy import interpreter_busy
from shardload.reader.engines import MAX_GAP_BYTES, Ranges, ReadEngine
from shardload.reader.files import WORD_BYTES, OpenFiles, last_word
from shardload.reader.in_memory import InMemory
from shardload.reader.runs import RunReader
from shardload.storage import FileReader, MappedFiles
from shardload.storage.mapping import MAX_RANGES, in_one

Int64 = NDArray[np.int64]
UInt32 = NDArray[np.uint32]

_ASK_SECONDS = 0.02
"""Neither the interpreter nor the memory is looked at more often: the question takes up to 0.1 ms."""
_MIN_RESIDENCY = 0.9
"""Of shards less in memory the next read would wait for the device, with the interpreter's lock held."""

_QUIET_BYTES = 8 << 20
"""After so much that was read without waiting for the device others are taken where they lie, too, though not all of their shards
is in memory: of a shard of which only a part is read, no more than that ever will be.
"""

_MAX_HELD_BYTES = 4 << 20
"""More bytes than these are not copied with the interpreter's lock held: other threads wait for them."""

_MAGIC_WORD = np.frombuffer(layout.FOOTER_MAGIC, dtype=np.uint64)[0]


class MapEngine:
    """All shards mapped. Ranges are gathered by the compiled part; without it rows of one size by numpy, others by the kernel."""

    name = "map"

    def __init__(self, files: OpenFiles, table: ShardTable, stays: bool, spare_bytes: int = 0) -> None:
        """Describes the mapping.

        Args:
            files: the shards.
            table: what is known of them.
            stays: whether what is in memory stays there, so that shards which are there as a whole need no hints.
            spare_bytes: addresses for files that are added later.

        Raises:
            OSError: the system cannot do it.
        """
        self._mapped = MappedFiles(table.entries["num_bytes"].astype(np.int64), spare_bytes)
        # Where each file has its last word, and what it is: if it is still there, so is all before it.
        self._ends = self._mapped.addresses + table.entries["num_bytes"].astype(np.int64) - WORD_BYTES
        self._words = np.full(len(table), _MAGIC_WORD)
        self._num_shards = len(table)
        self._lock = threading.Lock()
        self._reads = ReadEngine(files, table)
        self.runs = RunReader(self._reads.file)
        """What reads long stretches in their order, for who asks it first."""
        self._stays = stays
        self._looked = np.zeros(len(table), dtype=np.bool_)
        self._asked = self._last_look = 0.0
        self._busy = False
        self._quiet_bytes = 0

    def read(self, ranges: Ranges, targets: Sequence[NDArray[np.uint8]]) -> None:
        """Copies ranges into targets."""
        if self._gathered(ranges, targets):
            return
        addresses = [(target.ctypes.data, target.nbytes) for target in targets if target.nbytes]
        if self._copied(ranges, addresses):
            return
        # Positioned reads tell what is wrong, and where; or it was nothing that lasts.
        self._reads.read(ranges, targets)

    def read_and_add_up(self, ranges: Ranges, targets: Sequence[NDArray[np.uint8]]) -> UInt32 | None:
        """Copies ranges as `read` does, and returns the CRC32C of each as it was copied: uint32 of shape (ranges,).

        None where that is not done by one call, or something is wrong with a file: then `read` is to be asked.
        """
        sums = np.empty(len(ranges), dtype=np.uint32)
        return sums if SUMS and self._gathered(ranges, targets, sums) else None

    def read_bytes(self, ranges: Ranges) -> list[bytes]:
        """Returns the bytes of each range, copied once: new byte strings are filled before anyone else sees them."""
        found = self.in_memory(ranges)
        if found is not None:
            values = found.values()
            if found.whole():
                return values
        keep_freed_memory()
        sizes = ranges.lengths.tolist()
        made = [new_bytes(size) for size in sizes]
        if self._copied(ranges, [(bytes_address(data), size) for data, size in zip(made, sizes, strict=True) if size]):
            return made
        return self._reads.read_bytes(ranges)

    def read_joined(self, ranges: Ranges) -> bytes:
        """Returns the bytes of all ranges, copied once as by `read_bytes`."""
        # Of memory they are joined with the interpreter's lock held, also where values are copied without it.
        found = self.in_memory(ranges) if self._idle() else None
        if found is not None:
            data = found.joined()
            if found.whole():
                return data
        size = int(ranges.lengths.sum())
        made = new_bytes(size)
        if self._copied(ranges, [(bytes_address(made), size)] if size else []):
            return made
        return self._reads.read_joined(ranges)

    def in_memory(self, ranges: Ranges) -> InMemory | None:
        """Returns where ranges lie in memory, if they do, and the interpreter is idle or not needed for copies."""
        if not len(ranges) or not (COPIES_UNLOCKED or self._idle()):
            return None
        quiet = self._quiet_bytes >= _QUIET_BYTES and self._map(ranges.shard_ids)
        if not quiet and not self.are_in_memory(ranges.shard_ids):
            return None
        found = self._mapped.in_memory(self._mapped.addresses[ranges.shard_ids] + ranges.starts, ranges.lengths)
        if found is None:
            return None
        data, starts = found
        keep_freed_memory()
        before = _num_waits()

        def whole() -> bool:
            self._note(ranges, before)
            return self._whole(ranges.shard_ids)

        return InMemory(data, starts, starts + ranges.lengths, whole)

    def will_need(self, ranges: Ranges) -> None:
        """Tells the operating system of all ranges at once."""
        if not self._map(ranges.shard_ids):
            self._reads.will_need(ranges)
            return
        if self._stays:
            for shard_id in np.unique(ranges.shard_ids[~self._looked[ranges.shard_ids]]).tolist():
                self._looked[shard_id] = True
                self._look(shard_id)
            ranges = ranges[self._mapped.residency[ranges.shard_ids] < 1]
        firsts, starts, lengths = join_ranges(
            ranges.shard_ids, ranges.starts, ranges.lengths, max_gap_bytes=MAX_GAP_BYTES
        )
        self._mapped.will_need(self._mapped.addresses[firsts] + starts, lengths)

    def add(self, others: Sequence[ExternalFile]) -> list[int]:
        """Adds files beside the shards; those for which there is no room are read by position."""
        numbers = self._reads.add(others)
        with self._lock, contextlib.suppress(OSError):
            known = len(self._mapped.mapped)
            sizes = {number: one.num_bytes for number, one in zip(numbers, others, strict=True) if number >= known}
            if sizes and min(sizes) == known:
                self._mapped.add(np.array(list(sizes.values()), dtype=np.int64))
                self._ends = np.append(self._ends, self._mapped.addresses[known:])
                self._words = np.append(self._words, np.zeros(len(sizes), dtype=np.uint64))
                self._looked = np.append(self._looked, np.zeros(len(sizes), dtype=np.bool_))
        return numbers

    def are_in_memory(self, shard_ids: Int64) -> bool:
        """Tells whether shards may be read without waiting for the device; takes a new look now and then."""
        if not self._map(shard_ids):
            return False
        absent = shard_ids[self._mapped.residency[shard_ids] < _MIN_RESIDENCY]
        if len(absent) and time.monotonic() - self._last_look > _ASK_SECONDS:
            self._last_look = time.monotonic()
            self._look(int(absent[0]))
        return not len(absent)

    def _note(self, ranges: Ranges, num_waits: int) -> None:
        """Notes a read of ranges by this thread, which before that had waited so often."""
        self._quiet_bytes = 0 if _num_waits() > num_waits else self._quiet_bytes + int(ranges.lengths.sum())

    def _look(self, shard_id: int) -> None:
        """Looks what part of a shard is in memory, unless its file cannot be opened any more."""
        with contextlib.suppress(StorageError):
            file = self._reads.file(shard_id)
            if isinstance(file, FileReader):
                self._mapped.look(shard_id, file.descriptor)

    def _idle(self) -> bool:
        """Tells whether the interpreter's lock may be held for a while; asks anew now and then."""
        if time.monotonic() - self._asked > _ASK_SECONDS:
            self._asked = time.monotonic()
            self._busy = interpreter_busy()
        return not self._busy

    def _map(self, shard_ids: Int64) -> bool:
        """Maps the shards that are not yet; returns False where the system has no room, though it had for the addresses."""
        if len(shard_ids) and int(shard_ids.max()) >= len(self._ends):
            return False
        missing = ~self._mapped.mapped[shard_ids]
        if missing.any():
            for shard_id in np.unique(shard_ids[missing]).tolist():
                file = self._reads.file(shard_id)
                if not isinstance(file, FileReader):
                    raise TypeError(f"{file.dataset}: {file.name} is not on a file system, so that it cannot be mapped")
                if shard_id >= self._num_shards:
                    self._note_end(shard_id, file)
                try:
                    self._mapped.map(shard_id, file.descriptor)
                except OSError:
                    return False
        return True

    def _note_end(self, number: int, file: FileReader) -> None:
        """Notes the last word of a file that is no shard: what comes behind it is zero, and would be missed by nobody."""
        place, word = last_word(file)
        with self._lock:
            self._ends[number], self._words[number] = self._mapped.addresses[number] + place, word

    def _gathered(self, ranges: Ranges, targets: Sequence[NDArray[np.uint8]], sums: UInt32 | None = None) -> bool:
        """Copies ranges by reading mapped addresses; returns whether all is there, from files that have kept their length.

        Args:
            ranges: what is read.
            targets: where it goes.
            sums: filled with the CRC32C of each range, only if the compiled part can do it.
        """
        if not len(ranges) or not self._map(ranges.shard_ids):
            return False
        starts = self._mapped.addresses[ranges.shard_ids] + ranges.starts
        if COPIES_UNLOCKED:
            done = self._gathered_by_call(ranges, starts, targets, sums)
        else:
            done = self._gathered_by_numpy(ranges, starts, targets)
        return done and self._whole(ranges.shard_ids)

    def _gathered_by_call(
        self, ranges: Ranges, starts: Int64, targets: Sequence[NDArray[np.uint8]], sums: UInt32 | None
    ) -> bool:
        found = self._mapped.in_memory(starts, ranges.lengths)
        if found is None:
            return False
        data, starts = found
        pieces, stops, first = in_one(targets), starts + ranges.lengths, 0
        ends = np.searchsorted(np.cumsum(ranges.lengths), np.cumsum([len(piece) for piece in pieces]), side="right")
        for piece, last in zip(pieces, ends.tolist(), strict=True):
            part = slice(first, last)
            gather(data, starts[part], stops[part], piece, None if sums is None else sums[part])
            first = last
        return True

    def _gathered_by_numpy(self, ranges: Ranges, starts: Int64, targets: Sequence[NDArray[np.uint8]]) -> bool:
        size = int(ranges.lengths[0])
        if (ranges.lengths != size).any():
            return False
        return self._mapped.gather(starts, size, targets) or (
            0 < size * len(ranges) <= _MAX_HELD_BYTES
            and self.are_in_memory(ranges.shard_ids)
            and self._idle()
            and self._mapped.gather_anywhere(starts, size, targets)
        )

    def _copied(self, ranges: Ranges, targets: list[tuple[int, int]]) -> bool:
        """Copies ranges to addresses; returns whether all is there, from files that have kept their length."""
        if not self._map(ranges.shard_ids):
            return False
        starts, before = self._mapped.addresses[ranges.shard_ids] + ranges.starts, _num_waits()
        done = self._copy(starts, ranges.lengths, targets)
        self._note(ranges, before)
        return done and self._whole(ranges.shard_ids)

    def _whole(self, shard_ids: Int64) -> bool:
        """Returns whether shards still have their ends.

        Of the last page of a file that was cut the rest reads as zeros; then its footer does so too, or is out of reach.
        """
        touched = np.zeros(len(self._ends), dtype=np.bool_)
        touched[shard_ids] = True
        # By number: while another thread adds files, there may be more of one than of the other.
        numbers = np.flatnonzero(touched)
        ends, expected = self._ends[numbers], self._words[numbers]
        words = self._mapped.words(ends)
        if words is not None:
            return bool((words == expected).all())
        copied = np.empty(len(ends), dtype=np.uint64)
        whole = self._copy(ends, np.full(len(ends), WORD_BYTES), [(copied.ctypes.data, copied.nbytes)])
        return whole and bool((copied == expected).all())

    def _copy(self, starts: Int64, lengths: Int64, targets: list[tuple[int, int]]) -> bool:
        position, places = 0, np.cumsum([0, *(size for _, size in targets)])
        for first in range(0, len(starts), MAX_RANGES):
            part = slice(first, first + MAX_RANGES)
            stop = position + int(lengths[part].sum())
            low, high = np.searchsorted(places, [position, stop], side="right") - 1
            pieces = []
            for i in range(int(low), min(int(high) + 1, len(targets))):
                address, size = targets[i]
                skip = max(0, position - int(places[i]))
                pieces.append((address + skip, min(size, stop - int(places[i])) - skip))
            pieces = [(address, size) for address, size in pieces if size]
            if pieces and self._mapped.read(starts[part], lengths[part], pieces) != stop - position:
                return False
            position = stop
        return True


def _num_waits() -> int:
    """Returns how often this thread has waited for a page of a file: its major faults."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
