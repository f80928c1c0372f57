"""A batch of samples as columns, seen as a sequence of dicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from shardload.format.schema import Field


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one field for a batch, as stored."""

    field: Field
    values: NDArray[Any] | list[bytes]
    """Fixed fields: array of shape (batch, *field_shape), bool as uint8 and bfloat16 as uint16; others: bytes a sample."""
    valid: NDArray[np.bool_] | None = None
    """Which samples have a value, for nullable fields: bool of shape (batch,)."""

    def value(self, slot: int) -> Any:
        """Returns one sample's value: an own, writable array, or a Python value; None where it is missing."""
        if self.valid is not None and not self.valid[slot]:
            return None
        stored = self.values[slot]
        if isinstance(stored, bytes):
            return decode_value(self.field, stored)
        value = typed_values(self.field, np.asarray(stored))
        return value.item() if not self.field.shape else value


def decode_value(field: Field, data: bytes) -> Any:
    """Returns the value of a field in the record from its bytes."""
    if field.kind == "str":
        return data.decode()
    if field.kind == "json":
        return json.loads(data)
    return data


def typed_values(field: Field, stored: NDArray[Any]) -> NDArray[Any]:
    """Returns stored values of a fixed field as a new array: bool as bool, bfloat16 as float32, which holds it exactly."""
    if field.kind == "bool":
        return np.asarray(stored, dtype=np.bool_)
    if field.kind == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.array(stored, dtype=field.dtype.newbyteorder("="))


@dataclass(frozen=True)
class SampleBatch(Sequence[dict[str, Any]]):
    """Samples of one batch. Each is made a dict when it is asked for; columns serve a whole batch at once."""

    sample_ids: NDArray[np.int64]
    """int64 of shape (batch,)."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """The fields asked for, in the order of the schema."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        slot = range(len(self))[index]
        return {name: column.value(slot) for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[slot] for slot in range(len(self)))
