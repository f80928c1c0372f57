"""Records: all of a sample's variable-length values in one piece (FORMAT.md section 7)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format import layout
from shardload.format.rows import PLACE, RAW, STORED
from shardload.format.schema import Field, Schema


@dataclass(frozen=True)
class RecordLayout:
    """Which fields a record holds, and in what order."""

    fields: tuple[Field, ...]
    """The fields stored in the record, in the order of the schema: the order of the lengths."""

    @cached_property
    def header(self) -> struct.Struct:
        """Checksum and lengths."""
        return struct.Struct(f"<{1 + len(self.fields)}I")

    @cached_property
    def plain(self) -> tuple[int, ...]:
        """Places among `fields` of those stored as they are; they come first."""
        return tuple(i for i, field in enumerate(self.fields) if field.codec == "none")

    @cached_property
    def packed(self) -> tuple[int, ...]:
        """Places among `fields` of those under the codec."""
        return tuple(i for i, field in enumerate(self.fields) if field.codec != "none")

    @property
    def order(self) -> tuple[int, ...]:
        """Places among `fields` in the order in which their bytes follow each other."""
        return self.plain + self.packed


@lru_cache(maxsize=64)
def record_layout(schema: Schema) -> RecordLayout:
    """Returns the record layout of a schema."""
    return RecordLayout(schema.record_fields)


@dataclass(frozen=True, slots=True)
class RecordPlaces:
    """Where the records of some samples lie in their shard, checked against its heap: arrays of shape (samples,)."""

    start: NDArray[np.int64]
    """First byte in the file."""
    stored: NDArray[np.int64]
    """Bytes as stored."""
    raw: NDArray[np.int64]
    """Bytes with all fields decompressed."""
    framed: NDArray[np.bool_]
    """Whether the compressed fields are a zstd frame."""


def record_places(rows: NDArray[Any], heap_start: int, heap_stop: int, header_bytes: int) -> RecordPlaces:
    """Returns where the records of packed rows lie.

    Raises:
        FormatError: a record would lie outside the heap, or has flags or lengths that cannot be; names the bytes, and as
            `sample_id` the row's place among the given ones.
    """
    place = rows[PLACE]
    start = (place & np.uint64(layout.OFFSET_MASK)).astype(np.int64)
    flags = place >> np.uint64(layout.OFFSET_BITS)
    stored, raw = rows[STORED].astype(np.int64), rows[RAW].astype(np.int64)
    # No sum here can wrap: offsets have 48 bits and lengths 32.
    good = (start >= heap_start) & (start + stored <= heap_stop) & (start % layout.RECORD_ALIGNMENT == 0)
    good &= (stored >= header_bytes) & (raw >= stored) & (flags <= np.uint64(layout.RECORD_FLAG_FRAME))
    if not good.all():
        bad = int(np.argmin(good))
        raise FormatError(
            f"a packed row points at bytes {start[bad]} to {start[bad] + stored[bad]} (raw {raw[bad]}, flags {flags[bad]}), "
            f"which is no record in the heap from {heap_start} to {heap_stop}",
            start=int(start[bad]),
            stop=int(start[bad] + stored[bad]),
            sample_id=bad,
        )
    return RecordPlaces(start, stored, raw, flags == np.uint64(layout.RECORD_FLAG_FRAME))


def split_record(
    record: memoryview, layout_: RecordLayout, raw_bytes: int, framed: bool
) -> tuple[Sequence[int], memoryview, memoryview, int]:
    """Takes a stored record apart.

    Args:
        record: the record as stored.
        layout_: layout of the schema's records.
        raw_bytes: its length with all fields decompressed, from the packed row.
        framed: whether the compressed fields are a frame.

    Returns:
        The fields' lengths in order, the bytes of the plain fields, the bytes of the packed fields as stored, and the
        length those have decompressed. The views share the record's memory.

    Raises:
        FormatError: lengths and record do not agree.
    """
    header = layout_.header
    lengths = header.unpack_from(record)[1:]
    plain_bytes = sum(lengths[i] for i in layout_.plain)
    packed_bytes = sum(lengths[i] for i in layout_.packed)
    stop = header.size + plain_bytes
    stored_packed = len(record) - stop
    if header.size + plain_bytes + packed_bytes != raw_bytes or stored_packed < 0:
        raise FormatError(f"the field lengths {lengths[:8]} do not fit a record of {raw_bytes} bytes")
    if (framed and not 0 < stored_packed < packed_bytes) or (not framed and stored_packed != packed_bytes):
        raise FormatError(f"{stored_packed} bytes stored for {packed_bytes} cannot be (frame: {bool(framed)})")
    return lengths, record[header.size : stop], record[stop:], packed_bytes
