"""CRC32C sums with identity in them, one at a time and for whole gathered batches.

A stored sum covers ``identity || data`` (FORMAT.md, "Checksums"). CRC32C is linear over GF(2): for equal lengths
``crc(a ^ b) == crc(a) ^ crc(b) ^ crc(0)``, and a sum is carried past k more bytes by a fixed 32 x 32 bit matrix. So the
part of the identity can be taken out of a stored sum without the data, and the sums of the rows of one contiguous
buffer fold into the sum of the whole buffer: 256 rows are checked by one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from google_crc32c import extend
from numpy.typing import NDArray

from shardload.format.layout import IDENTITY

UInt32 = NDArray[np.uint32]

_COPIED_BYTES = 2048
"""Of ranges of up to so many bytes a copy is made sooner than a view."""

_BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)


def identity_sum(generation: int, unit: int, part: int, field: int, local_id: int) -> int:
    """Returns the CRC32C of a block's identity: the value with which the sum over its data is started."""
    return int(extend(0, IDENTITY.pack(generation, unit, part, field, local_id)))


def block_sum(data: bytes | NDArray[np.uint8], start: int) -> int:
    """Returns the CRC32C over `data`, continued from `start` (an `identity_sum`)."""
    return int(extend(start, data))


def block_sums(data: bytes, starts: Sequence[int], stops: Sequence[int], identities: Sequence[int]) -> list[int]:
    """Returns `block_sum` of many ranges of `data`, each continued from its own start."""
    if len(data) > _COPIED_BYTES * len(starts):
        view = np.frombuffer(data, dtype=np.uint8)
        return [extend(i, view[a:b]) for i, a, b in zip(identities, starts, stops, strict=True)]
    return [extend(i, data[a:b]) for i, a, b in zip(identities, starts, stops, strict=True)]


def identity_sums(generation: int, unit: int, part: int, field: int, local_ids: NDArray[np.int64]) -> UInt32:
    """Returns `identity_sum` for many samples of one shard at once, uint32 of shape (samples,).

    Only the last four bytes of the identity differ, so by linearity each sum is that of local id 0 with the images of
    the id's set bits folded in.
    """
    return with_local_ids(np.uint32(identity_sum(generation, unit, part, field, 0)), local_ids)


def with_local_ids(bases: UInt32 | np.uint32, local_ids: NDArray[np.int64]) -> UInt32:
    """Returns `identity_sum` for samples of several shards: uint32 of shape (samples,).

    Args:
        bases: for each sample (or for all) `identity_sum` of its shard and field with local id 0.
        local_ids: their numbers in their shards.
    """
    sums: UInt32 = bases ^ _apply(_local_id_matrix(), local_ids.astype(np.uint32))
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
    # What carries a sum to the end depends on the rows behind it only: one matrix serves all buffers up to its own size.
    matrix = _fold_matrix(1 << (num_rows - 1).bit_length(), row_bytes)[-num_rows:]
    picked = np.where(sums[:, None] & _BITS, matrix, np.uint32(0))
    return int(np.bitwise_xor.reduce(picked, axis=None)) == int(extend(0, rows.reshape(-1)))


def data_sums(stored: UInt32, identities: UInt32, num_bytes: int) -> UInt32:
    """Returns the plain CRC32C of each block's data: the stored sums with the parts of their identities taken out.

    Args:
        stored: uint32 of shape (blocks,), sums over identity and data.
        identities: uint32 of shape (blocks,), as of `identity_sums`.
        num_bytes: length of the data of every block.
    """
    return stored ^ _apply(_shift_matrix(num_bytes), identities)


def _apply(matrix: UInt32, values: UInt32) -> UInt32:
    """Multiplies each value (a column vector of 32 bits) by a matrix given as the images of the 32 unit vectors."""
    picked = np.where(values[:, None] & _BITS, matrix, np.uint32(0))
    result: UInt32 = np.bitwise_xor.reduce(picked, axis=1)
    return result


def _multiply(left: UInt32, right: UInt32) -> UInt32:
    return _apply(left, right)


@lru_cache(maxsize=1)
def _local_id_matrix() -> UInt32:
    zero = identity_sum(0, 0, 0, 0, 0)
    return np.array([identity_sum(0, 0, 0, 0, 1 << bit) ^ zero for bit in range(32)], dtype=np.uint32)


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


@lru_cache(maxsize=64)
def _fold_matrix(num_rows: int, row_bytes: int) -> UInt32:
    """Returns, for each row of a buffer, the matrix that carries its sum to the end: uint32 of shape (num_rows, 32)."""
    step = _shift_matrix(row_bytes)
    matrices = np.empty((num_rows, 32), dtype=np.uint32)
    matrices[-1] = _BITS
    for row in range(num_rows - 2, -1, -1):
        matrices[row] = _multiply(step, matrices[row + 1])
    return matrices
