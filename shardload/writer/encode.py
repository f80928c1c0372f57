"""One sample to its packed row, record, wide values and stream items."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shardload.errors import PackError
from shardload.format import layout
from shardload.format.external import ExternalFile
from shardload.format.keys import key_digest
from shardload.format.record import record_layout
from shardload.format.rows import VALIDITY, row_layout
from shardload.format.schema import Field, Schema
from shardload.writer.values import ValueMismatch, describe, encoder, scalar_code


@dataclass(slots=True)
class EncodedSample:
    """A sample ready to be placed in a shard; identity and place are not in it yet."""

    row: list[Any]
    """Columns of the packed row in their order: numbers, or bytes of arrays; what depends on the place is still 0."""
    values: list[bytes]
    """Values of the wide fields, then items of the stream fields, each in order."""
    header: bytes
    """Lengths of the record's fields; empty if the schema has no field in the record."""
    plain: bytes
    """The record's fields that are not compressed."""
    packed: bytes
    """The record's fields that are, not compressed yet."""
    raw_bytes: int
    """Length of the whole record with all fields decompressed; 0 if there is none."""
    validity: int
    """Bits of the nullable fields: 1 if there is a value."""
    key: bytes = b""
    """Digest of the sample's key, if the schema has a key."""
    file: ExternalFile | None = None
    """The existing file that fields of its record lie in; `plain` holds their places then."""
    outside: Sequence[bytes] = ()
    """What lies there, in the order of the places."""


class SampleEncoder:
    """Encodes samples of one schema. The same sample always gives the same bytes."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        dtype = row_layout(schema).dtype
        columns = {name: slot for slot, name in enumerate(row_columns(schema))}
        self._blank = [0 if dtype[name].kind != "V" and not dtype[name].shape else b"" for name in columns]
        bits = {field.name: 1 << bit for bit, field in enumerate(schema.nullable_fields)}
        # Tuples of name, encoder, place in the packed row if it goes there, bit of the validity or 0, and the field: they are
        # taken apart faster than attributes are looked up, and this is done for every value.
        self._fields = [(f.name, encoder(f), columns.get(f.name), bits.get(f.name, 0), f) for f in schema.fields]
        self._validity = columns.get(VALIDITY)
        self._validity_bytes = -(-len(schema.nullable_fields) // 8)
        records = record_layout(schema)
        self._lengths = struct.Struct(f"<{len(records.fields)}I") if records.fields else None
        names = [field.name for field in schema.fields]
        self._plain = [names.index(records.fields[i].name) for i in records.plain]
        self._packed = [names.index(records.fields[i].name) for i in records.packed]
        self._record = [names.index(field.name) for field in records.fields]
        self._values = [names.index(field.name) for field in (*schema.wide_fields, *schema.stream_fields)]
        self._key = names.index(schema.key) if schema.key else None

    def encode(self, sample: Mapping[str, Any], place: object) -> EncodedSample:
        """Returns the encoded sample.

        Args:
            sample: field name -> value.
            place: where the sample comes from: its `str()` stands in messages ("sample 7", "data.jsonl line 3").

        Raises:
            PackError: the sample does not fit the schema; names the field, what was expected and what came.
        """
        # A plain dict is told at a tenth of the cost.
        if type(sample) is not dict and not isinstance(sample, Mapping):
            raise PackError(f"{place}: a sample is a mapping of field name to value, got {describe(sample)}")
        row, stored, validity, found = self._blank.copy(), [], 0, 0
        for name, encode, slot, bit, field in self._fields:
            value = sample.get(name)
            if value is None:
                data = missing_value(field, sample, place)
                found += name in sample
            else:
                try:
                    data = encode(value)
                except ValueMismatch as error:
                    raise PackError(f"{place}: field {name!r}: {error}") from None
                validity |= bit
                found += 1
            stored.append(data)
            if slot is not None:
                row[slot] = data
        if found != len(sample):
            unknown = next(name for name in sample if name not in self.schema)
            raise PackError(f"{place}: field {unknown!r} is not in the schema {self.schema}")
        return self._finished(row, stored, validity, place)

    def _finished(self, row: list[Any], stored: Sequence[Any], validity: int, place: object) -> EncodedSample:
        """Returns the sample of stored values; those of the packed row are in it."""
        if self._validity is not None:
            row[self._validity] = validity.to_bytes(self._validity_bytes, "little")
        key = b"" if self._key is None else stored_digest(self.schema, stored[self._key])
        values = [stored[i] for i in self._values]
        if self._lengths is None:
            return EncodedSample(row, values, b"", b"", b"", 0, validity, key)
        header = self._lengths.pack(*[len(stored[i]) for i in self._record])
        plain, packed = _joined(stored, self._plain), _joined(stored, self._packed)
        raw_bytes = 4 + len(header) + len(plain) + len(packed)
        check_record_bytes(raw_bytes, place)
        return EncodedSample(row, values, header, plain, packed, raw_bytes, validity, key)


def stored_digest(schema: Schema, stored: Any) -> bytes:
    """Returns the digest of a key, given as what is stored for it."""
    if isinstance(stored, bytes):
        return key_digest(stored)
    return key_digest(struct.pack("<" + scalar_code(schema[schema.key]), stored))


def check_record_bytes(raw_bytes: int, place: object) -> None:
    """Refuses a record that is too long.

    Raises:
        PackError: it is.
    """
    if raw_bytes > layout.MAX_RECORD_BYTES:
        raise PackError(f"{place}: its fields have {raw_bytes} bytes together; a record holds less than 4 GiB")


def _joined(stored: Sequence[bytes], places: Sequence[int]) -> bytes:
    """Returns some of the values end to end; a single one is not copied."""
    if not places:
        return b""
    return stored[places[0]] if len(places) == 1 else b"".join([stored[i] for i in places])


def missing_value(field: Field, sample: Mapping[str, Any], place: object) -> Any:
    """Returns what is stored for a missing value, or refuses."""
    if not field.nullable:
        got = "None" if field.name in sample else "no such field in the sample"
        raise PackError(
            f"{place}: field {field.name!r}: expected {field.type}, got {got}; if it may be missing, its type is "
            f"{field.type}?"
        )
    if not field.fixed:
        return b""
    return bytes(field.num_bytes) if field.shape or field.wide else 0


@lru_cache(maxsize=64)
def row_columns(schema: Schema) -> tuple[str, ...]:
    """Returns the names of the packed row's columns in the order of their bytes."""
    dtype = row_layout(schema).dtype
    return tuple(sorted(dtype.names or (), key=lambda name: dtype.fields[name][1]))  # type: ignore[index]


@lru_cache(maxsize=64)
def row_struct(schema: Schema) -> struct.Struct:
    """Returns what packs the columns of a row, given in the order of `row_columns`."""
    dtype = row_layout(schema).dtype
    fields = {field.name: field for field in schema.row_fields}
    codes = "<"
    for name in row_columns(schema):
        field, column = fields.get(name), dtype[name]
        if field is not None and not field.shape:
            codes += scalar_code(field)
        elif field is not None or name == VALIDITY:
            codes += f"{column.itemsize}s"
        else:
            codes += "Q" if column.itemsize == 8 else "I"
    return struct.Struct(codes + "x" * (dtype.itemsize - struct.calcsize(codes)))
