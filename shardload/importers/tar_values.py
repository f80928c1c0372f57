"""What a member of a tar becomes: its type by its extension, its value by the type of its field. Nothing is unpickled.

| last part of the extension | type |
| --- | --- |
| `jpg`, `jpeg`; `png` | `jpeg`; `png` |
| `txt`, `text`, `transcript`, `caption` | `str`, UTF-8 |
| `json`, `jsn` | `json` |
| `cls`, `cls2`, `class`, `count`, `index`, `inx`, `id` | `int64`, from digits |
| `npy` | an array of its dtype and shape |
| `json`, `jsn`; `mp`, `msg` of MessagePack | given as such: `str[*]`; `bytes[*]` |
| `mp4`, `avi`, `webm`, ...; `wav`, `flac`, `mp3`, ... | `video`; `audio` |
| all others, among them `pth`, `pickle`, `pkl`, `pyd`, `ten` and `npz` | `bytes`, as they are |
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from shardload.errors import PackError
from shardload.format.schema import MEDIA_TYPES
from shardload.importers.strict_json import STRICT_JSON

_TYPES: dict[str, str] = {
    extension: type_text
    for type_text, extensions in {
        "jpeg": "jpg jpeg",
        "png": "png",
        "str": "txt text transcript caption",
        "json": "json jsn",
        "int64": "cls cls2 class count index inx id",
        "array": "npy",
        "video": "mp4 avi webm mkv mov mpg mpeg ogv m4v wmv mjpeg h264",
        "audio": "wav flac mp3 ogg opus m4a aac wma",
    }.items()
    for extension in extensions.split()
}
_NUMBERS = re.compile(r"(u?int|float|bfloat)[0-9]+")
_INTEGER = re.compile(rb"[+-]?[0-9]{1,30}")
_FLOAT = re.compile(rb"[+-]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?|nan|[+-]?inf")
_PACKED_LISTS = ("mp", "msg")
_SHOWN_BYTES = 40
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Decode = Callable[[bytes], Any]


class BadValue(Exception):
    """The content of a member is not what its field takes; the text says why."""


def kind_of(extension: str) -> str:
    """Returns the type that an extension stands for; `array` for `npy`, whose type its content gives."""
    return _TYPES.get(extension.rpartition(".")[2], "bytes")


def decoder(extension: str, type_text: str) -> Decode:
    """Returns the function from the content of a member to the value of its field.

    Raises:
        PackError: members of this extension do not become values of this type.
    """
    kind, shape, rest = type_text.strip().rstrip("?").partition("[")
    if shape and rest == "*]" and kind in ("str", "bytes"):
        return _list_decoder(extension, type_text, kind)
    if kind == "bytes" or kind in MEDIA_TYPES:
        return _as_is
    if kind_of(extension) == "array":
        if _NUMBERS.fullmatch(kind) or kind == "bool":
            return _array
        raise PackError(f"field {extension!r} cannot be {type_text}: an npy file is an array, or bytes as they are")
    if kind == "str":
        return _str
    if kind == "json":
        return _json
    if _NUMBERS.fullmatch(kind) and not shape:
        return _integer if "int" in kind else _float
    raise PackError(f"field {extension!r} cannot be {type_text}: of members of a tar only .npy files become arrays")


def _list_decoder(extension: str, type_text: str, kind: str) -> Decode:
    last = extension.rpartition(".")[2]
    if kind == "str" and kind_of(extension) == "json":
        return _texts
    if kind == "bytes" and last in _PACKED_LISTS:
        return _byte_strings
    raise PackError(
        f"field {extension!r} cannot be {type_text}: lists of str are in .json files, those of bytes in .mp files"
    )


def npy_type(data: bytes) -> tuple[str, tuple[int, ...]]:
    """Returns dtype and shape of an npy file, the dtype in the words of the format.

    Raises:
        BadValue: it is none, or holds what has no type of the format.
    """
    array = _array(data)
    return array.dtype.name, array.shape


def is_integer(data: bytes) -> bool:
    """Tells whether a member holds an integer in digits."""
    return _INTEGER.fullmatch(data.strip()) is not None


def _as_is(data: bytes) -> bytes:
    return data


def _str(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadValue(
            f"is not UTF-8: byte {error.start} is {data[error.start]:#04x}; to keep the bytes as they are, give its "
            "field the type bytes"
        ) from None


def _integer(data: bytes) -> int:
    if not is_integer(data):
        raise BadValue(f"is no integer: {_shown(data)}; to keep it as text, give its field the type str")
    return int(data)


def _float(data: bytes) -> float:
    if not _FLOAT.fullmatch(data.strip()):
        raise BadValue(f"is no number: {_shown(data)}; to keep it as text, give its field the type str")
    return float(data)


def _shown(data: bytes) -> str:
    return f"{data[:_SHOWN_BYTES]!r}" + ("..." if len(data) > _SHOWN_BYTES else "")


def _json(data: bytes) -> Any:
    try:
        return STRICT_JSON.decode(data.removeprefix(_BYTE_ORDER_MARK).decode())
    except (ValueError, RecursionError) as error:
        raise BadValue(f"is broken JSON: {error}") from None


def _texts(data: bytes) -> Any:
    value = _json(data)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadValue(f"is no list of text: {_shown(data)}")
    return value


def _byte_strings(data: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=list[bytes])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadValue(f"is no MessagePack of a list of bytes: {error}") from None


def _array(data: bytes) -> Any:
    """Returns the array of an npy file, without a copy where its bytes can stay as they are."""
    dtype, shape, fortran, start = _npy_header(data)
    if dtype.hasobject:
        raise BadValue("holds Python objects, which only unpickling could make; give its field the type bytes")
    if dtype.names or dtype.subdtype or not (_NUMBERS.fullmatch(dtype.name) or dtype.name == "bool"):
        raise BadValue(f"holds values of {dtype}, for which there is no type; give its field the type bytes")
    num_bytes = math.prod(shape) * dtype.itemsize
    if len(data) - start != num_bytes:
        raise BadValue(f"says that it is {dtype.name} {list(shape)} of {num_bytes} bytes, but has {len(data) - start}")
    array = np.frombuffer(data, dtype, offset=start) if num_bytes else np.empty(0, dtype)
    array = np.ascontiguousarray(array.reshape(shape[::-1]).T) if fortran else array.reshape(shape)
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    # What has no dimension is a scalar.
    return array if shape else array[()]


def _npy_header(data: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Returns dtype, shape, whether the order is Fortran's, and the byte at which the values start."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            # Version 3 is written for names of fields of structured arrays only.
            raise BadValue(f"is an npy file of version {version[0]}.{version[1]}; give its field the type bytes")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except BadValue:
        raise
    except Exception as error:
        # numpy parses the header as Python text, and what that raises for a broken one depends on its version.
        raise BadValue(f"is no npy file: {str(error)[:200]}") from None
    if any(length < 0 for length in shape):
        raise BadValue(f"is no npy file: its shape is {shape}")
    return dtype, shape, fortran, file.tell()
