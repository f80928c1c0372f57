"""What the columns of MosaicML's MDS become, by their encodings. Nothing is unpickled.

| encoding | type |
| --- | --- |
| `bytes`, `str`, `json`, `jpeg`, `png` | the same |
| `int`, `str_int`; `str_float`; `str_decimal` | `int64`; `float64`; `str` |
| `uint8` to `float64` | the same |
| `ndarray:DTYPE:SHAPE` | a fixed shape |
| `ndarray:DTYPE`, `ndarray` | a ragged first dimension, by the first samples |

All others, among them `pkl`, `pil` and lists of images, are refused by name, but may be taken as `bytes`, as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format.schema import Field
from shardload.importers.strict_json import STRICT_JSON

_DTYPES = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
    64: "uint64", 65: "int64", 66: "float64",
}  # fmt: skip
_SCALARS = {"int": "int64", **{name: name for name in _DTYPES.values()}}
_TYPES = {
    **{name: name for name in ("bytes", "str", "json", "jpeg", "png")},
    **_SCALARS,
    "str_int": "int64",
    "str_float": "float64",
    "str_decimal": "str",
}
_ARRAY = re.compile(r"ndarray(?::([a-z0-9]+)(?::([0-9]{1,9}(?:,[0-9]{1,9})*))?)?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")

Decode = Callable[[bytes], Any]


class BadValue(Exception):
    """Bytes that are no value of their encoding, or an encoding that is not taken; the text is the predicate."""


@dataclass(frozen=True, slots=True)
class ArrayEncoding:
    """What an encoding says of its arrays."""

    dtype: str
    """Nothing if each says it itself."""
    shape: tuple[int, ...]
    """Empty if each says it itself."""

    def decode(self, data: bytes) -> NDArray[Any]:
        """Returns the array in the bytes of a value, a view.

        Raises:
            BadValue: there is none.
        """
        at, dtype, shape = 0, self.dtype, self.shape
        try:
            if not dtype:
                dtype, at = _DTYPES[data[0]], 1
            if not shape:
                size = 1 << (data[at] & 3)
                start, stop = at + 1, at + 1 + (data[at] >> 2) * size
                shape = tuple(np.frombuffer(data[start:stop], f"<u{size}", (stop - start) // size).tolist())
                at = stop
            array = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), offset=at)
            if array.size != math.prod(shape):
                raise ValueError
            return array.reshape(shape)
        except (IndexError, KeyError, ValueError):
            raise BadValue("is no array of its encoding") from None


def array_encoding(encoding: str) -> ArrayEncoding | None:
    """Returns what an encoding says of its arrays; None if it has none."""
    found = _ARRAY.fullmatch(encoding)
    if found is None or (found[1] and found[1] not in _DTYPES.values()):
        return None
    shape = tuple(map(int, found[2].split(","))) if found[2] else ()
    return None if 0 in shape else ArrayEncoding(found[1] or "", shape)


def encoding_type(encoding: str) -> str:
    """Returns the type of an encoding; `array` if only its values tell.

    Raises:
        BadValue: it is not taken.
    """
    if found := _TYPES.get(encoding):
        return found
    array = array_encoding(encoding)
    if array is not None:
        if array.dtype and array.shape:
            return f"{array.dtype}[{','.join(map(str, array.shape))}]"
        return "array"
    why = ", which only unpickling would read" if encoding == "pkl" else ""
    raise BadValue(
        f"is encoded as {encoding!r:.80}{why}: leave it out with --schema, or take it as it is with the type bytes"
    )


def decoder(encoding: str, field: Field) -> Decode:
    """Returns the function from the bytes of a value to the value.

    Raises:
        BadValue: the encoding does not become values of the field.
    """
    if field.kind == "bytes" and not field.starred:
        return bytes
    known = encoding_type(encoding)
    if (known == "array") or "[" in known:
        array = array_encoding(encoding)
        if array is not None and field.numeric and (field.shape or field.starred):
            return array.decode
    elif encoding in _SCALARS:
        if field.numeric and not field.shape and not field.starred:
            return _scalar(_SCALARS[encoding])
    elif known == field.kind and not field.starred:
        return {"str": _str, "json": _json, "int64": _integer, "float64": _float}.get(known, bytes)
    raise BadValue(f"is encoded as {encoding!r} and cannot be {field.type}")


def _scalar(name: str) -> Decode:
    dtype = np.dtype(name).newbyteorder("<")

    def decode(data: bytes) -> Any:
        if len(data) != dtype.itemsize:
            raise BadValue(f"has {len(data)} bytes, not {dtype.itemsize}")
        return np.frombuffer(data, dtype)[0].item()

    return decode


def _str(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadValue(f"is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from None


def _json(data: bytes) -> Any:
    try:
        return STRICT_JSON.decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadValue(f"is broken JSON: {error}") from None


def _integer(data: bytes) -> int:
    text = _str(data)
    if not _INTEGER.fullmatch(text):
        raise BadValue(f"is no integer: {text[:40]!r}")
    return int(text)


def _float(data: bytes) -> float:
    try:
        return float(_str(data))
    except ValueError:
        raise BadValue(f"is no number: {_str(data)[:40]!r}") from None
