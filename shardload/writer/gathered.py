"""Batches of samples put together before they are written: what a write costs whatever its size is paid once for many."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format.schema import Schema
from shardload.writer.batch import EncodedBatch
from shardload.writer.batch_values import Items

_HELD_BYTES = 1 << 20
"""So many bytes are copied with the interpreter's lock held: numpy lets go of it, and to have it back from threads that read takes
longer than the copy."""


class Gathered:
    """Samples that follow each other, of several batches. Copies what a batch shares with who gave it.

    Used again, as memory that was touched before costs less than the copy.
    """

    def __init__(self, schema: Schema, wanted_bytes: int, most: int) -> None:
        """Describes it.

        Args:
            schema: the fields.
            wanted_bytes: how much is to be put together.
            most: samples at most.
        """
        self.num_bytes = 0
        """Bytes of the samples so far."""
        self._schema = schema
        self._wanted_bytes = wanted_bytes
        row_bytes = sum(field.num_bytes for field in schema.wide_fields)
        self._capacity = min(most, max(1, wanted_bytes // row_bytes)) if row_bytes else most
        self._num_samples = 0
        self._rooms: list[NDArray[Any]] = []
        self._batches: list[EncodedBatch] = []

    def __len__(self) -> int:
        return self._num_samples

    @property
    def is_full(self) -> bool:
        """Whether there is as much as was wanted."""
        return self._num_samples >= self._capacity or self.num_bytes >= self._wanted_bytes

    def fits(self, batch: EncodedBatch) -> bool:
        """Tells whether there is room for a batch; the first one finds room whatever it takes."""
        return not self._num_samples or self._num_samples + len(batch) <= self._capacity

    def add(self, batch: EncodedBatch, num_bytes: int) -> None:
        """Copies a batch that fits, which takes so many bytes."""
        start, stop = self._num_samples, self._num_samples + len(batch)
        if not start and batch.wide:
            self._make_room(stop)
        for room, values in zip(self._rooms, batch.wide, strict=True):
            _copy(values, room[start:stop])
        batch.wide, batch.streams = [], [_own(items) for items in batch.streams]
        self._batches.append(batch)
        self._num_samples = stop
        self.num_bytes += num_bytes

    def joined(self) -> EncodedBatch:
        """Returns all samples as one batch, which shares its memory with this until `clear`."""
        batches = self._batches
        return EncodedBatch(
            self._schema,
            np.concatenate([batch.raw_rows for batch in batches]),
            [room[: self._num_samples] for room in self._rooms],
            [_joined(streams) for streams in zip(*(batch.streams for batch in batches), strict=True)],
            [[value for one in column for value in one] for column in zip(*(b.values for b in batches), strict=True)],
            np.concatenate([batch.lengths for batch in batches]),
            np.concatenate([batch.validity for batch in batches]),
            [key for batch in batches for key in batch.keys],
        )

    def clear(self) -> None:
        """Forgets the samples; keeps the memory, but for that of a batch larger than what is wanted."""
        self._batches, self._num_samples, self.num_bytes = [], 0, 0
        if self._rooms and len(self._rooms[0]) > self._capacity:
            self._rooms = []

    def _make_room(self, num_samples: int) -> None:
        if not self._rooms or len(self._rooms[0]) < num_samples:
            size = max(self._capacity, num_samples)
            self._rooms = [np.empty((size, *field.shape), dtype=field.dtype) for field in self._schema.wide_fields]


def _copy(values: NDArray[Any], room: NDArray[Any]) -> None:
    """Copies contiguous values to room of their shape and dtype."""
    if values.nbytes > _HELD_BYTES:
        room[...] = values
    else:
        room.reshape(-1).view(np.uint8).data[:] = values.reshape(-1).view(np.uint8).data


def stored_bytes(batch: EncodedBatch) -> int:
    """Returns about how many bytes a batch takes in a shard."""
    values = int(batch.lengths.sum(dtype=np.int64)) if batch.values else 0
    return batch.raw_rows.nbytes + sum(batch.value_bytes(len(batch))) + values


def _own(items: Items) -> Items:
    """Returns items in memory of their own."""
    data = np.frombuffer(items.joined(), dtype=np.uint8)
    return Items(data, items.offsets - items.offsets[0], items.item_bytes)


def _joined(streams: tuple[Items, ...]) -> Items:
    counts = np.concatenate([items.counts for items in streams])
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return Items(np.concatenate([items.data for items in streams]), offsets, streams[0].item_bytes)
