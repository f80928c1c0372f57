"""What the fields of a shard, or of a whole dataset, hold (FORMAT.md section 9)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format import layout
from shardload.format.schema import Field

_ENTRY = struct.Struct("<4Q8s8sI12s")
_RANGE, _NAN = 1, 2


@dataclass(frozen=True, slots=True)
class FieldStatistics:
    """What the values of one field are. Two of them add up to that of both."""

    num_missing: int = 0
    """Samples without a value."""
    num_values: int = 0
    """Samples with one."""
    total_length: int = 0
    """Sum of the lengths: items of ragged fields, bytes of others that vary, 0 for fixed ones."""
    shortest: int = 0
    longest: int = 0
    smallest: int | float | None = None
    """Least number, NaN aside; None where there is none."""
    largest: int | float | None = None
    has_nan: bool = False

    def __add__(self, other: FieldStatistics) -> FieldStatistics:
        lengths = [s for s in (self, other) if s.num_values]
        ranges = [s for s in (self, other) if s.smallest is not None and s.largest is not None]
        return FieldStatistics(
            self.num_missing + other.num_missing,
            self.num_values + other.num_values,
            self.total_length + other.total_length,
            min((s.shortest for s in lengths), default=0),
            max((s.longest for s in lengths), default=0),
            min((s.smallest for s in ranges), default=None),  # type: ignore[type-var]
            max((s.largest for s in ranges), default=None),  # type: ignore[type-var]
            self.has_nan or other.has_nan,
        )


def of_lengths(lengths: NDArray[Any], num_missing: int) -> FieldStatistics:
    """Returns the statistics of values of the given lengths; the missing ones are not among them."""
    if not len(lengths):
        return FieldStatistics(num_missing)
    total = int(lengths.sum(dtype=np.uint64))
    return FieldStatistics(num_missing, len(lengths), total, int(lengths.min()), int(lengths.max()))


def range_of(field: Field, stored: NDArray[Any]) -> FieldStatistics:
    """Returns the range of numbers as stored, of any shape; samples are not counted."""
    if not stored.size:
        return FieldStatistics()
    if field.kind == "bfloat16":
        stored = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if stored.dtype.kind != "f":
        return FieldStatistics(smallest=int(stored.min()), largest=int(stored.max()))
    smallest, largest = float(stored.min()), float(stored.max())
    has_nan = bool(np.isnan(smallest))
    if has_nan:
        smallest, largest = float(np.fmin.reduce(stored, axis=None)), float(np.fmax.reduce(stored, axis=None))
    if np.isnan(smallest):
        return FieldStatistics(has_nan=True)
    # Which zero comes out of a reduction depends on the processor's vectors; plus zero makes it the positive one.
    return FieldStatistics(smallest=smallest + 0.0, largest=largest + 0.0, has_nan=has_nan)


def encode_statistics(fields: Sequence[Field], statistics: Sequence[FieldStatistics]) -> bytes:
    """Returns the content of a shard's section of statistics."""
    entries = []
    for field, one in zip(fields, statistics, strict=True):
        ranged = one.smallest is not None and one.largest is not None
        bounds = [struct.pack(_code(field), bound) if ranged else bytes(8) for bound in (one.smallest, one.largest)]
        flags = _RANGE * ranged | _NAN * one.has_nan
        lengths = (one.num_missing, one.total_length, one.shortest, one.longest)
        entries.append(_ENTRY.pack(*lengths, *bounds, flags, bytes(12)))
    return b"".join(entries)


def decode_statistics(data: bytes, fields: Sequence[Field], num_samples: int) -> list[FieldStatistics]:
    """Returns the statistics of a shard's fields.

    Raises:
        FormatError: the bytes are no statistics of so many samples.
    """
    statistics = []
    for field, entry in zip(fields, _ENTRY.iter_unpack(data), strict=True):
        missing, total, shortest, longest, low, high, flags, zeros = entry
        ranged, has_nan = bool(flags & _RANGE), bool(flags & _NAN)
        if missing > num_samples or shortest > longest or flags > 3 or any(zeros) or (flags and not field.numeric):
            raise FormatError(f"field {field.name!r}: its statistics cannot be those of {num_samples} samples")
        smallest, largest = (struct.unpack(_code(field), bound)[0] if ranged else None for bound in (low, high))
        values = num_samples - missing
        statistics.append(FieldStatistics(missing, values, total, shortest, longest, smallest, largest, has_nan))
    return statistics


def _code(field: Field) -> str:
    if field.dtype.kind == "f" or field.kind == "bfloat16":
        return "<d"
    return "<q" if field.dtype.kind == "i" else "<Q"


assert _ENTRY.size == layout.STATISTICS_ENTRY_BYTES
