"""Many samples, given by field, to packed rows, records, wide values and stream items: by field, not by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import PackError
from shardload.format import layout
from shardload.format.record import record_layout
from shardload.format.rows import VALIDITY, row_layout
from shardload.format.schema import Field, Schema
from shardload.writer.batch_values import Items, Stored, stored_values
from shardload.writer.encode import EncodedSample, check_record_bytes, row_struct, stored_digest
from shardload.writer.values import encoder


@dataclass(slots=True)
class EncodedBatch:
    """Samples ready to be placed in shards; identity and place are not in them yet. A slice shares their memory."""

    schema: Schema
    raw_rows: NDArray[np.uint8]
    """Packed rows: of shape (samples, row bytes); what depends on the place is still 0."""
    wide: list[NDArray[Any]]
    """Values of the wide fields, in order: each of shape (samples, *field_shape), contiguous."""
    streams: list[Items]
    """Items of the stream fields, in order."""
    values: list[list[bytes]]
    """Of the fields in the record, in order: the bytes of each sample."""
    lengths: NDArray[np.uint32]
    """Of these: little-endian, of shape (samples, fields)."""
    validity: NDArray[np.bool_]
    """Which of the nullable fields have a value: of shape (samples, fields)."""
    keys: list[bytes]
    """Digests of the samples' keys; none if the schema has no key."""

    def __len__(self) -> int:
        return len(self.raw_rows)

    def __getitem__(self, part: slice) -> EncodedBatch:
        if part.indices(len(self)) == (0, len(self), 1):
            return self
        return EncodedBatch(
            self.schema,
            self.raw_rows[part],
            [values[part] for values in self.wide],
            [items[part] for items in self.streams],
            [values[part] for values in self.values],
            self.lengths[part],
            self.validity[part],
            self.keys[part],
        )

    @property
    def rows(self) -> NDArray[Any]:
        """The packed rows as a structured array of shape (samples,): a view."""
        rows: NDArray[Any] = self.raw_rows.reshape(-1).view(row_layout(self.schema).dtype)
        return rows

    @property
    def raw_bytes(self) -> NDArray[np.int64]:
        """Length of each record with all fields decompressed: of shape (samples,)."""
        num_bytes: NDArray[np.int64] = self.lengths.sum(axis=1, dtype=np.int64) + 4 * (1 + self.lengths.shape[1])
        return num_bytes

    @property
    def plain_values(self) -> list[list[bytes]]:
        """Of the record's fields that are not compressed, in order: the bytes of each sample."""
        return [self.values[i] for i in record_layout(self.schema).plain]

    @property
    def packed_values(self) -> list[list[bytes]]:
        """Of the record's fields that are: the bytes of each sample, not compressed yet."""
        return [self.values[i] for i in record_layout(self.schema).packed]

    def packed_rows(self) -> bytes:
        """Returns the packed rows as they stand in the row table."""
        return self.raw_rows.tobytes()

    def headers(self) -> Iterator[bytes]:
        """Yields the lengths of the fields of each record, as they are stored."""
        data, size = self.lengths.tobytes(), 4 * self.lengths.shape[1]
        return (data[start : start + size] for start in range(0, len(data), size))

    def value_bytes(self, count: int) -> list[int]:
        """Returns the bytes of the first samples' values of each wide field, then of each stream."""
        wide = [field.num_bytes * count for field in self.schema.wide_fields]
        return wide + [items.num_bytes(count) for items in self.streams]

    def valid(self, field: Field) -> NDArray[np.bool_] | None:
        """Returns which samples have a value of a field; None if it is not nullable."""
        return self.validity[:, self.schema.nullable_fields.index(field)] if field.nullable else None

    def sample(self, number: int) -> EncodedSample:
        """Returns one of the samples as `SampleEncoder.encode` does."""
        one = self[number : number + 1]
        values = [array.tobytes() for array in one.wide] + [items.joined() for items in one.streams]
        header = one.lengths.tobytes()
        plain, packed = (b"".join(value for (value,) in some) for some in (one.plain_values, one.packed_values))
        raw_bytes = 4 + len(header) + len(plain) + len(packed) if self.values else 0
        validity = sum(1 << bit for bit, there in enumerate(one.validity[0].tolist()) if there)
        row = list(row_struct(self.schema).unpack(one.packed_rows()))
        return EncodedSample(row, values, header, plain, packed, raw_bytes, validity, b"".join(one.keys))


class BatchEncoder:
    """Encodes samples of one schema that are given by field, to the same as `SampleEncoder` does one by one."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._fields = [(field, encoder(field)) for field in schema.fields]
        self._names = frozenset(schema)
        # Looked up by the schema it would cost as much as a field.
        self._dtype = row_layout(schema).dtype

    def encode(self, columns: Mapping[str, Any], first: int, num_rows: int) -> EncodedBatch:
        """Returns the encoded samples, which may share the memory of what was given.

        Args:
            columns: field name -> rows as of `rows_of`; a nullable field may be left out.
            first: number of the first sample, for messages.
            num_rows: samples.

        Raises:
            PackError: one of them does not fit the schema; names sample and field, what was expected and what came.
        """
        schema = self.schema
        if not columns.keys() <= self._names:
            unknown = next(name for name in columns if name not in schema)
            raise PackError(f"sample {first}: field {unknown!r} is not in the schema {schema}")
        stored: dict[str, Any] = {}
        validity = np.ones((num_rows, len(schema.nullable_fields)), dtype=np.bool_)
        for field, encode in self._fields:
            stored[field.name], valid = stored_values(field, encode, columns.get(field.name), num_rows, first)
            if field.nullable and valid is not None:
                validity[:, schema.nullable_fields.index(field)] = valid
        values = [stored[field.name] for field in schema.record_fields]
        batch = EncodedBatch(
            schema,
            self._rows(stored, validity),
            [stored[field.name] for field in schema.wide_fields],
            [stored[field.name] for field in schema.stream_fields],
            values,
            _lengths(values, num_rows),
            validity,
            _digests(schema, stored),
        )
        if values:
            for number in np.flatnonzero(batch.raw_bytes > layout.MAX_RECORD_BYTES)[:1].tolist():
                check_record_bytes(int(batch.raw_bytes[number]), f"sample {first + number}")
        return batch

    def _rows(self, stored: Mapping[str, Stored], validity: NDArray[np.bool_]) -> NDArray[np.uint8]:
        raw = np.zeros((len(validity), self._dtype.itemsize), dtype=np.uint8)
        rows = raw.reshape(-1).view(self._dtype)
        for field in self.schema.row_fields:
            rows[field.name] = stored[field.name]
        if validity.shape[1]:
            rows[VALIDITY] = np.packbits(validity, axis=1, bitorder="little")
        return raw


def _lengths(values: list[list[bytes]], num_rows: int) -> NDArray[np.uint32]:
    lengths = np.empty((num_rows, len(values)), dtype="<u4")
    for slot, column in enumerate(values):
        lengths[:, slot] = np.fromiter(map(len, column), dtype=np.int64, count=num_rows)
    return lengths


def _digests(schema: Schema, stored: Mapping[str, Any]) -> list[bytes]:
    if not schema.key:
        return []
    column = stored[schema.key]
    return [stored_digest(schema, key) for key in (column if isinstance(column, list) else column.tolist())]
