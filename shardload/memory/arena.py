"""Memory without a name that a child process is given, cut into pieces."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import weakref
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from shardload.memory.byte_strings import bytes_address, new_bytes

ARENA_BYTES = 1 << 38
"""Addresses, not memory: what was never written takes none."""
_MAX_RANGES = 1024  # IOV_MAX
_arenas: weakref.WeakSet[SharedArena] = weakref.WeakSet()


class SharedArena:
    """Pieces of anonymous memory that other processes map as well. Safe for several threads.

    It has no name in any file system, so that nothing is left of it when the last process and the last array over it are
    gone, however they went. A piece is the caller's until it gives it back.
    """

    def __init__(self, num_bytes: int = ARENA_BYTES) -> None:
        """Reserves addresses.

        Raises:
            OSError: the system has no such memory, or no room for so many addresses.
        """
        self.descriptor = os.memfd_create("shardload", os.MFD_CLOEXEC)
        """To be given to a child process, which maps all of it."""
        weakref.finalize(self, os.close, self.descriptor).atexit = False
        os.ftruncate(self.descriptor, num_bytes)
        self.num_bytes = num_bytes
        """Addresses in it."""
        try:
            self.memory = mmap.mmap(self.descriptor, num_bytes)
        except ValueError as error:
            raise OSError(f"no room for shared memory: {error}") from None
        self.view = memoryview(self.memory)
        """All of it."""
        self.address = np.frombuffer(self.memory, dtype=np.uint8, count=1).ctypes.data
        """Where it starts in this process."""
        self.num_forks = 0
        """How often this process has forked since the arena was made."""
        self._process_id = os.getpid()
        self._stop = 0
        self._hollow: defaultdict[int, list[int]] = defaultdict(list)
        # Pieces are given back by finalizers, which run anywhere, also in here.
        self._lock = threading.RLock()
        _arenas.add(self)

    def take(self, num_bytes: int) -> int:
        """Returns where a piece of so many bytes starts in the arena, a multiple of 4096; what it holds is undefined.

        Raises:
            MemoryError: there are no more addresses.
        """
        with self._lock:
            hollow = self._hollow[num_bytes]
            if hollow:
                return hollow.pop()
            if self._stop + num_bytes > self.num_bytes:
                raise MemoryError(f"{self._stop} bytes of memory that is shared with a process are in use")
            start, self._stop = self._stop, self._stop + -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            return start

    def give_back(self, start: int, num_bytes: int) -> None:
        """Takes a piece back and frees its memory. Does nothing in a forked child, whose parent still uses it."""
        if os.getpid() != self._process_id:
            return
        self.clear(start, num_bytes)
        with self._lock:
            self._hollow[num_bytes].append(start)

    def clear(self, start: int, num_bytes: int) -> None:
        """Frees the memory of a piece, which is zeros from then on."""
        with contextlib.suppress(OSError):
            self.memory.madvise(mmap.MADV_REMOVE, start, num_bytes)

    def byte_strings(self, start: int, sizes: Sequence[int]) -> list[bytes]:
        """Returns copies of ranges that lie end to end from `start`, made without the interpreter's lock.

        Raises:
            OSError: the memory cannot be read.
        """
        made = [new_bytes(size) for size in sizes]
        for first in range(0, len(made), _MAX_RANGES):
            part = [data for data in made[first : first + _MAX_RANGES] if data]
            vectors = np.empty((len(part), 2), dtype=np.uint64)
            vectors[:, 0], vectors[:, 1] = list(map(bytes_address, part)), list(map(len, part))
            size = int(vectors[:, 1].sum())
            if size and _preadv(self.descriptor, vectors.ctypes.data, len(part), start) != size:
                raise OSError(f"{size} bytes of shared memory could not be copied")
            start += size
        return made


def _note_fork() -> None:
    for arena in list(_arenas):
        arena.num_forks += 1


# A forked child may hold what was leased before, as if it were its own: that must never be written again.
os.register_at_fork(before=_note_fork)

_preadv = ctypes.CDLL(None).preadv
_preadv.restype = ctypes.c_ssize_t
_preadv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]
