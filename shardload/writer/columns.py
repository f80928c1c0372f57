"""Values that lie one after the other in a section of their own: wide fields and streams."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format import layout
from shardload.format.checksum import block_sum, numbered_sums, row_sums
from shardload.format.schema import Field
from shardload.format.statistics import FieldStatistics, range_of
from shardload.storage import FileWriter

Identity = tuple[int, int, int]
"""Generation, unit and part."""

_CHUNK_BYTES = 1 << 20
_STARTS = 1 << 10


class SumStarts:
    """The values that the checksums of a field start with, by local id; worked out for many samples at once."""

    def __init__(self, identity: Identity, number: int) -> None:
        self._identity = identity
        self._number = number
        self._first = 0
        self._sums: list[int] = []

    def at(self, local_id: int) -> int:
        """Returns the start for a local id; they are asked for in their order."""
        place = local_id - self._first
        if place >= len(self._sums):
            self._first, place = local_id, 0
            self._sums = self.many(local_id, _STARTS)
        return self._sums[place]

    def many(self, local_id: int, count: int) -> list[int]:
        """Returns the starts for as many local ids from one on."""
        sums: list[int] = numbered_sums(*self._identity, self._number, local_id, count).tolist()
        return sums


class Column:
    """The values of one field in a shard being written, in chunks that are kept or go to the file at once."""

    def __init__(self, field: Field, number: int, identity: Identity, out: FileWriter | None) -> None:
        """Starts the column.

        Args:
            field: a wide or stream field.
            number: its number in the schema.
            identity: of the shard.
            out: the file, positioned where the section starts, or None if the column is to be kept.
        """
        self.field = field
        self.num_bytes = 0
        self.range = FieldStatistics()
        """Least and greatest number so far, as far as chunks are complete."""
        self._number = number
        self._identity = identity
        self._starts = SumStarts(identity, number)
        self._out = out
        self._chunks: list[bytes] = []
        # Joined when there is a chunk of them: each byte is copied once.
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._sums = bytearray()

    @property
    def num_items(self) -> int:
        """Items so far: values of a wide field, items of a stream."""
        return self.num_bytes // self.field.num_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes that are not in the file yet."""
        return self._open_bytes + sum(map(len, self._chunks))

    def add(self, data: bytes, missing: bool) -> None:
        """Appends a sample's value or items."""
        if self.field.nullable and not missing and not self.field.streamed:
            # The zeros of missing values are no numbers: here a chunk cannot be looked at as a whole.
            self.range += range_of(self.field, np.frombuffer(data, dtype=self.field.dtype))
        self._append(data)

    def add_values(self, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> None:
        """Appends the values of many samples of a wide field.

        Args:
            values: array of shape (samples, *field_shape), as stored; copied.
            valid: bool of shape (samples,): which are there; None if the field is not nullable.
        """
        if valid is not None:
            self.range += range_of(self.field, values[valid])
        if self._out is None or self._open or values.nbytes < _CHUNK_BYTES:
            self._append(values.tobytes())
            return
        # A chunk by itself need not be copied.
        self.num_bytes += values.nbytes
        if valid is None:
            self.range += range_of(self.field, values)
        self._out.write(values.reshape(-1).view(np.uint8).data)

    def add_items(self, data: bytes) -> None:
        """Appends the items of many samples of a stream."""
        self._append(data)

    def _append(self, data: bytes) -> None:
        self.num_bytes += len(data)
        self._open.append(data)
        self._open_bytes += len(data)
        if self._open_bytes >= _CHUNK_BYTES:
            self._close_chunk(last=False)

    def value_sum(self, data: bytes, local_id: int) -> int:
        """Returns the checksum of a sample's value."""
        return block_sum(data, self._starts.at(local_id))

    def value_sums(self, values: NDArray[Any], local_id: int) -> list[int]:
        """Returns the checksums of the values of many samples, the first of which has that local id."""
        rows = values.view(np.uint8).reshape(len(values), self.field.num_bytes)
        return row_sums(rows, self._starts.many(local_id, len(rows)))

    def finish(self) -> list[bytes]:
        """Returns what is not in the file yet."""
        if self._open_bytes:
            self._close_chunk(last=True)
        return self._chunks

    @property
    def sums(self) -> bytearray:
        """The checksums of a stream's blocks, once it is finished."""
        return self._sums

    def _close_chunk(self, last: bool) -> None:
        chunk = b"".join(self._open)
        self._open, self._open_bytes = [], 0
        if self.field.streamed:
            # What is left over of a block waits for the rest of it.
            whole = len(chunk) if last else len(chunk) // layout.BLOCK_BYTES * layout.BLOCK_BYTES
            chunk, left = chunk[:whole], chunk[whole:]
            self._open, self._open_bytes = [left], len(left)
            self._sum_blocks(chunk)
        if self.field.streamed or not self.field.nullable:
            self.range += range_of(self.field, np.frombuffer(chunk, dtype=self.field.dtype))
        if self._out is not None:
            self._out.write(chunk)
        else:
            self._chunks.append(chunk)

    def _sum_blocks(self, chunk: bytes) -> None:
        data, size = np.frombuffer(chunk, dtype=np.uint8), layout.BLOCK_BYTES
        whole, count = len(data) // size, -(-len(data) // size)
        identities = self._starts.many(len(self._sums) // 4, count)
        sums = row_sums(data[: whole * size].reshape(whole, size), identities[:whole])
        sums += [block_sum(data[whole * size :], identity) for identity in identities[whole:]]
        self._sums += np.array(sums, dtype="<u4").tobytes()
