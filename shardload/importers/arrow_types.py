"""What the columns of Arrow schemas become.

| column | type |
| --- | --- |
| bool, integers, floats | the same |
| string, large_string, string_view; binary of any sort | `str`; `bytes` |
| dictionary | the type of its values |
| fixed-size list of numbers, fixed shape tensor | a fixed shape: `float32[3,4]` |
| list of numbers, or of fixed-size lists of numbers | `int64[*]`, `float32[*,80]` |
| list of strings, of binary | `str[*]`, `bytes[*]` |
| struct of `bytes` and `path`, as datasets keep files | `jpeg`, `png`, `audio`, `video` by how the first start; else `bytes` |
| struct, map with string keys, other lists | `json` |
| date, time, timestamp, decimal | `str`: `2020-01-02 03:04:05`, in UTC with a Z where there is a zone; digits |

Durations, intervals, unions, run-end encoded columns, list views, and binary within what becomes `json` are refused by name.
An integer field takes dates, times, timestamps and durations as the count that is stored.
"""

from __future__ import annotations

import re
from typing import Any

from shardload.errors import PackError

SHOWN_TYPE_CHARACTERS = 200

_MEDIA = (
    ("jpeg", re.compile(rb"\xff\xd8\xff")),
    ("png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("audio", re.compile(rb"RIFF....WAVE|fLaC|OggS|ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", re.DOTALL)),
    ("video", re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL)),
)


class UnsupportedTypeError(Exception):
    """A column that becomes no field, or not one of the type wanted; the text says why."""


def pyarrow(name: str) -> Any:
    """Returns the package pyarrow.

    Args:
        name: what is to be read by it.

    Raises:
        PackError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise PackError(
            f"{name} is read by the package pyarrow, which is not installed: pip install 'shardload[parquet]'"
        ) from None
    return pyarrow


def storage_type(kind: Any) -> Any:
    """Returns the type without extension and dictionary."""
    types = pyarrow("it").types
    while True:
        if isinstance(kind, pyarrow("it").BaseExtensionType):
            kind = kind.storage_type
        elif types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def shown_type(kind: Any) -> str:
    """Returns a type for a message."""
    text = str(kind)
    return text if len(text) <= SHOWN_TYPE_CHARACTERS else text[: SHOWN_TYPE_CHARACTERS - 3] + "..."


def is_text(kind: Any) -> bool:
    """Tells whether values are text."""
    types = pyarrow("it").types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_binary(kind: Any) -> bool:
    """Tells whether values are bytes."""
    types = pyarrow("it").types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def is_number(kind: Any) -> bool:
    """Tells whether values are bool, integers or floats."""
    types = pyarrow("it").types
    return bool(types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind))


def is_list(kind: Any) -> bool:
    """Tells whether values are lists of any length."""
    types = pyarrow("it").types
    return bool(types.is_list(kind) or types.is_large_list(kind))


def is_moment(kind: Any) -> bool:
    """Tells whether values are dates, times or timestamps."""
    types = pyarrow("it").types
    return bool(types.is_date(kind) or types.is_time(kind) or types.is_timestamp(kind))


def is_media(kind: Any) -> bool:
    """Tells whether values are files as Hugging Face's datasets keep them: `bytes` and `path`."""
    types = pyarrow("it").types
    if not types.is_struct(kind) or kind.num_fields != 2:
        return False
    inner = {kind.field(i).name: kind.field(i).type for i in range(2)}
    return set(inner) == {"bytes", "path"} and is_binary(inner["bytes"]) and is_text(inner["path"])


def media_type(data: bytes) -> str:
    """Returns the type of a file by how it starts."""
    return next((name for name, magic in _MEDIA if magic.match(data)), "bytes")


def number_name(kind: Any) -> str:
    """Returns the type of a number in the words of the format."""
    text = str(kind)
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(text, text)


def fixed_shape(kind: Any) -> tuple[tuple[int, ...], Any]:
    """Returns the shape that fixed-size lists make, and the type within them."""
    module = pyarrow("it")
    if isinstance(kind, module.FixedShapeTensorType) and not kind.permutation:
        return tuple(kind.shape), kind.value_type
    shape: tuple[int, ...] = ()
    kind = storage_type(kind)
    while module.types.is_fixed_size_list(kind):
        shape, kind = (*shape, kind.list_size), kind.value_type
    return shape, kind


def field_type(kind: Any) -> str:
    """Returns the type of the field that a column becomes; `media` for files of Hugging Face.

    Raises:
        UnsupportedTypeError: it becomes none.
    """
    shape, leaf = fixed_shape(kind)
    kind = storage_type(kind)
    if shape and is_number(leaf) and all(shape):
        return f"{number_name(leaf)}[{','.join(map(str, shape))}]"
    if is_number(kind):
        return number_name(kind)
    if is_list(kind):
        shape, leaf = fixed_shape(kind.value_type)
        if is_number(leaf) and all(shape):
            return f"{number_name(leaf)}[{','.join(('*', *map(str, shape)))}]"
        if not shape and (is_text(leaf) or is_binary(leaf)):
            return "str[*]" if is_text(leaf) else "bytes[*]"
    if is_text(kind) or is_binary(kind):
        return "str" if is_text(kind) else "bytes"
    if is_media(kind):
        return "media"
    if is_moment(kind) or pyarrow("it").types.is_decimal(kind):
        return "str"
    check_json(kind)
    return "json"


def check_json(kind: Any) -> None:
    """Checks that values can stand in JSON.

    Raises:
        UnsupportedTypeError: they cannot; names the type within that cannot.
    """
    types = pyarrow("it").types
    kind = storage_type(kind)
    if is_list(kind) or types.is_fixed_size_list(kind):
        check_json(kind.value_type)
    elif types.is_struct(kind):
        for i in range(kind.num_fields):
            check_json(kind.field(i).type)
    elif types.is_map(kind):
        if not is_text(storage_type(kind.key_type)):
            raise UnsupportedTypeError(f"has a map whose keys are {shown_type(kind.key_type)}, not text")
        check_json(kind.item_type)
    elif is_moment(kind):
        if getattr(kind, "unit", "") == "ns":
            raise UnsupportedTypeError(f"holds {shown_type(kind)} within lists or structs, which JSON cannot hold")
    elif not (is_number(kind) or is_text(kind) or types.is_null(kind) or types.is_decimal(kind)):
        raise UnsupportedTypeError(f"holds {shown_type(kind)}, for which there is no type")
