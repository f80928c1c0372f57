"""CRC32C sums with identity in them, one at a time and for whole gathered batches.

A stored sum covers ``identity || data`` (FORMAT.md, "Checksums"). CRC32C is linear over GF(2): for equal lengths
``crc(a ^ b) == crc(a) ^ crc(b) ^ crc(0)``, and a sum is carried past k more bytes by a fixed 32 x 32 bit matrix. So the
part of the identity can be taken out of a stored sum without the data, and the sums of the rows of one contiguous
buffer fold into the sum of the whole buffer: 256 rows are checked by one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from google_crc32c import extend
from numpy.typing import NDArray

from shardload.format.crc32c import LONG_BYTES, crc32c
from shardload.format.layout import IDENTITY

UInt32 = NDArray[np.uint32]

_COPIED_BYTES = 2048
"""Of ranges of up to so many bytes a copy is made sooner than a view."""

_FOLDED_ROWS = 16
"""So many sums are made one at a time, by tables of 4 KiB for each."""

_BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)


def identity_sum(generation: int, unit: int, part: int, field: int, local_id: int) -> int:
    """Returns the CRC32C of a block's identity: the value with which the sum over its data is started."""
    return int(extend(0, IDENTITY.pack(generation, unit, part, field, local_id)))


def block_sum(data: bytes | NDArray[np.uint8], start: int) -> int:
    """Returns the CRC32C over `data`, continued from `start` (an `identity_sum`)."""
    return int(extend(start, data)) if len(data) < LONG_BYTES else crc32c(start, data)


def row_sums(rows: NDArray[np.uint8], starts: Sequence[int]) -> list[int]:
    """Returns `block_sum` of each row of an array of shape (rows, row_bytes), each continued from its own start."""
    return list(map(extend if rows.shape[1] < LONG_BYTES else crc32c, starts, rows))


def block_sums(data: bytes, starts: Sequence[int], stops: Sequence[int], identities: Sequence[int]) -> list[int]:
    """Returns `block_sum` of many ranges of `data`, each continued from its own start."""
    if len(data) > _COPIED_BYTES * len(starts):
        view = np.frombuffer(data, dtype=np.uint8)
        return [crc32c(i, view[a:b]) for i, a, b in zip(identities, starts, stops, strict=True)]
    return [extend(i, data[a:b]) for i, a, b in zip(identities, starts, stops, strict=True)]


def identity_sums(generation: int, unit: int, part: int, field: int, local_ids: NDArray[np.int64]) -> UInt32:
    """Returns `identity_sum` for many samples of one shard at once, uint32 of shape (samples,).

    Only the last four bytes of the identity differ, so by linearity each sum is that of local id 0 with the images of
    the id's set bits folded in.
    """
    return with_local_ids(np.uint32(identity_sum(generation, unit, part, field, 0)), local_ids)


def numbered_sums(generation: int, unit: int, part: int, field: int, first: int, count: int) -> UInt32:
    """Returns `identity_sums` for so many samples of a shard from one on."""
    return np.uint32(identity_sum(generation, unit, part, field, 0)) ^ _numbers_from(first, count)


@lru_cache(maxsize=4)
def _numbers_from(first: int, count: int) -> UInt32:
    """Returns what the local ids from one on change in a sum: the same for each shard that is begun."""
    return _looked_up(_local_id_tables(), np.arange(first, first + count, dtype=np.uint32))


def with_local_ids(bases: UInt32 | np.uint32, local_ids: NDArray[np.int64]) -> UInt32:
    """Returns `identity_sum` for samples of several shards: uint32 of shape (samples,).

    Args:
        bases: for each sample (or for all) `identity_sum` of its shard and field with local id 0.
        local_ids: their numbers in their shards.
    """
    sums: UInt32 = bases ^ _looked_up(_local_id_tables(), local_ids.astype(np.uint32))
    return sums


def rows_match(rows: NDArray[np.uint8], sums: UInt32) -> bool:
    """Tells whether every row of a contiguous buffer has the plain CRC32C (identity taken out) given for it.

    One CRC call over the whole buffer against the given sums folded together. A CRC32C detects every change of up to
    three bits and every burst of up to 32 bits in a buffer of this size, and others with probability 1 - 2^-32.

    Args:
        rows: uint8 of shape (rows, row_bytes), C-contiguous.
        sums: uint32 of shape (rows,), plain sums as of `data_sums`.
    """
    num_rows, row_bytes = rows.shape
    if num_rows == 0:
        return True
    return int(joined_sums(sums, row_bytes)) == crc32c(0, rows.reshape(-1))


def joined_sums(sums: UInt32, row_bytes: int) -> UInt32:
    """Returns the plain CRC32C of rows that lie one after another, from their plain sums.

    Args:
        sums: uint32 of shape (..., rows), at least one row.
        row_bytes: length of each row.
    """
    while sums.shape[-1] > 1:
        width = min(_FOLDED_ROWS, 1 << (sums.shape[-1] - 1).bit_length())
        if missing := -sums.shape[-1] % width:
            # A row before the first with the sum of nothing changes nothing.
            sums = np.concatenate([np.zeros((*sums.shape[:-1], missing), dtype=np.uint32), sums], axis=-1)
        # Groups of so many at once, each value byte by byte.
        values = np.ascontiguousarray(sums, dtype="<u4").view(np.uint8).reshape(*sums.shape[:-1], -1, 4 * width)
        places = values + 256 * np.arange(4 * width)
        sums = np.bitwise_xor.reduce(_fold_tables(row_bytes, width).take(places), axis=-1)
        row_bytes *= width
    return sums[..., 0]


def data_sums(stored: UInt32, bases: UInt32, local_ids: NDArray[np.int64], num_bytes: int) -> UInt32:
    """Returns the plain CRC32C of each block's data: the stored sums with the parts of their identities taken out.

    Args:
        stored: uint32 of shape (blocks,), sums over identity and data.
        bases: for each block `identity_sum` of its shard and field with local id 0, uint32 of shape (blocks,).
        local_ids: the blocks' numbers in their shards, likewise.
        num_bytes: length of the data of every block.
    """
    # Of blocks of one shard the part of the shard is one and the same.
    if len(bases) and (bases == bases[0]).all():
        bases = bases[:1]
    return stored ^ _looked_up(_shift_tables(num_bytes), bases) ^ _looked_up(_id_tables(num_bytes), local_ids)


def _apply(matrix: UInt32, values: UInt32) -> UInt32:
    """Multiplies each value (a column vector of 32 bits) by a matrix given as the images of the 32 unit vectors."""
    return _looked_up(_tables(matrix), values)


def _tables(matrix: UInt32) -> UInt32:
    """Returns the images of all values of each of the four bytes: uint32 of shape (4, 256)."""
    picked = np.where(np.arange(256, dtype=np.uint32)[:, None] & _BITS[:8], matrix.reshape(4, 1, 8), np.uint32(0))
    tables: UInt32 = np.bitwise_xor.reduce(picked, axis=2)
    return tables


def _looked_up(tables: UInt32, values: NDArray[Any]) -> UInt32:
    """Returns the images of values: uint32 of their shape, which has one dimension at least."""
    parts = np.ascontiguousarray(values, dtype="<u4").view(np.uint8).reshape(*values.shape, 4)
    # Numbers are small, mostly, and the image of nothing is nothing.
    num_parts = -(-int(values.max(initial=0)).bit_length() // 8)
    result: UInt32 = tables[0].take(parts[..., 0])
    for i in range(1, num_parts):
        result ^= tables[i].take(parts[..., i])
    return result


def _multiply(left: UInt32, right: UInt32) -> UInt32:
    return _apply(left, right)


@lru_cache(maxsize=1)
def _local_id_tables() -> UInt32:
    zero = identity_sum(0, 0, 0, 0, 0)
    matrix = np.array([identity_sum(0, 0, 0, 0, 1 << bit) ^ zero for bit in range(32)], dtype=np.uint32)
    return _tables(matrix)


@lru_cache(maxsize=256)
def _id_tables(num_bytes: int) -> UInt32:
    """Returns by what local ids go into sums, carried past so many bytes."""
    return _looked_up(_shift_tables(num_bytes), _local_id_tables())


@lru_cache(maxsize=256)
def _shift_matrix(num_bytes: int) -> UInt32:
    """Returns the matrix that carries the effect of a sum past `num_bytes` bytes, by repeated squaring."""
    if num_bytes == 0:
        return _BITS.copy()
    if num_bytes == 1:
        # The register starts as the complement of the given value, so the value zero has an effect of its own.
        zero = extend(0, b"\0")
        return np.array([extend(1 << bit, b"\0") ^ zero for bit in range(32)], dtype=np.uint32)
    half = _shift_matrix(num_bytes // 2)
    whole = _multiply(half, half)
    return _multiply(_shift_matrix(1), whole) if num_bytes % 2 else whole


@lru_cache(maxsize=256)
def _shift_tables(num_bytes: int) -> UInt32:
    return _tables(_shift_matrix(num_bytes))


@lru_cache(maxsize=64)
def _fold_tables(row_bytes: int, width: int) -> UInt32:
    """Returns by what the bytes of the sums of a group of rows go into that of the group: uint32 of shape (width * 4 * 256,)."""
    tables = [_shift_tables(0)]
    while len(tables) < width:
        tables.append(_looked_up(_shift_tables(row_bytes), tables[-1]))
    return np.concatenate(tables[::-1]).reshape(-1)
