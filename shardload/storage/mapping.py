"""Files mapped side by side, read and hinted in bulk.

A file that has shrunk or a failing device answers an access to its mapped memory by a signal. Bytes are copied in one of two ways
that survive it: where they lie, while the signal is caught (`guard`), by the compiled part (`in_memory`) or, rows of one size, by
numpy (`gather`); and anything by asking the kernel (process_vm_readv on the process itself, a thousand ranges a call), which then
comes back short. A row of 4 KiB takes numpy 0.43 us and the kernel 0.95, where a loop of preadv takes 1.7.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.storage.guard import catches_faults, watch_faults
from shardload.storage.libc import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    libc,
    mapped,
)
from shardload.storage.residency import resident_fraction

Int64 = NDArray[np.int64]

MAX_RANGES = 1024
"""Ranges one call takes (IOV_MAX)."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LARGE_PAGE_BYTES = 2 << 20
"""What the system maps by one entry, where addresses and file start on it and the page cache has the bytes in one piece, as of what
was written or read in order. A gather of rows of 4 KiB then takes 0.36 us a row instead of 0.45, the first one 0.4, not 0.55."""
_MADV_RANDOM, _MADV_WILLNEED, _MADV_DONTNEED = 1, 3, 4
_SYS_PROCESS_MADVISE = 440  # the same number on every architecture
_MIN_UNIT_BYTES = 256
"""Below this a gather of units takes longer than the kernel's copy of whole ranges."""
_PIECE_BYTES = 128 << 10
"""So many bytes are copied at a time where a copy is made twice: both fit a processor's own cache."""
_MAX_TABLE_BYTES = 64 << 20
_MAX_AHEAD_BYTES = 128 << 10
"""The kernel reads no more of an announced range than its device's read-ahead, which is 128 KiB unless it was changed."""
_MAX_BYTES = 1 << 46
_MAX_MAPS = 65_530  # the kernel's default of vm.max_map_count


class MappedFiles:
    """Read-only mappings of many files in one reserved range of addresses. Safe for several threads.

    Belongs to the process that made it. Descriptors are not kept.
    """

    def __init__(self, sizes: Int64, spare_bytes: int = 0) -> None:
        """Reserves addresses; maps nothing yet.

        Args:
            sizes: bytes of each file: int64 of shape (files,).
            spare_bytes: addresses that are reserved for files added later.

        Raises:
            OSError: the system lacks the calls, or has no room for so many files or bytes.
        """
        _probe()
        _check_count(len(sizes))
        if float(sizes.sum(dtype=np.float64)) + spare_bytes > _MAX_BYTES:
            raise OSError("the files are longer than the addresses of a process reach")
        spans = _aligned(sizes, _page_bytes(sizes))
        self._used_bytes = max(int(spans.sum()), _PAGE_BYTES)
        self._num_bytes = self._used_bytes + -(-spare_bytes // _PAGE_BYTES) * _PAGE_BYTES
        flags, reserved_bytes = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, self._num_bytes + _LARGE_PAGE_BYTES
        reserved = mapped(None, reserved_bytes, PROT_NONE, flags, -1)
        weakref.finalize(self, libc().munmap, reserved, reserved_bytes).atexit = False
        self._start = int(_aligned(reserved, _LARGE_PAGE_BYTES))
        self.addresses: Int64 = np.cumsum(spans, dtype=np.int64) - spans + self._start
        """Where each file starts: int64 of shape (files,)."""
        self.mapped = np.zeros(len(sizes), dtype=np.bool_)
        """Which files are mapped: bool of shape (files,)."""
        self.residency = np.zeros(len(sizes))
        """What part of each file was in memory at the last look, 0 to 1: float64 of shape (files,)."""
        self._sizes = sizes
        self._spans = spans
        self._process_id = os.getpid()
        self._descriptor: int | None = None
        self._num_touched = 0
        self._lock = threading.Lock()
        # Slices of it are byte strings at once. Views of it are objects that Python's cyclic collector counts: by thousands they
        # set it off, which then looks through all objects of the process.
        self._memory: Any = (ctypes.c_char * self._num_bytes).from_address(self._start)
        self._views: dict[int, NDArray[np.uint8]] = {}
        watch_faults(self)

    def add(self, sizes: Int64) -> None:
        """Adds files behind those that are there, of the given bytes.

        Raises:
            OSError: there is no room for them; none is added.
        """
        unit = _page_bytes(sizes)
        spans = _aligned(sizes, unit)
        with self._lock:
            _check_count(len(self._sizes) + len(sizes))
            used_bytes = int(_aligned(self._used_bytes, unit))
            if float(spans.sum(dtype=np.float64)) > self._num_bytes - used_bytes:
                raise OSError("the files are longer than the addresses that were reserved for them")
            first = self._start + used_bytes
            self._used_bytes = used_bytes + int(spans.sum())
            self._sizes, self._spans = np.append(self._sizes, sizes), np.append(self._spans, spans)
            self.addresses = np.append(self.addresses, np.cumsum(spans) - spans + first)
            self.residency = np.append(self.residency, np.zeros(len(sizes)))
            self.mapped = np.append(self.mapped, np.zeros(len(sizes), dtype=np.bool_))

    def map(self, number: int, descriptor: int) -> None:
        """Maps a file of the size that was given for it. The descriptor may be closed afterwards.

        Raises:
            OSError: the system has no room.
        """
        with self._lock:
            if self.mapped[number]:
                return
            address, size = int(self.addresses[number]), int(self._sizes[number])
            mapped(address, size, PROT_READ, MAP_SHARED | MAP_FIXED, descriptor)
            # What is needed is announced by range: reading around a fault would fetch what nobody asked for.
            libc().madvise(address, size, _MADV_RANDOM)
            self.mapped[number] = True

    def read(self, starts: Int64, lengths: Int64, targets: Sequence[tuple[int, int]]) -> int:
        """Copies ranges of mapped addresses, one after another, into memory.

        Args:
            starts: first address of each range, at most `MAX_RANGES`: int64 of shape (ranges,).
            lengths: bytes of each range: int64 of shape (ranges,).
            targets: address and bytes of the pieces of memory to be filled, one after another, at most `MAX_RANGES`.

        Returns:
            The bytes copied: fewer than asked for where a file has become shorter or its device fails.
        """
        remote, local = _vectors(starts, lengths), np.array(targets, dtype=np.uint64)
        self._count(len(starts), int(lengths.sum()))
        done = libc().process_vm_readv(
            self._process_id, local.ctypes.data, len(local), remote.ctypes.data, len(remote), 0
        )
        return max(int(done), 0)

    def gather(self, starts: Int64, size: int, targets: Sequence[NDArray[np.uint8]]) -> bool:
        """Copies ranges of one size, one after another, by reading mapped addresses.

        Of a file that has become shorter, or whose device fails, zeros come from then on: the caller has to look.

        Args:
            starts: first address of each range: int64 of shape (ranges,).
            size: bytes of each range.
            targets: what is filled, one after another: uint8 of shape (bytes,), C-contiguous, whole ranges each.

        Returns:
            False, with nothing copied, where ranges do not lie so that a gather can take them, or faults are not caught.
        """
        unit = math.gcd(size, _PAGE_BYTES)
        if unit < _MIN_UNIT_BYTES or not catches_faults():
            return False
        places, rest = np.divmod(starts - self._start, unit)
        if rest.any():
            return False
        if unit < size:
            places = (places[:, None] + np.arange(size // unit)).reshape(-1)
        view, first = self._view(unit), 0
        self._count(len(starts), len(starts) * size)
        for target in in_one(targets):
            last = first + len(target) // unit
            # The usual mode would fill a buffer first, for the case of an index that is out of range.
            np.take(view, places[first:last], axis=0, out=target.reshape(-1, unit), mode="clip")
            first = last
        return True

    def gather_anywhere(self, starts: Int64, size: int, targets: Sequence[NDArray[np.uint8]]) -> bool:
        """Copies ranges of one size as `gather` does, wherever they start, with the interpreter's lock held.

        For pages that are in memory. numpy takes elements of an array as they lie, also where those overlap: here each address
        has one that is as long as a range.

        Returns:
            False, with nothing copied, where faults are not caught.
        """
        if not catches_faults():
            return False
        places, kind, step = starts - self._start, np.dtype((np.void, size)), max(1, _PIECE_BYTES // size)
        view: NDArray[np.void] = np.ndarray((self._num_bytes - size + 1,), kind, self._view(1), strides=(1,))
        self._count(len(starts), len(starts) * size)
        first = 0
        for target in targets:
            out = target.view(kind)
            for start in range(0, len(out), step):
                # Taken into memory of numpy's own, and moved while the processor still has it.
                part = out[start : start + step]
                part[...] = view[places[first : first + len(part)]]
                first += len(part)
        return True

    def words(self, starts: Int64) -> NDArray[np.uint64] | None:
        """Returns the eight bytes at each mapped address: uint64 of shape (starts,).

        What fails comes as for `gather`; None if an address is not a multiple of eight, or faults are not caught.
        """
        places, rest = np.divmod(starts - self._start, 8)
        if rest.any() or not catches_faults():
            return None
        # By take, which lets other threads run: a page may have to come from the device.
        words: NDArray[np.uint64] = np.take(self._view(8).reshape(-1).view(np.uint64), places)
        return words

    def in_memory(self, starts: Int64, lengths: Int64) -> tuple[Any, Int64] | None:
        """Returns memory in which ranges of mapped addresses lie, and where; to be used at once.

        With the interpreter's lock held only for pages that are in memory: a copy then takes half the processor time of one by the
        kernel. What fails comes as for `gather`; None if faults are not caught.

        Returns:
            All addresses, whose slices are byte strings, and the first byte of each range there: int64 of shape (ranges,).
        """
        if not catches_faults():
            return None
        self._count(len(starts), int(lengths.sum()))
        return self._memory, starts - self._start

    def look(self, number: int, descriptor: int) -> None:
        """Looks what part of a file is in memory: none where the system does not tell."""
        self.residency[number] = resident_fraction(descriptor, int(self._sizes[number])) or 0.0

    def blank(self, address: int) -> bool:
        """Puts zeros in the place of the file at an address, for as long as this lives; called in the midst of a fault."""
        if not self._start <= address < self._start + self._used_bytes:
            return False
        number = int(np.searchsorted(self.addresses, address, side="right")) - 1
        flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE
        mapped(int(self.addresses[number]), int(self._spans[number]), PROT_READ, flags, -1)
        return True

    def _view(self, unit: int) -> NDArray[np.uint8]:
        """Returns all addresses as an array of shape (units, unit)."""
        view = self._views.get(unit)
        if view is None:
            view = self._views[unit] = np.frombuffer(self._memory, dtype=np.uint8).reshape(-1, unit)
        return view

    def will_need(self, starts: Int64, lengths: Int64) -> None:
        """Tells the operating system that ranges of mapped addresses will be read soon; it may pass this over."""
        vectors = _vectors(*_ahead(starts, lengths))
        descriptor = self._own_descriptor()
        for first in range(0, len(vectors), MAX_RANGES):
            part = vectors[first : first + MAX_RANGES]
            asked = (ctypes.c_int(descriptor), ctypes.c_void_p(part.ctypes.data), ctypes.c_size_t(len(part)))
            done = libc().syscall(
                ctypes.c_long(_SYS_PROCESS_MADVISE), *asked, ctypes.c_int(_MADV_WILLNEED), ctypes.c_uint(0)
            )
            if done < 0:
                for start, length in part.tolist():
                    libc().madvise(start, length, _MADV_WILLNEED)

    def _own_descriptor(self) -> int:
        with self._lock:
            if self._descriptor is None:
                try:
                    self._descriptor = os.pidfd_open(self._process_id)
                    weakref.finalize(self, os.close, self._descriptor).atexit = False
                except OSError:
                    self._descriptor = -1
            return self._descriptor

    def _count(self, num_ranges: int, num_bytes: int) -> None:
        """Drops the page tables once they may be large: each random range costs a page of them."""
        with self._lock:
            self._num_touched += num_ranges + num_bytes // (_PAGE_BYTES * _PAGE_BYTES // 8)
            if min(self._num_touched * _PAGE_BYTES, self._used_bytes // 512) <= _MAX_TABLE_BYTES:
                return
            self._num_touched = 0
        libc().madvise(self._start, self._used_bytes, _MADV_DONTNEED)


def in_one(targets: Sequence[NDArray[np.uint8]]) -> Sequence[NDArray[np.uint8]]:
    """Returns targets that lie one behind the other as one, to be used while they are held.

    Between two calls of a library another thread may take the interpreter.
    """
    if len(targets) < 2:
        return targets
    sizes = [len(target) for target in targets]
    first: int = targets[0].__array_interface__["data"][0]
    places = np.cumsum([first, *sizes[:-1]]).tolist()
    if [target.__array_interface__["data"][0] for target in targets] != places:
        return targets
    return [np.lib.stride_tricks.as_strided(targets[0], (sum(sizes),), (1,))]


def _page_bytes(sizes: Int64) -> int:
    """Returns what files start on: a large page, unless they are shorter and it would only take addresses."""
    return _LARGE_PAGE_BYTES if len(sizes) and sizes.mean() >= _LARGE_PAGE_BYTES else _PAGE_BYTES


def _aligned(sizes: Any, unit: int) -> Any:
    return -(-sizes // unit) * unit


def _ahead(starts: Int64, lengths: Int64) -> tuple[Int64, Int64]:
    """Returns ranges as they are best announced: whole pages, joined where they follow each other, none of them too long."""
    if not len(starts):
        return starts, lengths
    first, stops = starts - starts % _PAGE_BYTES, starts + lengths
    # Rounded up, so that ranges which meet in one page do follow each other.
    apart = (
        (first[1:] > -(-stops[:-1] // _PAGE_BYTES) * _PAGE_BYTES) | (first[1:] < first[:-1]) | (stops[1:] < stops[:-1])
    )
    edges = np.flatnonzero(apart)
    first, stops = first[np.append(0, edges + 1)], stops[np.append(edges, len(starts) - 1)]
    counts = -(-(stops - first) // _MAX_AHEAD_BYTES)
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces = np.repeat(first, counts) + numbers * _MAX_AHEAD_BYTES
    return pieces, np.minimum(np.repeat(stops, counts) - pieces, _MAX_AHEAD_BYTES)


def _vectors(starts: Int64, lengths: Int64) -> NDArray[np.uint64]:
    """Returns ranges as the kernel takes them (struct iovec): uint64 of shape (ranges, 2)."""
    vectors = np.empty((len(starts), 2), dtype=np.uint64)
    vectors[:, 0], vectors[:, 1] = starts, lengths
    return vectors


def _check_count(num_files: int) -> None:
    if num_files > _max_maps() // 2:
        raise OSError(f"{num_files} files are more than half of the mappings that a process may have")


def _max_maps() -> int:
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _MAX_MAPS


def _probe() -> None:
    """Raises an OSError unless the process may have the kernel copy its own memory; sandboxes may forbid it."""
    source, target = np.arange(8, dtype=np.uint8), np.zeros(8, dtype=np.uint8)
    vectors = np.array([[target.ctypes.data, 8], [source.ctypes.data, 8]], dtype=np.uint64)
    try:
        address = vectors.ctypes.data
        done = libc().process_vm_readv(os.getpid(), address, 1, address + 16, 1, 0)
    except (AttributeError, OSError) as error:
        raise OSError(f"process_vm_readv is missing: {error}") from None
    if done != 8 or (source != target).any():
        raise OSError(f"process_vm_readv is refused: {os.strerror(ctypes.get_errno())}")
