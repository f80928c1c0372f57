"""One sample to its packed row, record and wide values."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardload.codecs import Codec
from shardload.errors import PackError
from shardload.format import layout
from shardload.format.record import record_layout
from shardload.format.rows import PLACE, RAW, STORED, VALIDITY, row_layout, sum_column
from shardload.format.schema import Field, Schema
from shardload.writer.values import ValueMismatch, describe, encoder, scalar_code


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample ready to be placed in a shard; identity and place are not in it yet."""

    fixed: dict[str, Any]
    """What goes into the packed row by column: numbers, or bytes of arrays."""
    wide: list[bytes]
    """Values of the wide fields, in order."""
    record: bytes
    """The record after its checksum; empty if the schema has no field in the record."""
    raw_bytes: int
    """Length of the whole record with all fields decompressed."""
    framed: bool
    """Whether the compressed fields are a frame."""

    @property
    def stored_bytes(self) -> int:
        """Length of the whole record as stored; 0 if there is none."""
        return len(self.record) + 4 if self.record else 0


class SampleEncoder:
    """Encodes samples of one schema. The same sample always gives the same bytes."""

    def __init__(self, schema: Schema, codec: Codec | None) -> None:
        self.schema = schema
        self._codec = codec
        self._encoders = [(field, encoder(field)) for field in schema.fields]
        self._records = record_layout(schema)
        self._lengths = struct.Struct(f"<{len(self._records.fields)}I")
        self._wide = [field.name for field in schema.wide_fields]
        self._row_names = [field.name for field in schema.row_fields]

    def encode(self, sample: Mapping[str, Any], place: object) -> EncodedSample:
        """Returns the encoded sample.

        Args:
            sample: field name -> value.
            place: where the sample comes from: its `str()` stands in messages ("sample 7", "data.jsonl line 3").

        Raises:
            PackError: the sample does not fit the schema; names the field, what was expected and what came.
        """
        if not isinstance(sample, Mapping):
            raise PackError(f"{place}: a sample is a mapping of field name to value, got {describe(sample)}")
        stored: dict[str, Any] = {}
        validity = 0
        nullable = 0
        for field, encode in self._encoders:
            value = sample.get(field.name)
            if value is None:
                stored[field.name] = _missing(field, sample, place)
            else:
                try:
                    stored[field.name] = encode(value)
                except ValueMismatch as error:
                    raise PackError(f"{place}: field {field.name!r}: {error}") from None
                validity |= field.nullable << nullable
            nullable += field.nullable
        if len(sample) > len(stored) or sample.keys() - stored.keys():
            unknown = next(name for name in sample if name not in stored)
            raise PackError(f"{place}: field {unknown!r} is not in the schema {self.schema}")
        fixed = {name: stored[name] for name in self._row_names}
        if nullable:
            fixed[VALIDITY] = validity.to_bytes(-(-nullable // 8), "little")
        record, raw_bytes, framed = self._encode_record(stored, place)
        return EncodedSample(fixed, [stored[name] for name in self._wide], record, raw_bytes, framed)

    def _encode_record(self, stored: dict[str, Any], place: object) -> tuple[bytes, int, bool]:
        records = self._records
        if not records.fields:
            return b"", 0, False
        values = [stored[field.name] for field in records.fields]
        header = self._lengths.pack(*map(len, values))
        plain = [values[i] for i in records.plain]
        packed = b"".join([values[i] for i in records.packed])
        raw_bytes = 4 + len(header) + sum(map(len, values))
        if raw_bytes > layout.MAX_RECORD_BYTES:
            raise PackError(f"{place}: its fields have {raw_bytes} bytes together; a record holds less than 4 GiB")
        framed = False
        if packed and self._codec is not None:
            frame = self._codec.compress(packed)
            framed = len(frame) < len(packed)
            packed = frame if framed else packed
        return b"".join([header, *plain, packed]), raw_bytes, framed


class RowPacker:
    """Packs the columns of one row."""

    def __init__(self, schema: Schema) -> None:
        dtype = row_layout(schema).dtype
        fields = {field.name: field for field in schema.row_fields}
        codes, self._names = "<", sorted(dtype.names or (), key=lambda name: dtype.fields[name][1])  # type: ignore[index]
        for name in self._names:
            size = dtype.fields[name][0].itemsize  # type: ignore[index]
            codes += _column_code(name, fields.get(name), size)
        self._struct = struct.Struct(codes + "x" * (dtype.itemsize - struct.calcsize(codes)))
        self._sums = [sum_column(field) for field in schema.wide_fields]

    def pack(self, sample: EncodedSample, place: int, sums: list[int]) -> bytes:
        """Returns the packed row of a sample whose record starts at `place` in the file."""
        flags = layout.RECORD_FLAG_FRAME if sample.framed else 0
        columns = sample.fixed | dict(zip(self._sums, sums, strict=True))
        columns |= {PLACE: place | flags << layout.OFFSET_BITS, STORED: sample.stored_bytes, RAW: sample.raw_bytes}
        return self._struct.pack(*[columns[name] for name in self._names])


def _column_code(name: str, field: Field | None, num_bytes: int) -> str:
    if name == PLACE:
        return "Q"
    if field is None and name != VALIDITY:
        return "I"
    return scalar_code(field) if field is not None and not field.shape else f"{num_bytes}s"


def _missing(field: Field, sample: Mapping[str, Any], place: object) -> Any:
    """Returns what is stored for a missing value, or refuses."""
    if not field.nullable:
        got = "None" if field.name in sample else "no such field in the sample"
        raise PackError(
            f"{place}: field {field.name!r}: expected {field.type}, got {got}; if it may be missing, its type is {field.type}?"
        )
    if field.in_record:
        return b""
    return bytes(field.num_bytes) if field.shape or field.wide else 0
