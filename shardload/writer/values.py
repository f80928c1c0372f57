"""One value of a sample to its stored bytes, with an error that says what was expected and what came."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from shardload.format import layout
from shardload.format.ragged import encode_list
from shardload.format.schema import Field

MEDIA_MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
# struct codes of scalars in the packed row; bfloat16 goes in as its bits.
_CODES = {"bool": "B", "bfloat16": "H", "float16": "e", "float32": "f", "float64": "d"}
_CODES |= {
    f"{sign}int{bits}": code
    for bits, pair in ((8, "bB"), (16, "hH"), (32, "iI"), (64, "qQ"))
    for sign, code in zip(("", "u"), pair, strict=True)
}

# Up to here every integer is exact. Lists with fractions come as float64, so bfloat16 has its check before and after.
_EXACT_UP_TO = {"float16": 1 << 11, "float32": 1 << 24, "float64": 1 << 53, "bfloat16": 1 << 53}

Encode = Callable[[Any], Any]


class ValueMismatch(Exception):
    """A value does not fit its field; the text says what was expected and what came."""


def scalar_code(field: Field) -> str:
    """Returns the struct code of a scalar field."""
    return _CODES[field.kind]


def encoder(field: Field) -> Encode:
    """Returns the function from a value to what is stored for it: bytes, or a number for a scalar in the packed row."""
    if field.listed:
        return _list_encoder(field)
    if not field.numeric:
        return _RECORD_ENCODERS.get(field.kind) or _media_encoder(field)
    if field.shape or field.ragged:
        return _array_encoder(field)
    return _scalar_encoder(field)


def rows_of(value: Any) -> Any:
    """Returns an array of numpy or torch, or a list, as a sequence of values that an encoder takes.

    Raises:
        ValueMismatch: it has no rows.
    """
    array = _masked_rows(value) if isinstance(value, np.ma.MaskedArray) and value.ndim else _as_array(value)
    bits = array.bits if isinstance(array, Bfloat16Bits) else array
    if isinstance(array, list | tuple) or (isinstance(bits, np.ndarray) and bits.shape):
        return array
    raise ValueMismatch(f"expected rows, an array or a list of them, got {describe(value)}")


def _masked_rows(value: Any) -> Any:
    """Returns rows with None for those that are masked, as `dataset.column` gives missing values."""
    missing = np.atleast_1d(np.ma.getmaskarray(value).all(tuple(range(1, value.ndim))))
    if not missing.any():
        return _as_array(value)
    return [None if gone else row for gone, row in zip(missing, value, strict=True)]


def describe(value: Any) -> str:
    """Returns a short description of a value for an error message: type, dtype, shape, or the value if it is short."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"{type(value).__name__} of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return f"{type(value).__name__} {value!r}"[:60]
    if isinstance(value, np.ndarray):
        return f"array of {value.dtype} {list(value.shape)}"
    if isinstance(value, str | bytes):
        return f"{type(value).__name__} of length {len(value)}"
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _mismatch(field: Field, value: Any, detail: str = "") -> ValueMismatch:
    return ValueMismatch(f"expected {field.type}, got {describe(value)}{detail}")


def _as_array(value: Any) -> Any:
    """Returns the numpy form of an array of numpy or torch; other values as they are. Never imports torch."""
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        try:
            tensor = value.detach().cpu().contiguous()
            if str(tensor.dtype) == "torch.bfloat16":
                return Bfloat16Bits(tensor.view(_sibling(tensor, "int16")).numpy().view(np.uint16))
            return tensor.numpy()
        except (TypeError, RuntimeError):
            # Sparse, quantized, of a dtype that numpy lacks, ...: the field says that it expected something else.
            return value
    # The name of a dtype is made each time it is asked for; those of numpy itself need not be.
    if isinstance(value, np.ndarray | np.generic) and value.dtype.isbuiltin != 1 and value.dtype.name == "bfloat16":
        return Bfloat16Bits(np.ascontiguousarray(value).view(np.uint16))
    if isinstance(value, np.ma.MaskedArray):
        # What is under a mask is anything, and it would be written as if it were there.
        if np.ma.is_masked(value):
            raise ValueMismatch(
                f"expected values that are there, got a masked {describe(value)}: a missing one is None"
            )
        return np.asarray(value)
    return value


def _sibling(tensor: Any, name: str) -> Any:
    """Returns another dtype of the library that a tensor comes from."""
    import sys

    return getattr(sys.modules["torch"], name)


class Bfloat16Bits:
    """Values that already are bfloat16, as their bits."""

    def __init__(self, bits: Any) -> None:
        self.bits = bits

    def __len__(self) -> int:
        return len(self.bits)

    def __iter__(self) -> Iterator[Bfloat16Bits]:
        return map(Bfloat16Bits, self.bits)


def _bfloat16_bits(field: Field, value: Any, array: Any) -> Any:
    """Returns the bits of values that are exactly representable in bfloat16."""
    try:
        wide = np.asarray(array, dtype=np.float64)
    except OverflowError:
        wide = np.asarray(np.inf)
    with np.errstate(over="ignore"):
        single = wide.astype(np.float32)
    exact = (single == wide) | (np.isnan(single) & np.isnan(wide))
    if np.asarray(array).dtype.kind not in "f":
        # Integers over 2^53 may have been rounded on the way to float64.
        exact &= np.asarray(
            np.isfinite(wide) & (np.where(np.isfinite(wide), wide, 0).astype(object) == array), np.bool_
        )
    bits = single.view(np.uint32) if single.shape else single.reshape(1).view(np.uint32).reshape(())
    if not exact.all() or (bits & np.uint32(0xFFFF)).any():
        raise _mismatch(field, value, ", which bfloat16 cannot hold exactly: round it first, for example with torch")
    return (bits >> np.uint32(16)).astype(np.uint16)


def _scalar_encoder(field: Field) -> Encode:
    dtype = field.dtype
    if field.kind == "bool":
        return lambda value: _bool(field, value)
    if dtype.kind in "iu" and field.kind != "bfloat16":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)

        def encode_integer(value: Any) -> int:
            value = _as_scalar(field, value)
            if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
                raise _mismatch(field, value)
            if not low <= value <= high:
                raise _mismatch(field, value, f", outside {low} to {high}")
            return int(value)

        return encode_integer

    def encode_float(value: Any) -> float | int:
        value = _as_scalar(field, value)
        if isinstance(value, Bfloat16Bits):
            if field.kind != "bfloat16":
                raise ValueMismatch(f"expected {field.type}, got bfloat16")
            return int(value.bits)
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
            raise _mismatch(field, value)
        if isinstance(value, np.floating) and not np.can_cast(value.dtype, _float_dtype(field), "safe"):
            raise ValueMismatch(f"expected {field.type}, got a scalar of {value.dtype}")
        if field.kind == "bfloat16":
            return int(_bfloat16_bits(field, value, value))
        return _float(field, value)

    return encode_float


def _float_dtype(field: Field) -> np.dtype[Any]:
    """Returns the widest dtype whose scalars a float field takes; bfloat16 checks values instead."""
    return np.dtype(np.float64) if field.kind == "bfloat16" else field.dtype


def _float(field: Field, value: Any) -> float:
    code = "<" + scalar_code(field)
    try:
        number = float(value)
        stored = struct.pack(code, number)
    except (OverflowError, struct.error):
        raise _mismatch(field, value, f", too large for {field.kind}") from None
    # A float is rounded as numpy does; an integer that changes would be another number, an id perhaps.
    if isinstance(value, int | np.integer) and struct.unpack(code, stored)[0] != int(value):
        raise _mismatch(field, value, f", which {field.kind} cannot hold exactly: give a float if it may be rounded")
    return number


def _check_integers(field: Field, value: Any, array: Any) -> None:
    """Refuses integers that a float field would round, in `value` or its nested lists; `array` is their array."""
    with np.errstate(over="ignore"):
        far = np.abs(array.astype(np.float64)) >= _EXACT_UP_TO[field.kind]
    if not far.any():
        return
    for one in np.asarray(value, dtype=object)[far]:
        one = one[()] if isinstance(one, np.ndarray) else one
        if isinstance(one, int | np.integer) and not isinstance(one, bool):
            _bfloat16_bits(field, one, one) if field.kind == "bfloat16" else _float(field, one)


def _as_scalar(field: Field, value: Any) -> Any:
    value = _as_array(value)
    if isinstance(value, Bfloat16Bits) and value.bits.shape != ():
        raise ValueMismatch(f"expected {field.type}, got array of bfloat16 {list(value.bits.shape)}")
    if isinstance(value, np.ndarray):
        if value.shape != ():
            raise _mismatch(field, value)
        return value[()]
    return value


def _bool(field: Field, value: Any) -> int:
    value = _as_scalar(field, value)
    if not isinstance(value, bool | np.bool_):
        raise _mismatch(field, value)
    return int(value)


def _array_encoder(field: Field) -> Encode:
    dtype = field.dtype
    given = np.dtype(np.bool_) if field.kind == "bool" else dtype
    # Most arrays come as what they are stored as. numpy has no bfloat16, whose bits would be taken for integers.
    direct = np.dtype("V2") if field.kind == "bfloat16" else given

    def encode(value: Any) -> bytes:
        if type(value) is np.ndarray and value.dtype == direct and _has_shape(field, value.shape):
            return value.tobytes()
        value = _as_array(value)
        if isinstance(value, Bfloat16Bits):
            if field.kind != "bfloat16" or not _has_shape(field, value.bits.shape):
                raise ValueMismatch(f"expected {field.type}, got array of bfloat16 {list(value.bits.shape)}")
            return bytes(value.bits.astype("<u2").tobytes())
        if isinstance(value, list | tuple):
            value, listed = _empty(field) if field.ragged and not value else _listed(field, value), True
        else:
            listed = False
        if not isinstance(value, np.ndarray) or not _has_shape(field, value.shape):
            raise _mismatch(field, value)
        if field.kind == "bfloat16" and (value.dtype.kind == "f" or listed):
            return bytes(_bfloat16_bits(field, value, value).astype("<u2").tobytes())
        # numpy casts bool to any number; a scalar True is no number either.
        if (
            field.kind == "bfloat16"
            or not np.can_cast(value.dtype, given, "safe")
            or (value.dtype.kind == "b") != (given.kind == "b")
        ):
            raise _mismatch(field, value)
        if dtype.kind == "f" and value.dtype.kind in "iu":
            # numpy takes 64-bit integers to float64 for safe.
            _check_integers(field, value, value)
        return value.astype(dtype, copy=False).tobytes()

    if not field.ragged:
        return encode
    return lambda value: _bounded_items(field, encode(value))


def _empty(field: Field) -> Any:
    """Returns a ragged array without items: an empty list says nothing of dtype and shape."""
    kinds = {"bool": np.dtype(np.bool_), "bfloat16": np.dtype(np.float64)}
    return np.empty((0, *field.shape), dtype=kinds.get(field.kind, field.dtype))


def _has_shape(field: Field, shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 + len(field.shape) and shape[1:] == field.shape if field.starred else shape == field.shape


def _bounded_items(field: Field, data: bytes) -> bytes:
    if len(data) > layout.MAX_RECORD_BYTES:
        raise ValueMismatch(f"expected {field.type}, got {len(data)} bytes, over the limit of 4 GiB for a value")
    return data


def _listed(field: Field, value: Any) -> Any:
    """Returns nested lists of Python numbers as an array of the field's dtype, checked as scalars are."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise _mismatch(field, value, " that is no array: its rows differ in length") from None
    if field.kind == "bool":
        good = array.dtype.kind == "b"
    elif field.dtype.kind in "iu" and field.kind != "bfloat16":
        limits = np.iinfo(field.dtype)
        good = array.dtype.kind in "iu" and bool(
            array.size == 0 or limits.min <= int(array.min()) <= int(array.max()) <= limits.max
        )
    else:
        good = array.dtype.kind in "iuf"
    if not good:
        raise ValueMismatch(
            f"expected {field.type}, got a list of {array.dtype} {list(array.shape)} (or values out of range)"
        )
    if field.dtype.kind == "f" or field.kind == "bfloat16":
        _check_integers(field, value, array)
    if field.kind == "bfloat16":
        return array
    with np.errstate(over="raise"):
        try:
            return array.astype(np.bool_ if field.kind == "bool" else field.dtype)
        except FloatingPointError:
            raise _mismatch(field, value, f" with values too large for {field.kind}") from None


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueMismatch(f"expected bytes, got {describe(value)}")
    return _bounded(bytes(value))


def _str(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueMismatch(f"expected str, got {describe(value)}")
    try:
        return _bounded(value.encode())
    except UnicodeEncodeError as error:
        raise ValueMismatch(f"expected str, got text that UTF-8 cannot hold at character {error.start}") from None


def _json(value: Any) -> bytes:
    try:
        _check_json(value)
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return _bounded(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueMismatch(f"expected json, got {describe(value)} that JSON cannot hold: {error}") from None


def _check_json(value: Any, depth: int = 0) -> None:
    """Refuses what would not come back as it is.

    json would turn a key 1 into "1" without a word. Python reads JSON by recursion, so what is nested deeply could be
    written here and not be read from deeper in a program.
    """
    if depth > layout.MAX_JSON_DEPTH:
        raise ValueError(f"it is nested over {layout.MAX_JSON_DEPTH} deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text"[:100])
            _check_json(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_json(inner, depth + 1)


def _list_encoder(field: Field) -> Encode:
    one = _RECORD_ENCODERS[field.kind]

    def encode(value: Any) -> bytes:
        if not isinstance(value, list | tuple):
            raise _mismatch(field, value)
        items = []
        for number, item in enumerate(value):
            try:
                items.append(one(item))
            except ValueMismatch as error:
                raise ValueMismatch(f"item {number}: {error}") from None
        return _bounded(encode_list(items))

    return encode


def _media_encoder(field: Field) -> Encode:
    magic = MEDIA_MAGIC.get(field.kind, b"")

    def encode(value: Any) -> bytes:
        data = _bytes(value)
        if not data.startswith(magic):
            raise ValueMismatch(f"expected {field.kind}, got bytes that start with {data[:8]!r}")
        return data

    return encode


def _bounded(data: bytes) -> bytes:
    if len(data) > layout.MAX_RECORD_BYTES:
        raise ValueMismatch(f"{len(data)} bytes are over the limit of 4 GiB for a value")
    return data


_RECORD_ENCODERS: dict[str, Encode] = {"bytes": _bytes, "str": _str, "json": _json}
