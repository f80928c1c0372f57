"""Values of varying length as bytes: ragged arrays and lists (FORMAT.md section 7)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.schema import Field


@dataclass(frozen=True, slots=True)
class Ragged:
    """Ragged values of several samples, one after the other in one array."""

    values: NDArray[Any]
    """Array of shape (items, *item_shape), dtype as stored."""
    offsets: NDArray[np.int64]
    """Where each sample's items start, and the end of the last: int64 of shape (samples + 1,)."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, slot: int) -> NDArray[Any]:
        """Returns one sample's items: a view of shape (its items, *item_shape)."""
        return self.values[self.offsets[slot] : self.offsets[slot + 1]]


def join_ragged(field: Field, values: Sequence[bytes]) -> Ragged:
    """Returns ragged values that were stored in records.

    Raises:
        FormatError: a value is not a whole number of items; `sample_id` is its place among the given ones.
    """
    lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
    wrong = lengths % field.num_bytes != 0
    if wrong.any():
        bad = int(np.argmax(wrong))
        detail = f"{lengths[bad]} bytes are no whole number of items of {field.type}"
        raise FormatError(f"field {field.name!r}: {detail}", sample_id=bad)
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(lengths // field.num_bytes, out=offsets[1:])
    # A copy: arrays over bytes are read-only, and these are the caller's own.
    items = np.frombuffer(bytearray(b"".join(values)), dtype=field.dtype)
    return Ragged(items.reshape(-1, *field.shape), offsets)


def encode_list(items: Sequence[bytes]) -> bytes:
    """Returns a list as it is stored: number of items, their lengths, their bytes."""
    return struct.pack(f"<{len(items) + 1}I", len(items), *map(len, items)) + b"".join(items)


def decode_list(data: bytes) -> list[bytes]:
    """Returns the items of a stored list.

    Raises:
        ValueError: the lengths do not fit the bytes.
    """
    if len(data) < 4:
        raise ValueError(f"{len(data)} bytes are no list")
    count = int.from_bytes(data[:4], "little")
    start = 4 + 4 * count
    if start > len(data):
        raise ValueError(f"{len(data)} bytes are no list of {count} items")
    lengths = struct.unpack_from(f"<{count}I", data, 4)
    if start + sum(lengths) != len(data):
        raise ValueError(f"the lengths of {count} items do not add up to a list of {len(data)} bytes")
    items = []
    for length in lengths:
        items.append(data[start : start + length])
        start += length
    return items
