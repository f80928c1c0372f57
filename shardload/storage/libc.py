"""The C library, and what it is asked for by number."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from typing import Any

PROT_NONE, PROT_READ = 0, 1
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000


@lru_cache(maxsize=1)
def libc() -> Any:
    """Returns the C library with the signatures that are used here."""
    library = ctypes.CDLL(None, use_errno=True)
    size, pointer, integer = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    library.mmap.restype = pointer
    library.mmap.argtypes = [pointer, size, integer, integer, integer, ctypes.c_int64]
    library.munmap.argtypes = [pointer, size]
    library.madvise.argtypes = [pointer, size, integer]
    library.mincore.argtypes = [pointer, size, pointer]
    library.process_vm_readv.restype = ctypes.c_ssize_t
    library.process_vm_readv.argtypes = [integer, pointer, ctypes.c_ulong, pointer, ctypes.c_ulong, ctypes.c_ulong]
    library.syscall.restype = ctypes.c_long
    return library


def mapped(address: int | None, num_bytes: int, protection: int, flags: int, descriptor: int) -> int:
    """Returns the address of a new mapping; arguments as of mmap(2).

    Raises:
        OSError: the system makes none.
    """
    start = libc().mmap(address, num_bytes, protection, flags, descriptor, 0)
    if start is None or start == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(start)
