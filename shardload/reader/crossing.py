"""Batches that a child process has read, in memory that it shares with whoever asked for them.

The one side writes values and describes where they lie, the other makes the same columns of them: byte strings as `bytes`, arrays
as its own, or those that it lent.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardload.format.ragged import Ragged
from shardload.format.schema import Field
from shardload.memory import SharedArena
from shardload.memory.byte_strings import keep_freed_memory
from shardload.memory.ranges import slices, texts
from shardload.reader.batch import Column, SampleBatch
from shardload.reader.strings import ByteStrings, Texts

Int64 = NDArray[np.int64]

_ALIGNMENT = 64
_LARGE_BYTES = 4096
"""Byte strings this long on average are copied by the kernel, a thousand a call, so that other threads run meanwhile."""

Place = tuple[int, str, tuple[int, ...]]
"""Where an array lies in the shared memory, its dtype and its shape."""


class Sent(NamedTuple):
    """One column on its way."""

    kind: str
    """`lent`, `array`, `ragged`, `bytes` or `arrays`."""
    places: Sequence[Place | None]
    """Of its arrays: the values; values and offsets; for byte strings where each starts and the last one ends."""
    valid: Place | None
    field: Field | None
    """What it holds, where that is not the field that was asked for."""


class Scratch:
    """A piece of shared memory that is filled from its start."""

    def __init__(self, memory: mmap.mmap, start: int, stop: int) -> None:
        """Describes the piece as a half-open range of the memory."""
        self._memory = memory
        self._next = start
        self._stop = stop

    def take(self, num_bytes: int) -> int:
        """Returns where so many bytes start.

        Raises:
            MemoryError: there are not so many left.
        """
        start = -(-self._next // _ALIGNMENT) * _ALIGNMENT
        if start + num_bytes > self._stop:
            raise MemoryError(f"a burst of more than {self._stop - self._next} bytes")
        self._next = start + num_bytes
        return start

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Returns an array of undefined content in the piece."""
        num_items = math.prod(shape)
        start = self.take(num_items * dtype.itemsize)
        return (
            np.frombuffer(self._memory, dtype, num_items, start).reshape(shape) if num_items else np.empty(shape, dtype)
        )

    def put(self, data: Sequence[bytes], num_bytes: int) -> int:
        """Returns where byte strings now lie end to end."""
        start = stop = self.take(num_bytes)
        if num_bytes < _LARGE_BYTES * len(data):
            data = [b"".join(data)]
        for piece in data:
            self._memory[stop : stop + len(piece)] = piece
            stop += len(piece)
        return start

    def place(self, values: NDArray[Any]) -> Place:
        """Returns the place of an array that `empty` made, or of a copy of any other."""
        address = np.frombuffer(self._memory, np.uint8, 1).ctypes.data
        start = values.ctypes.data - address
        if not (0 <= start < self._stop and values.flags.c_contiguous and values.base is not None):
            copy = self.empty(values.shape, values.dtype)
            copy[...] = values
            start = copy.ctypes.data - address
        return start if values.size else 0, values.dtype.str, values.shape


def send(
    samples: SampleBatch, lent: Mapping[str, NDArray[Any]], fields: Sequence[Field], scratch: Scratch
) -> list[Sent]:
    """Writes a batch, and returns what it is to be made of.

    Args:
        samples: the batch.
        lent: arrays in shared memory that belong to who asked, by field; what they do not hold is written to the scratch.
        fields: the fields asked for, in the order of the columns.
        scratch: where everything else is written.

    Raises:
        MemoryError: it does not fit.
    """
    sent = []
    for asked, (name, column) in zip(fields, samples.columns.items(), strict=True):
        valid = None if column.valid is None else scratch.place(column.valid)
        values, places, kind = column.values, list[Place | None](), "array"
        if isinstance(values, ByteStrings):
            data = values.tolist()
            ends = np.cumsum([0, *map(len, data)], dtype=np.int64)
            ends += scratch.put(data, int(ends[-1]))
            kind, places = "bytes", [scratch.place(ends)]
        elif isinstance(values, Ragged):
            kind, places = "ragged", [scratch.place(values.values), scratch.place(values.offsets)]
        elif isinstance(values, list):
            kind, places = "arrays", [None if value is None else scratch.place(value) for value in values]
        elif values is lent.get(name):
            kind = "lent"
        else:
            places = [scratch.place(values)]
        sent.append(Sent(kind, places, valid, None if column.field == asked else column.field))
    return sent


def receive(
    sent: Sequence[Sent],
    sample_ids: Int64,
    lent: Mapping[str, NDArray[Any]],
    fields: Sequence[Field],
    arena: SharedArena,
    location: str,
) -> SampleBatch:
    """Returns the batch that was sent. Nothing in it lies in the scratch any more.

    Args:
        sent: what `send` returned.
        sample_ids: the ids of the samples.
        lent: the same arrays as there.
        fields: the same fields as there.
        arena: the shared memory.
        location: directory of the dataset, for messages.
    """
    keep_freed_memory()
    columns: dict[str, Column] = {}
    for field, part in zip(fields, sent, strict=True):
        values: NDArray[Any] | Ragged | ByteStrings | list[Any]
        if part.kind == "bytes":
            values = _strings(part, field, arena)
        elif part.kind == "lent":
            values = lent[field.name]
        elif part.kind == "ragged":
            values = Ragged(_own(part.places[0], arena), _own(part.places[1], arena))
        elif part.kind == "arrays":
            values = [None if place is None else _own(place, arena) for place in part.places]
        else:
            values = _own(part.places[0], arena)
        columns[field.name] = Column(
            part.field or field, values, None if part.valid is None else _own(part.valid, arena)
        )
    return SampleBatch(sample_ids, columns, location)


def _own(place: Place | None, arena: SharedArena) -> NDArray[Any]:
    """Returns a copy of an array in shared memory."""
    return _shared(place, arena).copy()


def _shared(place: Place | None, arena: SharedArena) -> NDArray[Any]:
    assert place is not None
    start, dtype, shape = place
    num_items = math.prod(shape)
    if not num_items:
        return np.empty(shape, dtype)
    return np.frombuffer(arena.memory, dtype, num_items, start).reshape(shape)


def _strings(part: Sent, field: Field, arena: SharedArena) -> ByteStrings:
    """Returns byte strings, or at once the texts that they would become."""
    edges = _own(part.places[0], arena)
    lengths = np.diff(edges)
    if edges[-1] - edges[0] >= _LARGE_BYTES * len(edges):
        return ByteStrings.of(arena.byte_strings(int(edges[0]), lengths.tolist()), lengths)
    if field.kind == "str" and not field.listed and part.valid is None:
        # Of what is no text the error is made where values are.
        with contextlib.suppress(UnicodeDecodeError):
            return Texts.of(texts(arena.memory, edges[:-1], edges[1:]), lengths)
    return ByteStrings.of(slices(arena.memory, edges[:-1], edges[1:]), lengths)
