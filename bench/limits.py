"""Physical limits, measured in the same run: a gather in C, and what of a file is in memory."""

from __future__ import annotations

import ctypes
import functools
import gc
import mmap
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


@functools.cache
def _library() -> Any:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("the limit is measured by a loop in C: install a C compiler (cc)")
    folder = Path(tempfile.mkdtemp(prefix="shardload-bench-"))
    try:
        target = folder / "limits.so"
        source = Path(__file__).with_name("limits.c")
        subprocess.run([compiler, "-O3", "-shared", "-fPIC", "-pthread", "-o", target, source], check=True)
        library = ctypes.CDLL(str(target))
    finally:
        shutil.rmtree(folder)
    library.gather.restype = None
    library.gather.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64, ctypes.c_void_p]
    library.rest.restype = None
    library.rest.argtypes = [ctypes.c_int64]
    library.read_all.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p]
    library.gather_hinted.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 2]
    return library


def gather(source: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
    """Copies ranges of bytes one after the other: uint8 arrays, int64 offsets and lengths."""
    assert offsets.dtype == lengths.dtype == np.int64 and int(lengths.sum()) <= out.nbytes
    pointers = source.ctypes.data, offsets.ctypes.data, lengths.ctypes.data
    _library().gather(*pointers, len(offsets), out.ctypes.data)


def rest(seconds: float) -> None:
    """Waits without the interpreter lock, to the microsecond."""
    _library().rest(int(seconds * 1e9))


def read_all(path: Path, offsets: np.ndarray, lengths: np.ndarray, threads: int) -> np.ndarray:
    """Reads ranges of a file by positioned reads of so many threads; returns the first 8 bytes of each as int64."""
    assert offsets.dtype == lengths.dtype == np.int64
    firsts = np.zeros(len(offsets), dtype=np.int64)
    with open(path, "rb") as file:
        # Else the kernel reads on where it takes reads for ordered ones.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        pointers = offsets.ctypes.data, lengths.ctypes.data, len(offsets), threads, firsts.ctypes.data
        assert _library().read_all(file.fileno(), *pointers) == 0
    return firsts


def gather_hinted(path: Path, offsets: np.ndarray, lengths: np.ndarray, window: int) -> np.ndarray:
    """Copies ranges of a mapped file, announced a window of samples ahead; returns the first 8 bytes of each as int64."""
    assert offsets.dtype == lengths.dtype == np.int64
    firsts = np.zeros(len(offsets), dtype=np.int64)
    out = np.ones(int(np.sort(lengths)[-window:].sum()), dtype=np.uint8)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        view.madvise(mmap.MADV_RANDOM)
        source = np.frombuffer(view, dtype=np.uint8)
        pointers = source.ctypes.data, offsets.ctypes.data, lengths.ctypes.data, len(offsets), window
        assert _library().gather_hinted(*pointers, out.ctypes.data, firsts.ctypes.data) == 0
        del source
    return firsts


def resident_fraction(paths: list[Path]) -> float:
    """Returns what part of files is in the page cache."""
    libc, pages, resident = ctypes.CDLL(None), 0, 0
    for path in paths:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            data = np.frombuffer(view, dtype=np.uint8)
            count = -(-len(data) // mmap.PAGESIZE)
            flags = np.zeros(count, dtype=np.uint8)
            address = ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(len(data)), ctypes.c_void_p(flags.ctypes.data)
            assert libc.mincore(*address) == 0
            pages, resident = pages + count, resident + int((flags & 1).sum())
            del data
    return resident / max(1, pages)


def drop(paths: list[Path]) -> None:
    """Drops files from the page cache, and checks that they are gone.

    Raises:
        SystemExit: they stay, such as on a file system in memory; then nothing cold can be measured.
    """
    # What is mapped cannot be dropped, and loaders that are done may wait to be collected.
    gc.collect()
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if (left := resident_fraction(paths)) > 0.01:
        raise SystemExit(f"{left:.0%} of {paths[0].parent} stay in memory: give --folder on a disk")
