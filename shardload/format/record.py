"""Records: all of a sample's variable-length values in one piece (FORMAT.md section 7)."""

from __future__ import annotations

import struct
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

    @property
    def external_bytes(self) -> int:
        """Bytes of an external record up to those of its fields: header, file and places."""
        return self.header.size + 4 + 8 * len(self.fields)

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
    external: bool = False
    """Whether these are external records: of those `stored` does not count what lies in files."""

    def __getitem__(self, part: slice | NDArray[np.int64]) -> RecordPlaces:
        return RecordPlaces(self.start[part], self.stored[part], self.raw[part], self.framed[part], self.external)


def external_records(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which of the packed rows say that their record is external: bool of shape (rows,)."""
    flag = np.uint64(layout.RECORD_FLAG_EXTERNAL << layout.OFFSET_BITS)
    mask: NDArray[np.bool_] = rows[PLACE] & flag != 0
    return mask


def record_places(
    rows: NDArray[Any],
    heap_start: int | NDArray[np.int64],
    heap_stop: int | NDArray[np.int64],
    header_bytes: int,
    external: bool = False,
) -> RecordPlaces:
    """Returns where the records of packed rows lie.

    Args:
        rows: the packed rows.
        heap_start: first byte of the heap, one for all or one a row.
        heap_stop: byte after the heap, likewise.
        header_bytes: bytes of a record's header; of an external one all up to its fields.
        external: whether these are external records; one of the other kind is refused.

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
    good &= stored >= header_bytes
    if external:
        good &= flags == np.uint64(layout.RECORD_FLAG_EXTERNAL)
    else:
        good &= (raw >= stored) & (flags <= np.uint64(layout.RECORD_FLAG_FRAME))
    if not good.all():
        bad = int(np.argmin(good))
        heap_start, heap_stop = (np.broadcast_to(edge, len(rows))[bad] for edge in (heap_start, heap_stop))
        raise FormatError(
            f"a packed row points at bytes {start[bad]} to {start[bad] + stored[bad]} (raw {raw[bad]}, flags {flags[bad]}), "
            f"which is no record in the heap from {heap_start} to {heap_stop}",
            start=int(start[bad]),
            stop=int(start[bad] + stored[bad]),
            sample_id=bad,
        )
    return RecordPlaces(start, stored, raw, flags == np.uint64(layout.RECORD_FLAG_FRAME), external)


def record_headers(data: Any, starts: NDArray[np.int64], layout_: RecordLayout) -> NDArray[np.uint32]:
    """Returns the headers of the records that start at some bytes of a buffer: uint32 of shape (records, 1 + fields)."""
    whole = np.frombuffer(data, dtype=np.uint8)
    headers: NDArray[np.uint32] = whole[starts[:, None] + np.arange(layout_.header.size)].view("<u4")
    return headers


def record_lengths(
    headers: NDArray[np.uint32], layout_: RecordLayout, places: RecordPlaces
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the lengths that the headers of many records give.

    Args:
        headers: uint32 of shape (records, 1 + fields).
        layout_: layout of the schema's records.
        places: where the records lie.

    Returns:
        The fields' lengths, int64 of shape (records, fields), and of the packed fields together: int64 of shape (records,).

    Raises:
        FormatError: lengths and record do not agree; `sample_id` is the record's place among the given ones.
    """
    lengths = headers[:, 1:].astype(np.int64)
    packed = lengths[:, list(layout_.packed)].sum(axis=1)
    plain = lengths[:, list(layout_.plain)].sum(axis=1)
    stored = places.stored - layout_.header.size - plain
    good = layout_.header.size + plain + packed == places.raw
    good &= np.where(places.framed, (stored > 0) & (stored < packed), stored == packed)
    if not good.all():
        bad = int(np.argmin(good))
        raise FormatError(
            f"the field lengths {tuple(lengths[bad, :8].tolist())} do not fit a record of {places.raw[bad]} bytes, "
            f"{places.stored[bad]} as stored",
            sample_id=bad,
        )
    return lengths, packed
