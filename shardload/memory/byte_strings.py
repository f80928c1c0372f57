"""Byte strings that are filled after they were made, before anyone else sees them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Any

import numpy as np

_MALLOC_BYTES = (32 << 20) - (64 << 10)
_M_TOP_PAD = -2
_TOP_PAD_BYTES = 62 << 20


def new_bytes(size: int) -> bytes:
    """Returns a byte string of undefined content, to be filled through its address at once."""
    made: bytes = _new_bytes(None, size)
    return made


def bytes_address(data: bytes) -> int:
    """Returns the address of the first byte of a byte string."""
    address: int = _address(data)
    return address


@functools.cache
def keep_freed_memory() -> None:
    """Lets malloc keep what large byte strings free, instead of giving it back and taking new pages for the next batch.

    The C library raises its limits to the size of a block that is freed, up to 32 MiB, as for a program that uses such blocks
    anyway (mallopt(3), M_MMAP_THRESHOLD). The block here is never touched.

    Threads have heaps of 64 MiB there, and one that is empty is given back unless less than M_TOP_PAD is free at the end of the one
    before. Batches of byte strings empty and fill one all the time: with a pad that is a little less than a heap it goes only when
    the one before is empty, too (strings of 110 KB: up to 18,000 pages anew in an epoch of 12,000, now hardly any). With as much
    as a heap none would ever go.
    """
    np.empty(_MALLOC_BYTES, dtype=np.uint8)
    # Other C libraries have no such limits.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)


_new_bytes: Any = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t]
_address: Any = ctypes.pythonapi.PyBytes_AsString
_address.restype = ctypes.c_void_p
_address.argtypes = [ctypes.py_object]
