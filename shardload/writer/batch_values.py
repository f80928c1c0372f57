"""The values of one field for many samples to what is stored of them, looked at as a whole.

What the whole does not settle is left to the encoder of single values, which also finds the sample that is wrong.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import PackError
from shardload.format import layout
from shardload.format.schema import Field
from shardload.writer.encode import missing_value
from shardload.writer.values import MEDIA_MAGIC, Bfloat16Bits, Encode, ValueMismatch, scalar_code

_SINGLE_BYTES = {"bytes": bytes, "str": str, **dict.fromkeys(("jpeg", "png", "audio", "video"), bytes)}


@dataclass(slots=True)
class Items:
    """Items of a stream field, of samples that follow each other."""

    data: NDArray[np.uint8]
    """The items of all samples, one after the other, of shape (bytes,)."""
    offsets: NDArray[np.int64]
    """Where each sample's items begin in it, in items, and where the last end: shape (samples + 1,)."""
    item_bytes: int

    def __getitem__(self, part: slice) -> Items:
        start, stop, _ = part.indices(len(self.offsets) - 1)
        return Items(self.data, self.offsets[start : stop + 1], self.item_bytes)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each sample's items begin, of shape (samples,)."""
        return self.offsets[:-1]

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of each sample's items, of shape (samples,)."""
        return np.diff(self.offsets)

    def joined(self) -> bytes:
        """Returns the items of all samples."""
        return self.data[self.offsets[0] * self.item_bytes : self.offsets[-1] * self.item_bytes].tobytes()

    def num_bytes(self, count: int) -> int:
        """Returns the bytes of the first samples' items."""
        return int(self.offsets[count] - self.offsets[0]) * self.item_bytes


Stored = NDArray[Any] | Items | list[bytes]
"""Of a fixed field an array of shape (samples, *field_shape), of a stream `Items`, of others the bytes of each sample."""


def stored_values(
    field: Field, encode: Encode, rows: Any, num_rows: int, first: int
) -> tuple[Stored, NDArray[np.bool_] | None]:
    """Returns what is stored of a field, and which samples have a value; None for all.

    Args:
        field: the field.
        encode: its encoder of single values.
        rows: what `rows_of` has returned, or None where the field is left out.
        num_rows: samples.
        first: number of the first sample, for messages.

    Raises:
        PackError: a value does not fit the field; names the sample.
    """
    bulk = None if rows is None else _whole(field, rows)
    if bulk is not None:
        return bulk
    stored = _one_by_one(field, encode, [None] * num_rows if rows is None else rows, first, rows is None)
    return _assembled(field, stored), np.zeros(num_rows, np.bool_) if rows is None else _there(rows)


def _there(values: Sequence[Any]) -> NDArray[np.bool_]:
    return np.fromiter((value is not None for value in values), dtype=np.bool_, count=len(values))


def _one_by_one(field: Field, encode: Encode, values: Sequence[Any], first: int, left_out: bool) -> list[Any]:
    given: Mapping[str, None] = {} if left_out else {field.name: None}
    stored = []
    for number, value in enumerate(values, first):
        try:
            stored.append(missing_value(field, given, f"sample {number}") if value is None else encode(value))
        except ValueMismatch as error:
            raise PackError(f"sample {number}: field {field.name!r}: {error}") from None
    return stored


def _assembled(field: Field, stored: list[Any]) -> Stored:
    if field.in_record:
        return stored
    if field.streamed:
        return _items(field, b"".join(stored), np.fromiter(map(len, stored), np.int64, len(stored)) // field.num_bytes)
    if field.shape:
        return np.frombuffer(b"".join(stored), dtype=field.dtype).reshape(len(stored), *field.shape)
    return np.frombuffer(struct.pack(f"<{len(stored)}{scalar_code(field)}", *stored), dtype=field.dtype)


def _items(field: Field, data: bytes | NDArray[Any], counts: NDArray[np.int64]) -> Items:
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1).view(np.uint8)
    return Items(raw, offsets, field.num_bytes)


def _whole(field: Field, rows: Any) -> tuple[Stored, NDArray[np.bool_] | None] | None:
    """Returns what `stored_values` does, or None where values must be looked at one by one."""
    if field.fixed:
        array = _fixed(field, rows)
        return None if array is None else (array, None)
    if field.streamed:
        items = _streamed(field, rows)
        return None if items is None else (items, None)
    return _byte_strings(field, rows) if field.kind in _SINGLE_BYTES and not field.listed else None


def _fixed(field: Field, rows: Any) -> NDArray[Any] | None:
    if isinstance(rows, Bfloat16Bits):
        fits = field.kind == "bfloat16" and rows.bits.shape[1:] == field.shape
        return np.ascontiguousarray(rows.bits, dtype="<u2") if fits else None
    if field.kind == "bfloat16":
        return None
    array = rows if isinstance(rows, np.ndarray) else _array_of(field, rows)
    if array is None or array.shape[1:] != field.shape:
        return None
    # How a single NaN is stored is up to the encoder of numbers, which has another way with its payload.
    single_nan = field.dtype.kind == "f" and not field.shape and array.dtype.kind == "f" and bool(np.isnan(array).any())
    if single_nan or not _holds(field, array):
        return None
    return np.ascontiguousarray(array, dtype=field.dtype)


def _holds(field: Field, array: NDArray[Any]) -> bool:
    """Tells whether all numbers of an array can be stored as they are."""
    given, dtype = array.dtype, field.dtype
    if given == _given(field):
        return True
    if field.kind == "bool" or given.kind not in "iuf":
        return False
    if field.shape or given.kind == "f":
        return given.kind == dtype.kind and np.can_cast(given, dtype, "safe")
    if dtype.kind not in "iu":
        return False
    limits = np.iinfo(dtype)
    return not array.size or limits.min <= int(array.min()) <= int(array.max()) <= limits.max


def _given(field: Field) -> np.dtype[Any]:
    return np.dtype(np.bool_) if field.kind == "bool" else field.dtype


def _array_of(field: Field, rows: Sequence[Any]) -> NDArray[Any] | None:
    """Returns a list of arrays, of integers or of floats as an array, if they are all alike."""
    types = set(map(type, rows))
    if types == {np.ndarray} and field.shape:
        if {row.dtype for row in rows} != {_given(field)} or {row.shape for row in rows} != {field.shape}:
            return None
        return np.stack(rows)
    if field.shape or field.kind == "bool":
        return None
    if types == {int} and field.dtype.kind in "iu":
        numbers = np.array(rows)
        return numbers if numbers.dtype.kind in "iu" else None
    if types == {float} and field.dtype.kind == "f":
        doubles = np.array(rows, dtype=np.float64)
        with np.errstate(over="ignore"):
            singles = doubles.astype(field.dtype)
        # What is too large is an error that names the sample.
        return singles if (np.isinf(singles) == np.isinf(doubles)).all() else None
    return None


def _streamed(field: Field, rows: Any) -> Items | None:
    if isinstance(rows, Bfloat16Bits) or field.kind == "bfloat16":
        return None
    given = _given(field)
    if isinstance(rows, np.ndarray):
        if rows.dtype != given or rows.ndim != 2 + len(field.shape) or rows.shape[2:] != field.shape:
            return None
        if rows.shape[1] * field.num_bytes > layout.MAX_RECORD_BYTES:
            return None
        return _items(field, np.ascontiguousarray(rows), np.full(len(rows), rows.shape[1], dtype=np.int64))
    if set(map(type, rows)) != {np.ndarray} or {row.dtype for row in rows} != {given}:
        return None
    if {row.shape[1:] if row.ndim else None for row in rows} != {field.shape}:
        return None
    counts = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    if int(counts.max()) * field.num_bytes > layout.MAX_RECORD_BYTES:
        return None
    return _items(field, np.concatenate(rows), counts)


def _byte_strings(field: Field, rows: Any) -> tuple[list[bytes], NDArray[np.bool_] | None] | None:
    if not isinstance(rows, list | tuple):
        return None
    wanted, types = _SINGLE_BYTES[field.kind], set(map(type, rows))
    there: NDArray[np.bool_] | None = None
    values: Sequence[Any] = rows
    if type(None) in types and field.nullable:
        there = _there(rows)
        values = list(itertools.compress(rows, there))
        types.discard(type(None))
    if types - {wanted}:
        return None
    try:
        stored: list[bytes] = list(map(str.encode, values)) if wanted is str else list(values)
    except UnicodeEncodeError:
        return None
    magic = MEDIA_MAGIC.get(field.kind, b"")
    if magic and not all(map(_starts_with(magic), stored)):
        return None
    if max(map(len, stored), default=0) > layout.MAX_RECORD_BYTES:
        return None
    if there is None:
        return stored, None
    found = iter(stored)
    return [next(found) if one else b"" for one in there.tolist()], there


@functools.cache
def _starts_with(magic: bytes) -> Callable[[bytes], bool]:
    return lambda value: value.startswith(magic)
