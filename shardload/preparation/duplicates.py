"""Which of many samples are there a second time: exact, in bounded memory, on the disk.

The digests are dealt to files by their first bits, so that equal ones lie in one file, in the order of the samples; then each
file is gone through alone. What is a duplicate depends on the digests and their order only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUDGET_BYTES = 256 << 20
"""Memory that is taken, about; of more than 10^10 samples it takes more."""
_ENTRY_BYTES = 24
"""Bytes of an entry on the disk: two numbers of the digest and the sample's."""
_COPIES = 8
"""How often an entry is in memory while it is sorted, about."""
_MAX_FILES = 4096

Entries = NDArray[np.uint64]


def mark_duplicates(
    digests: Iterable[NDArray[np.uint64]], num_samples: int, folder: str, path: str, budget_bytes: int = BUDGET_BYTES
) -> int:
    """Marks each sample whose digest an earlier one has; returns how many there are.

    Args:
        digests: those of the samples in order, in arrays of shape (samples, 2); each of a small part of the budget.
        num_samples: how many there are in all.
        folder: where files may be written meanwhile: about 24 bytes a sample.
        path: file of the marks: that of sample i is bit `i % 8` of byte `i // 8`, the lowest bit first.
        budget_bytes: memory to keep to, about.

    Raises:
        OSError: a file cannot be written or read.
    """
    most = max(64, budget_bytes // (_ENTRY_BYTES * _COPIES))
    # Twice as many as an even spread needs: a file that is longer all the same is gone through in pieces.
    bits = min(_MAX_FILES.bit_length() - 1, (2 * num_samples // most).bit_length())
    names = [os.path.join(folder, f"spill-{number:04d}") for number in range(1 << bits)]
    try:
        for name in names:
            open(name, "wb").close()
        _deal(digests, names, bits, most)
        with open(path, "wb") as file:
            file.truncate(-(-num_samples // 8))
        marks: Any = np.memmap(path, np.uint8, "r+") if num_samples else np.empty(0, np.uint8)
        num_duplicates = 0
        for name in names:
            for found in _later_ones(_pieces(name, most)):
                num_duplicates += len(found)
                np.bitwise_or.at(marks, found >> np.uint64(3), np.left_shift(1, found & np.uint64(7)).astype(np.uint8))
        return num_duplicates
    finally:
        for name in names:
            if os.path.exists(name):
                os.unlink(name)


def _deal(digests: Iterable[NDArray[np.uint64]], names: list[str], bits: int, most: int) -> None:
    """Writes each entry to the file of its first bits."""
    first = 0
    for piece in _gathered(digests, most):
        entries = np.empty((len(piece), 3), np.uint64)
        entries[:, :2] = piece
        entries[:, 2] = np.arange(first, first + len(piece))
        first += len(piece)
        if not bits:
            _append(names[0], entries)
            continue
        numbers = (entries[:, 0] >> np.uint64(64 - bits)).astype(np.int64)
        entries = entries[np.argsort(numbers, kind="stable")]
        bounds = np.concatenate(([0], np.cumsum(np.bincount(numbers, minlength=len(names)))))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            _append(names[number], entries[bounds[number] : bounds[number + 1]])


def _gathered(digests: Iterable[NDArray[np.uint64]], most: int) -> Iterator[NDArray[np.uint64]]:
    """Yields digests in pieces of at least half of `most` and at most that, the last one aside."""
    parts: list[NDArray[np.uint64]] = []
    gathered = 0
    for part in digests:
        for start in range(0, len(part), -(-most // 2)):
            piece = part[start : start + -(-most // 2)]
            if gathered + len(piece) > most:
                yield np.concatenate(parts)
                parts, gathered = [], 0
            parts.append(piece)
            gathered += len(piece)
    if parts:
        yield np.concatenate(parts)


def _append(name: str, entries: Entries) -> None:
    # Opened anew each time: there may be more files than a process may hold open.
    with open(name, "ab") as file:
        file.write(np.ascontiguousarray(entries).data)


def _pieces(name: str, most: int) -> Iterator[Entries]:
    with open(name, "rb") as file:
        while data := file.read(most * _ENTRY_BYTES):
            yield np.frombuffer(data, np.uint64).reshape(-1, 3)


def _later_ones(pieces: Iterable[Entries]) -> Iterator[NDArray[np.uint64]]:
    """Yields the numbers of entries whose digest one before them has; one of each digest is kept in memory."""
    seen = np.empty((0, 3), np.uint64)
    for piece in pieces:
        entries = np.concatenate((seen, piece))
        # Stable: of equal ones the first stays the first.
        order = np.lexsort((entries[:, 1], entries[:, 0]))
        entries = entries[order]
        again = np.zeros(len(entries), bool)
        again[1:] = (entries[1:, :2] == entries[:-1, :2]).all(axis=1)
        yield entries[again, 2]
        seen = entries[~again]
