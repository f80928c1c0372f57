"""How the fields of a dataset become members of a WebDataset tar: an extension a field, bytes a value.

| type | last part of the extension | content |
| --- | --- | --- |
| `jpeg`, `png`; `audio`, `video` | `jpg`, `png`; `audio`, `video` | as it is |
| `bytes` | `bin`, or the field's name if no decoder is known for it | as it is |
| `str`; `json`, `str[*]` | `txt`; `json` | UTF-8 |
| integers | `cls` | digits |
| `bool`, floats, arrays | `npy` | of their dtype and shape; a scalar has no dimension; bfloat16 as float32, which holds it |
| `bytes[*]` | `mp` | a list of MessagePack |

A field whose name ends in such a word already, as those of packed tars do, keeps it as its extension.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from shardload.format.note import KEY
from shardload.format.ragged import Ragged
from shardload.format.schema import MEDIA_TYPES, Field
from shardload.reader.batch import Column, SampleBatch, typed_values

EMPTY_EXTENSION = "null"
"""Extension of the empty member of a sample that has no value at all, and would be lost without one."""

_MEDIA = {
    "jpeg": ("jpg", "jpeg"),
    "png": ("png",),
    "audio": ("audio", "wav", "flac", "mp3", "ogg", "opus", "m4a", "aac", "wma"),
    "video": ("video", "mp4", "avi", "webm", "mkv", "mov", "mpg", "mpeg", "ogv", "m4v", "wmv", "mjpeg", "h264"),
}
_TEXT = ("txt", "text", "transcript")
_JSON = ("json", "jsn")
_INTEGER = ("cls", "cls2", "index", "inx", "id")
_ARRAY, _BYTES, _LIST = ("npy",), ("bin",), ("mp", "msg")
# What webdataset, or the importer, decodes by these is more than bytes.
_DECODED = frozenset(
    [word for words in (*_MEDIA.values(), _TEXT, _JSON, _INTEGER, _ARRAY, _LIST) for word in words]
    + [
        "caption",
        "class",
        "count",
        "ten",
        "tb",
        "pth",
        "pt",
        "pyd",
        "pickle",
        "pkl",
        "npz",
        "cbor",
        "key",
        EMPTY_EXTENSION,
    ]
)
_MAX_NAME_BYTES = 96
_UNFIT = re.compile(r"[^\w-]+")

Values = Callable[[SampleBatch, Column], list[bytes | None]]
"""From a column to the content of the member of each sample, None where there is none."""


def extensions(fields: Sequence[Field], key: str) -> list[str]:
    """Returns the extension of each field, all different, in lower case.

    Args:
        fields: the fields.
        key: name of the field that gives the samples' keys and has no members, or nothing.
    """
    found: dict[str, str] = {key: KEY} if key else {}
    # Names that are extensions as they are have precedence over those that are made up.
    for kept in (True, False):
        for number, field in enumerate(fields):
            if field.name not in found:
                name = _extension(field)
                if (name == field.name) == kept:
                    found[field.name] = _unused(name, number, set(found.values()))
    return [found[field.name] for field in fields]


def _extension(field: Field) -> str:
    words = _words(field)
    parts = [_UNFIT.sub("_", part).strip("_") for part in field.name.lower().split(".")]
    name = ".".join(part for part in parts if part)
    if len(name.encode()) > _MAX_NAME_BYTES:
        # With a word behind it, it would be no name of a field any more.
        name = ""
    last = name.rpartition(".")[2]
    if field.kind == "bytes" and not field.listed and last and last not in _DECODED:
        return name
    return name if last in words else f"{name}.{words[0]}" if name else words[0]


def _unused(name: str, number: int, used: set[str]) -> str:
    """Returns the name, or if another field has it one that is made of the field's number."""
    start, dot, last = name.rpartition(".")
    tries = 0
    while name in used:
        name = f"{start}{dot}field{number}{'_' * tries}.{last}"
        tries += 1
    return name


def _words(field: Field) -> tuple[str, ...]:
    if field.listed:
        return _LIST if field.kind == "bytes" else _JSON
    if field.kind in MEDIA_TYPES:
        return _MEDIA[field.kind]
    if field.kind in ("bytes", "str", "json"):
        return {"bytes": _BYTES, "str": _TEXT, "json": _JSON}[field.kind]
    return _INTEGER if _is_integer(field) else _ARRAY


def _is_integer(field: Field) -> bool:
    return field.fixed and not field.shape and field.dtype.kind in "iu" and field.kind not in ("bool", "bfloat16")


def contents(field: Field) -> Values:
    """Returns the function from a column of a field to the contents of its members."""
    if field.listed:
        return _packed_lists if field.kind == "bytes" else _listed_texts
    if not field.numeric:
        return _as_stored
    return _digits if _is_integer(field) else _ragged_arrays if field.ragged else _arrays


def present(column: Column, num_samples: int) -> list[bool]:
    """Returns for each sample whether it has a value."""
    return [True] * num_samples if column.valid is None else column.valid.tolist()


def stored_bytes(batch: SampleBatch, column: Column) -> list[bytes | None]:
    """Returns the values of a field of bytes, str, json or media as they are stored, None where one is missing."""
    here = present(column, len(batch))
    values: Any = column.values
    return [
        (value.encode() if isinstance(value, str) else bytes(value)) if there else None
        for value, there in zip(values, here, strict=True)
    ]


_as_stored = stored_bytes


def _listed_texts(batch: SampleBatch, column: Column) -> list[bytes | None]:
    values = batch.values_of(column.field.name)
    return [None if value is None else json.dumps(value, ensure_ascii=False).encode() for value in values]


def _packed_lists(batch: SampleBatch, column: Column) -> list[bytes | None]:
    values = batch.values_of(column.field.name)
    return [None if value is None else msgspec.msgpack.encode(value) for value in values]


def _digits(batch: SampleBatch, column: Column) -> list[bytes | None]:
    values: Any = column.values
    here = present(column, len(batch))
    return [b"%d" % value if there else None for value, there in zip(values.tolist(), here, strict=True)]


def _arrays(batch: SampleBatch, column: Column) -> list[bytes | None]:
    values = np.ascontiguousarray(typed_values(column.field, np.asarray(column.values)))
    header = npy_header(values.dtype.str, column.field.shape)
    data, size = values.tobytes(), values.dtype.itemsize * int(np.prod(column.field.shape, dtype=np.int64))
    here = present(column, len(batch))
    return [header + data[i * size : (i + 1) * size] if there else None for i, there in enumerate(here)]


def _ragged_arrays(batch: SampleBatch, column: Column) -> list[bytes | None]:
    ragged = column.values
    assert isinstance(ragged, Ragged)
    here = present(column, len(batch))
    found: list[bytes | None] = []
    for slot, there in enumerate(here):
        value = typed_values(column.field, ragged[slot])
        found.append(npy_header(value.dtype.str, value.shape) + value.tobytes() if there else None)
    return found


@functools.lru_cache(maxsize=1024)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Returns what stands before the values in an npy file of version 1."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()
