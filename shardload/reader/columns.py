"""What a field holds in many samples, some thousands of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardload.format.keys import key_bytes, key_digest
from shardload.format.ragged import Ragged
from shardload.format.schema import Field, Schema
from shardload.reader.access import Buffers
from shardload.reader.batch import SampleBatch, typed_values
from shardload.reader.strings import ByteStrings

Int64 = NDArray[np.int64]

_CHUNK_SAMPLES = 1 << 14


class Readable(Protocol):
    """What samples are read from as columns."""

    location: str

    @property
    def schema(self) -> Schema:
        """All fields."""

    def read_batch(self, sample_ids: Int64, buffers: Buffers | None, fields: list[Field], /) -> SampleBatch:
        """Returns samples."""


def lengthy_field(source: Readable, name: str) -> Field:
    """Returns a field whose values have lengths of their own.

    Raises:
        ValueError: it is none.
    """
    field = source.schema.get(name)
    if field is None or field.fixed or field.listed:
        raise ValueError(f"{source.location}: {name!r} is not a field of bytes, str, json or media, and not ragged")
    return field


def read_column(source: Readable, name: str, sample_ids: Int64) -> NDArray[Any]:
    """Returns a fixed field of samples: array of shape (samples, *field_shape); bfloat16 as float32.

    Of a nullable field a masked array, masked where the value is missing.

    Raises:
        ValueError: it is no fixed field.
    """
    field = source.schema.get(name)
    if field is None or not field.fixed:
        fixed = ", ".join(field.name for field in source.schema.fields if field.fixed)
        raise ValueError(f"{source.location}: {name!r} is not a fixed field; those are {fixed or 'none'}")
    stored = np.empty((len(sample_ids), *field.shape), dtype=field.dtype)
    valid = np.ones(len(sample_ids), dtype=np.bool_)
    for part in _chunks(sample_ids):
        column = source.read_batch(sample_ids[part], {field.name: stored[part]}, [field]).columns[field.name]
        if column.valid is not None:
            valid[part] = column.valid
    values = typed_values(field, stored)
    if not field.nullable:
        return values
    return np.ma.MaskedArray(values, mask=np.broadcast_to(~valid.reshape(-1, *[1] * len(field.shape)), values.shape))


def read_lengths(source: Readable, name: str, sample_ids: Int64) -> Int64:
    """Returns the items of a ragged field, or the bytes of another one, in samples: int64 of shape (samples,).

    Raises:
        ValueError: as for `lengthy_field`.
    """
    field = lengthy_field(source, name)
    lengths = np.empty(len(sample_ids), dtype=np.int64)
    for part in _chunks(sample_ids):
        values = source.read_batch(sample_ids[part], None, [field]).columns[field.name].values
        if isinstance(values, Ragged):
            lengths[part] = np.diff(values.offsets)
        else:
            lengths[part] = values.lengths() if isinstance(values, ByteStrings) else [len(value) for value in values]
    return lengths


def read_hashes(source: Readable, name: str, sample_ids: Int64) -> NDArray[np.uint64]:
    """Returns the first 8 bytes of the digest of a field's value, as of a key, in samples: uint64 of shape (samples,).

    Args:
        source: what is read.
        name: a field of integers, bytes or str, not nullable.
        sample_ids: int64 of shape (samples,).

    Raises:
        ValueError: it is another one.
    """
    field = source.schema.get(name)
    if field is None or not can_be_hashed(field):
        raise ValueError(f"{source.location}: {name!r} is no field of integers, bytes or str without missing values")
    digests = []
    for part in _chunks(sample_ids):
        batch = source.read_batch(sample_ids[part], None, [field])
        values = batch.columns[field.name].values
        single = values.tolist() if isinstance(values, np.ndarray) else batch.values_of(field.name)
        digests += [key_digest(key_bytes(field, value))[:8] for value in single]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def can_be_hashed(field: Field | None) -> bool:
    """Tells whether `read_hashes` takes a field."""
    if field is None or field.starred or field.nullable:
        return False
    integer = field.fixed and not field.shape and field.dtype.kind in "iu" and field.kind not in ("bool", "bfloat16")
    return integer or field.kind in ("bytes", "str")


def _chunks(sample_ids: Int64) -> Iterator[slice]:
    for start in range(0, len(sample_ids), _CHUNK_SAMPLES):
        yield slice(start, min(start + _CHUNK_SAMPLES, len(sample_ids)))
