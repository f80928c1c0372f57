"""Columns of Arrow as lists of values, one a sample. What cannot be a value is a `BadValue` in its place."""

from __future__ import annotations

import datetime
import decimal
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format.schema import MEDIA_TYPES, Field
from shardload.importers.arrow_types import (
    UnsupportedTypeError,
    check_json,
    fixed_shape,
    is_binary,
    is_list,
    is_media,
    is_moment,
    is_number,
    is_text,
    pyarrow,
    shown_type,
    storage_type,
)
from shardload.importers.strict_json import STRICT_JSON

Convert = Callable[[Any], list[Any]]
"""From an array of Arrow to a value a row."""


class BadValue:
    """Stands for a value that is none."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def converter(field: Field, kind: Any) -> Convert:
    """Returns the function from a column of a type to values for a field.

    Raises:
        UnsupportedTypeError: the column does not become such a field; the text is the predicate of the column.
    """
    plain = storage_type(kind)
    if pyarrow("it").types.is_null(plain):
        return lambda array: [None] * len(array)
    convert = _converter(field, kind, plain)
    return convert if plain == kind else lambda array: convert(_storage(array))


def parsed_json(kind: Any) -> Convert:
    """Returns the function from a column of JSON in text to what that says.

    Raises:
        UnsupportedTypeError: the column is no text.
    """
    if not is_text(storage_type(kind)):
        raise UnsupportedTypeError(f"is {shown_type(kind)}, but was noted to hold JSON in text")
    return lambda array: [_parsed(text) for text in _listed(_storage(array))]


def _parsed(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return STRICT_JSON.decode(text)
    except (ValueError, RecursionError) as error:
        return BadValue(f"is broken JSON: {error}")


def _converter(field: Field, kind: Any, plain: Any) -> Convert:
    types = pyarrow("it").types
    if is_media(plain) and not field.starred and field.kind in ("bytes", *MEDIA_TYPES):
        return _media
    if field.kind == "json":
        check_json(plain)
        return lambda array: [_json(value, plain) for value in _listed(array)]
    if field.numeric:
        return _number_converter(field, kind, plain)
    if field.starred:
        if is_list(plain) and (is_text if field.kind == "str" else is_binary)(storage_type(plain.value_type)):
            return _listed
    elif field.kind == "str":
        if is_text(plain):
            return _listed
        if types.is_timestamp(plain):
            return lambda array: _timestamps(array, plain)
        if is_moment(plain) or types.is_decimal(plain):
            return lambda array: _listed(array.cast("string"))
    elif is_binary(plain):
        return _listed
    elif is_text(plain) and field.kind == "bytes":
        return lambda array: _listed(array.cast("large_binary"))
    raise _unsuited(field, kind)


def _number_converter(field: Field, kind: Any, plain: Any) -> Convert:
    if field.fixed and not field.shape:
        if is_number(plain):
            return _scalars
        types = pyarrow("it").types
        if (is_moment(plain) or types.is_duration(plain)) and "int" in field.kind:
            # What counts days or seconds in 32 bits is cast to 32 bits only.
            size = "int32" if plain.bit_width == 32 else "int64"
            return lambda array: _scalars(array.cast(size))
        raise _unsuited(field, kind)
    if is_list(plain):
        shape, leaf = fixed_shape(plain.value_type)
        if is_number(leaf):
            return lambda array: _ragged(field, array, shape)
    else:
        shape, leaf = fixed_shape(kind)
        if shape and is_number(leaf):
            return lambda array: _fixed(field, array, shape)
    inner = plain
    while is_list(inner) or pyarrow("it").types.is_fixed_size_list(inner):
        inner = storage_type(inner.value_type)
    if inner == plain or not is_number(inner):
        raise _unsuited(field, kind)
    # Lists in lists, such as images of datasets: whether they are of one shape is seen when they are stored.
    return _listed


def _unsuited(field: Field, kind: Any) -> UnsupportedTypeError:
    return UnsupportedTypeError(f"is {shown_type(kind)} and cannot be {field.type}")


def _storage(array: Any) -> Any:
    module = pyarrow("it")
    while True:
        if isinstance(array.type, module.BaseExtensionType):
            array = array.storage
        elif module.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        else:
            return array


def _listed(array: Any) -> list[Any]:
    try:
        values: list[Any] = array.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_one(scalar) for scalar in array]


def _one(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return BadValue(f"is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}")


def _scalars(array: Any) -> list[Any]:
    if array.null_count:
        values: list[Any] = array.to_pylist()
        return values
    numbers: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
    return numbers


def _timestamps(array: Any, kind: Any) -> list[Any]:
    if kind.tz is None:
        return _listed(array.cast("string"))
    # Without the zone the values are UTC; local times would depend on the rules of the zones that are installed.
    utc = _listed(array.cast(pyarrow("it").timestamp(kind.unit)).cast("string"))
    return [None if text is None else f"{text}Z" for text in utc]


def _media(array: Any) -> list[Any]:
    # What stands within a struct that is null need not be null itself.
    data, paths, there = _listed(array.field("bytes")), _listed(array.field("path")), array.is_valid().to_pylist()
    return [
        None if not valid else _unembedded(path) if one is None and path is not None else one
        for one, path, valid in zip(data, paths, there, strict=True)
    ]


def _unembedded(path: Any) -> BadValue:
    return BadValue(f"names the file {path!r:.200} but holds no bytes: save the dataset with its files embedded")


def _json(value: Any, kind: Any) -> Any:
    """Returns a value in what JSON has."""
    if value is None or isinstance(value, str | bool | int | float | BadValue):
        return value
    if isinstance(value, dict):
        inner = {kind.field(i).name: storage_type(kind.field(i).type) for i in range(kind.num_fields)}
        return {name: _json(one, inner[name]) for name, one in value.items()}
    if pyarrow("it").types.is_map(kind):
        item, pairs = storage_type(kind.item_type), dict(value)
        if len(pairs) < len(value):
            return BadValue("has a map with one key twice, which JSON cannot hold")
        return {key: _json(one, item) for key, one in pairs.items()}
    if isinstance(value, list):
        item = storage_type(kind.value_type)
        return [_json(one, item) for one in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal) else value


def _ragged(field: Field, array: Any, shape: tuple[int, ...]) -> list[Any]:
    offsets = array.offsets.to_numpy().tolist()
    items, missing = _leaves(array.values, shape)
    valid = None if not array.null_count else array.is_valid().to_pylist()
    spans = itertools.pairwise(offsets)
    ranges = [slice(start, stop) if valid is None or valid[i] else None for i, (start, stop) in enumerate(spans)]
    return _rows(field, items, missing, ranges)


def _fixed(field: Field, array: Any, shape: tuple[int, ...]) -> list[Any]:
    items, missing = _leaves(array, shape)
    valid = None if not array.null_count else array.is_valid().to_pylist()
    if missing is not None and valid is not None:
        missing[~np.array(valid)] = False
    return _rows(field, items, missing, [i if valid is None or valid[i] else None for i in range(len(array))])


def _leaves(array: Any, shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Returns the numbers in an array, shape (items, *shape), and which items lack one, or None if none does."""
    count, repeat = len(array), 1
    missing = np.zeros(count, dtype=np.bool_)
    array = _storage(array)
    while pyarrow("it").types.is_fixed_size_list(array.type):
        missing |= _nulls(array, count)
        size = array.type.list_size
        array = _storage(array.values.slice(array.offset * size, len(array) * size))
        repeat *= size
    missing |= _nulls(array, count)
    if array.null_count:
        array = array.fill_null(False if str(array.type) == "bool" else 0)
    numbers = array.to_numpy(zero_copy_only=False).reshape(count, *shape)
    return numbers, missing if missing.any() else None


def _nulls(array: Any, count: int) -> NDArray[np.bool_]:
    """Returns for each of `count` items whether the array, which has as many entries for each, has a null in it."""
    if not array.null_count:
        return np.zeros(count, dtype=np.bool_)
    nulls: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False).reshape(count, -1).any(axis=1)
    return nulls


def _rows(field: Field, items: NDArray[Any], missing: NDArray[np.bool_] | None, ranges: list[Any]) -> list[Any]:
    dtype = np.dtype(np.bool_) if field.kind == "bool" else field.dtype
    direct = items.dtype == dtype and field.kind != "bfloat16"
    if not direct and _holds(field, items):
        items, direct = items.astype(dtype), True
    rows: list[Any] = []
    for place in ranges:
        if place is None:
            rows.append(None)
        elif missing is not None and np.any(missing[place]):
            rows.append(
                BadValue("has a null within, which an array of numbers cannot hold: give its field the type json")
            )
        else:
            # As Python's numbers: whoever stores them says which does not fit.
            row = items[place]
            rows.append(row if direct else row.astype(dtype) if _holds(field, row) else row.tolist())
    return rows


def _holds(field: Field, items: NDArray[Any]) -> bool:
    """Tells whether an integer field holds these integers."""
    if items.dtype.kind not in "iu" or field.dtype.kind not in "iu" or field.kind in ("bool", "bfloat16"):
        return False
    limits = np.iinfo(field.dtype)
    return items.size == 0 or bool(limits.min <= int(items.min()) and int(items.max()) <= limits.max)
