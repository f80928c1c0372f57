"""The types of samples that functions gave: values of Python and numpy.

Types that were known before and hold all values stay. Others follow from the values: `bool`, `int64`, `float64`, `str`,
`bytes`, `jpeg` and `png` by how they begin, arrays by dtype and shape (of several lengths as `int32[*]`), numbers of numpy by
their dtype, `json` for the rest; with `?` where a value is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shardload.errors import FormatError
from shardload.format.schema import parse_field
from shardload.preparation.steps import Values
from shardload.writer.values import ValueMismatch, encoder

_MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_EXACT = 1 << 53


def infer_types(samples: Sequence[Values], before: Mapping[str, str]) -> dict[str, str]:
    """Returns field name -> type; fields in the order in which they first appear.

    Args:
        samples: the first ones.
        before: the types that their source had, by name.
    """
    names = dict.fromkeys(name for sample in samples for name in sample)
    types = {}
    for name in names:
        values = [sample.get(name) for sample in samples]
        there = [value for value in values if value is not None]
        nullable = len(there) < len(values)
        kept = before.get(name, "").rstrip("?")
        text = kept if kept and there and _holds(name, kept, there) else _type_of(there)
        types[name] = text + ("?" if nullable or (text == kept and before[name].endswith("?")) else "")
    return types


def _holds(name: str, text: str, values: Sequence[Any]) -> bool:
    """Whether a type takes all values."""
    with contextlib.suppress(ValueMismatch, FormatError):
        encode = encoder(parse_field(name, text))
        for value in values:
            encode(value)
        return True
    return False


def _type_of(values: Sequence[Any]) -> str:
    if not values:
        return "json"
    if all(isinstance(value, np.ndarray) for value in values):
        return _array_type(values)
    if all(isinstance(value, np.generic) for value in values) and len({value.dtype for value in values}) == 1:
        return _dtype_name(values[0].dtype)
    kinds = {bool if isinstance(value, np.bool_) else type(value) for value in values}
    if kinds == {bytes}:
        return next((name for name, magic in _MAGIC.items() if all(v.startswith(magic) for v in values)), "bytes")
    if kinds in ({bool}, {str}):
        return "bool" if kinds == {bool} else "str"
    if kinds == {int} and all(-(1 << 63) <= value < 1 << 63 for value in values):
        return "int64"
    if kinds == {float} or (kinds == {int, float} and all(abs(v) <= _EXACT for v in values if type(v) is int)):
        return "float64"
    return "json"


def _array_type(values: Sequence[Any]) -> str:
    dtypes, ranks = {value.dtype for value in values}, {value.ndim for value in values}
    if len(dtypes) > 1 or len(ranks) > 1:
        return "json"
    name, shapes = _dtype_name(values[0].dtype), {value.shape for value in values}
    if len(shapes) == 1:
        shape = ",".join(map(str, values[0].shape))
        return f"{name}[{shape}]" if shape else name
    inner = {shape[1:] for shape in shapes}
    return f"{name}[{','.join(['*', *map(str, next(iter(inner)))])}]" if len(inner) == 1 else "json"


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return "bool" if dtype.kind == "b" else dtype.name
