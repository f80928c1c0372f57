"""A batch of samples as columns, seen as a sequence of dicts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.ragged import Ragged, decode_list
from shardload.format.schema import Field
from shardload.reader.strings import ByteStrings

VALID = "_valid"
"""What tells samples from fillers, under the tail `mask`."""


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one field for a batch, as stored or decoded."""

    field: Field
    values: NDArray[Any] | Ragged | ByteStrings | list[Any]
    """Fixed fields: array of shape (batch, *field_shape), bool as uint8 and bfloat16 as uint16; ragged ones: all items in
    one array of the same dtypes; others: byte strings or, decoded already, texts. Images that were
    decoded: an array of shape (batch, 3, height, width), or where they differ in size an array a sample, None where it is
    missing."""
    valid: NDArray[np.bool_] | None = None
    """Which samples have a value, for nullable fields: bool of shape (batch,)."""

    def value(self, slot: int) -> Any:
        """Returns one sample's value: an own, writable array, or a Python value; None where it is missing."""
        if self.valid is not None and not self.valid[slot]:
            return None
        stored = self.values[slot]
        if isinstance(stored, str):
            return stored
        if isinstance(stored, bytes):
            return decode_value(self.field, stored)
        value = typed_values(self.field, np.asarray(stored))
        return value.item() if not self.field.shape and not self.field.ragged else value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


# Python's json would by itself guess at UTF-16 and take NaN, neither of which a writer may store.
_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def decode_value(field: Field, data: bytes) -> Any:
    """Returns the value of a field in the record from its bytes.

    Raises:
        ValueError: the bytes are no UTF-8, no JSON or no list.
        RecursionError: JSON is nested deeper than the interpreter's stack still has room.
    """
    if field.listed:
        items = decode_list(data)
        return [item.decode() for item in items] if field.kind == "str" else items
    if field.kind == "str":
        return data.decode()
    if field.kind == "json":
        return _JSON.decode(data.decode())
    return data


def typed_values(field: Field, stored: NDArray[Any]) -> NDArray[Any]:
    """Returns stored values of a numeric field as a new array: bool as bool, bfloat16 as float32, which holds it exactly."""
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
    location: str = ""
    """Directory of the dataset, for messages."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not len(self):
            raise IndexError(
                "this batch has no samples: with tail='short' some of several ranks have none in the last one of an epoch; use "
                "shardload.collate, or tail='mask' or 'pad'"
            )
        slot = range(len(self))[index]
        return {name: self._value(column, slot) for name, column in self.columns.items()}

    def with_fillers(self, num_valid: int) -> SampleBatch:
        """Returns these samples with a further field `_valid`, which is False for all but the first `num_valid`."""
        flags = Column(Field(VALID, "bool"), (np.arange(len(self)) < num_valid).astype(np.uint8))
        return replace(self, columns={**self.columns, VALID: flags})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[slot] for slot in range(len(self)))

    def values_of(self, name: str) -> list[Any]:
        """Returns a record field's values in all samples: bytes, str, what JSON holds, or decoded images; None where missing.

        Raises:
            FormatError: a value is no UTF-8 or no JSON; names dataset, field and sample.
        """
        column = self.columns[name]
        if isinstance(column.values, list) and column.field.numeric:
            return list(column.values)
        if not isinstance(column.values, list | ByteStrings):
            raise ValueError(f"{name!r} is not a field of bytes, str, json, lists or media: its values are an array")
        if isinstance(column.values, ByteStrings) and column.valid is None and not column.field.listed:
            if column.field.kind == "str":
                # Of an error in one of them the way below tells which.
                with contextlib.suppress(UnicodeDecodeError):
                    return column.values.texts()
            elif column.field.kind != "json":
                return column.values.tolist()
        present = [True] * len(self) if column.valid is None else column.valid.tolist()
        values: list[Any] = []
        try:
            for data, here in zip(column.values, present, strict=True):
                values.append(decode_value(column.field, data) if here else None)
        except (ValueError, RecursionError) as error:
            raise self._undecodable(column.field, len(values), error) from None
        return values

    def _value(self, column: Column, slot: int) -> Any:
        try:
            return column.value(slot)
        except (ValueError, RecursionError) as error:
            raise self._undecodable(column.field, slot, error) from None

    def _undecodable(self, field: Field, slot: int, error: Exception) -> FormatError:
        """Returns the error for bytes that have their checksum and are no value of their field all the same."""
        sample_id = int(self.sample_ids[slot])
        if isinstance(error, RecursionError):
            detail = "JSON nested too deeply to be read here"
        else:
            listed = field.listed and not isinstance(error, UnicodeDecodeError)
            detail = f"no {'list' if listed else 'JSON' if field.kind == 'json' else 'UTF-8'}: {error}"
        message = f"{self.location}: field {field.name!r} of sample {sample_id} is {detail}"
        return FormatError(message, dataset=self.location, sample_id=sample_id)
