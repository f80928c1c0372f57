r"""The index of a Megatron pair: which bytes of `name.bin` are which document.

`name.idx` is little-endian: the magic `MMIDIDX\0\0`, version (u64, 1), code of the dtype (u8), number of sequences (u64),
number of bounds (u64); then the length of each sequence in tokens (i32), the byte of `name.bin` at which it starts (i64),
and the bounds (i64): document i is the sequences from bound i up to bound i + 1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import PackError
from shardload.importers.base import SourceFile
from shardload.importers.files import Opened, Root, read_at, read_start, unreadable

MAGIC = b"MMIDIDX\x00\x00"
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
"""Code -> dtype. Those of floats, 6 and 7, changed their meaning between versions, and tokens are none."""

_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
_LENGTH = np.dtype("<i4")
_PLACE = np.dtype("<i8")
# What is looked at together: some megabytes, whatever the size of the index.
_CHECKED_ENTRIES = 1 << 18

Int64 = NDArray[np.int64]


def has_magic(root: Root, path: str) -> bool:
    """Tells whether a file starts as an index does."""
    return read_start(root, path, len(MAGIC)) == MAGIC


@dataclass(frozen=True, slots=True)
class MegatronIndex:
    """An open index whose size is right for its counts."""

    file: Opened
    name: str
    """What it is called in messages."""
    data_bytes: int
    """Length of `name.bin`."""
    dtype: np.dtype[Any]
    num_sequences: int
    num_documents: int

    def starts(self, first: int, stop: int) -> Int64:
        """Returns where documents start in `name.bin`, and where the last of them ends: int64 of shape (stop - first + 1,)."""
        bounds = self._bounds(first, stop + 1)
        low, high = int(bounds[0]), int(bounds[-1])
        if high - low > _CHECKED_ENTRIES:
            return np.array([self._start(int(bound)) for bound in bounds], dtype=np.int64)
        places = np.append(self._places(low, min(high + 1, self.num_sequences)), self.data_bytes)
        return np.asarray(places[bounds - low], dtype=np.int64)

    def start(self, document: int) -> int:
        """Returns where a document starts in `name.bin`."""
        return self._start(int(self._bounds(document, document + 1)[0]))

    def check(self) -> None:
        """Checks that the documents are the whole of `name.bin`, one after the other; reads the whole index.

        Raises:
            PackError: they are not; names the sequence or document.
        """
        expected = 0
        for first in range(0, self.num_sequences, _CHECKED_ENTRIES):
            stop = min(first + _CHECKED_ENTRIES, self.num_sequences)
            lengths, places = self._lengths(first, stop).astype(np.int64), self._places(first, stop)
            if (lengths < 0).any():
                number = first + int(np.argmax(lengths < 0))
                raise self._damage(f"sequence {number} has the length {int(lengths[number - first])}")
            ends = expected + np.cumsum(lengths * self.dtype.itemsize)
            wanted = np.concatenate(([expected], ends[:-1]))
            if (places != wanted).any():
                number = first + int(np.argmax(places != wanted))
                at, should = int(places[number - first]), int(wanted[number - first])
                raise self._damage(
                    f"sequence {number} starts at byte {at}, but the one before it ends at byte {should}"
                )
            expected = int(ends[-1])
        if expected != self.data_bytes:
            raise self._damage(
                f"it accounts for {expected} bytes, but {self.name.removesuffix('.idx')}.bin has {self.data_bytes}: one of "
                "them was cut short, or they do not belong together"
            )
        self._check_bounds()

    def _check_bounds(self) -> None:
        before = 0
        for first in range(0, self.num_documents + 1, _CHECKED_ENTRIES):
            bounds = self._bounds(first, min(first + _CHECKED_ENTRIES, self.num_documents + 1))
            if first == 0 and bounds[0] != 0:
                raise self._damage(f"the first document starts with sequence {int(bounds[0])}")
            steps = np.diff(bounds, prepend=before)
            if (steps < 0).any():
                raise self._damage(f"document {first + int(np.argmax(steps < 0)) - 1} ends before it starts")
            before = int(bounds[-1])
        if before != self.num_sequences:
            raise self._damage(f"its documents end at sequence {before} of {self.num_sequences}")

    def _start(self, sequence: int) -> int:
        return self.data_bytes if sequence == self.num_sequences else int(self._places(sequence, sequence + 1)[0])

    def _lengths(self, first: int, stop: int) -> NDArray[Any]:
        return self._entries(_HEADER.size, _LENGTH, first, stop)

    def _places(self, first: int, stop: int) -> NDArray[Any]:
        return self._entries(_HEADER.size + _LENGTH.itemsize * self.num_sequences, _PLACE, first, stop)

    def _bounds(self, first: int, stop: int) -> NDArray[Any]:
        before = (_LENGTH.itemsize + _PLACE.itemsize) * self.num_sequences
        return self._entries(_HEADER.size + before, _PLACE, first, stop)

    def _entries(self, start: int, dtype: np.dtype[Any], first: int, stop: int) -> NDArray[Any]:
        size = (stop - first) * dtype.itemsize
        data = _read(self.file, self.name, size, start + first * dtype.itemsize)
        if len(data) < size:
            raise self._damage("it was cut short while it was being packed")
        return np.frombuffer(data, dtype=dtype)

    def _damage(self, detail: str) -> PackError:
        return PackError(f"{self.name} is no sound Megatron index: {detail}")


def open_index(file: Opened, facts: SourceFile, name: str, data_bytes: int) -> MegatronIndex:
    """Reads the header of an index; the file stays the caller's.

    Args:
        file: the index, open.
        facts: the same as it was scanned.
        name: what to call it in messages.
        data_bytes: length of its `name.bin`.

    Raises:
        PackError: it is none, is cut short, or holds what is no tokens.
    """
    header = _read(file, name, _HEADER.size, 0)
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        what = "it does not start with MMIDIDX" if not header.startswith(MAGIC) else f"it has {len(header)} bytes"
        raise PackError(f"{name} is no sound Megatron index: {what}")
    _, version, code, num_sequences, num_bounds = _HEADER.unpack(header)
    if version != _VERSION:
        raise PackError(f"{name} is a Megatron index of version {version}; version {_VERSION} is read")
    if code not in DTYPES:
        known = ", ".join(f"{number} ({dtype})" for number, dtype in DTYPES.items())
        raise PackError(f"{name} has the dtype code {code}, which is none of tokens; those are {known}")
    expected = _HEADER.size + (_LENGTH.itemsize + _PLACE.itemsize) * num_sequences + _PLACE.itemsize * num_bounds
    if facts.num_bytes == expected + num_sequences and num_sequences:
        raise PackError(
            f"{name} holds modes of sequences, as those of multimodal data do, which samples have no place for"
        )
    if facts.num_bytes != expected:
        relation = "was cut short" if facts.num_bytes < expected else "is too long"
        raise PackError(
            f"{name} {relation}: {num_sequences} sequences and {num_bounds} bounds of documents take {expected} bytes, and it "
            f"has {facts.num_bytes}"
        )
    if num_bounds < 1:
        raise PackError(f"{name} is no sound Megatron index: it has no bounds of documents")
    dtype = np.dtype(DTYPES[code]).newbyteorder("<")
    return MegatronIndex(file, name, data_bytes, dtype, num_sequences, num_bounds - 1)


def _read(file: Opened, name: str, num_bytes: int, start: int) -> bytes:
    """Reads at a place, up to the end of the file."""
    parts: list[bytes] = []
    try:
        while num_bytes and (part := read_at(file, num_bytes, start)):
            parts.append(part)
            start, num_bytes = start + len(part), num_bytes - len(part)
    except OSError as error:
        raise unreadable(name, error) from error
    return b"".join(parts)
