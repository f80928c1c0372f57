"""Fields and schemas: what a sample is made of, and how each field is stored."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shardload.errors import FormatError
from shardload.format import layout

_SCALARS: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    **{name: np.dtype(name) for name in ("float16", "float32", "float64")},
    "bool": np.dtype("u1"),
    # numpy has no bfloat16: its bits are kept as integers until they are handed out.
    "bfloat16": np.dtype("u2"),
}
MEDIA_TYPES = ("jpeg", "png", "audio", "video")
RECORD_TYPES = ("bytes", "str", "json", *MEDIA_TYPES)

# Not str.isprintable: its answer depends on the Unicode version of the Python that reads.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DIMENSION = re.compile(r"[1-9][0-9]{0,9}")
_TYPE = re.compile(r"([a-z]+[0-9]*)(?:\[([0-9,* ]*)\])?(\?)?")


@dataclass(frozen=True, slots=True)
class Field:
    """One named value of a sample."""

    name: str
    """Name, at most 128 bytes, not starting with an underscore."""
    kind: str
    """Scalar type (`int64`, `bfloat16`, ...) or record type (`bytes`, `str`, `json`, `jpeg`, ...)."""
    shape: tuple[int, ...] = ()
    """Shape of a fixed field; empty for scalars and for fields in the record."""
    nullable: bool = False
    """Whether the value may be missing (None)."""
    codec: str = "none"
    """Codec of a field in the record: `none` or `zstd`."""

    @property
    def in_record(self) -> bool:
        """Whether the value is stored in the sample's record."""
        return self.kind in RECORD_TYPES

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian numpy dtype of a fixed field's scalar as stored (bool as uint8, bfloat16 as uint16)."""
        return _SCALARS[self.kind].newbyteorder("<")

    @property
    def num_bytes(self) -> int:
        """Bytes of a fixed field's value."""
        return int(self.dtype.itemsize * math.prod(self.shape))

    @property
    def wide(self) -> bool:
        """Whether the value is stored in a section of its own rather than in the packed row."""
        return not self.in_record and self.num_bytes >= layout.WIDE_FIELD_BYTES

    @property
    def type(self) -> str:
        """The type as written in a schema: `float32[3,224,224]`, `str?`, ..."""
        shape = f"[{','.join(map(str, self.shape))}]" if self.shape else ""
        return f"{self.kind}{shape}{'?' if self.nullable else ''}"


def parse_field(name: str, type_text: str) -> Field:
    """Returns the field of the given name and type, codec `none`.

    Raises:
        FormatError: the name or the type is not one of the format's; the message names the field.
    """
    _check_name(name)
    if not isinstance(type_text, str) or (match := _TYPE.fullmatch(type_text.strip())) is None:
        raise FormatError(
            f"field {name!r}: {type_text!r} is not a type such as int64, float32[3,224,224], bytes or str?"
        )
    kind, shape_text, nullable = match[1], match[2], match[3] is not None
    if shape_text is not None and "*" in shape_text:
        raise FormatError(
            f"field {name!r}: ragged and list types such as {type_text} are not read or written by draft 1"
        )
    if kind not in _SCALARS and kind not in RECORD_TYPES:
        known = ", ".join((*_SCALARS, *RECORD_TYPES))
        raise FormatError(f"field {name!r}: unknown type {kind!r}; the types are {known}")
    if shape_text is None:
        return Field(name, kind, nullable=nullable)
    if kind in RECORD_TYPES:
        raise FormatError(f"field {name!r}: {kind} takes no shape, but {type_text!r} gives one")
    dimensions = [part.strip() for part in shape_text.split(",")]
    if not all(_DIMENSION.fullmatch(part) for part in dimensions):
        raise FormatError(f"field {name!r}: the shape in {type_text!r} must be integers from 1, separated by commas")
    field = Field(name, kind, tuple(int(part) for part in dimensions), nullable)
    if len(field.shape) > layout.MAX_DIMENSIONS or field.num_bytes > layout.MAX_RECORD_BYTES:
        raise FormatError(f"field {name!r}: {type_text!r} has over {layout.MAX_DIMENSIONS} dimensions or over 4 GiB")
    return field


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name or _CONTROL.search(name) or name != name.strip(" "):
        raise FormatError(f"{name!r} is no field name: it must be text without control characters or outer spaces")
    if name.startswith("_"):
        raise FormatError(f"field name {name!r} is reserved: names starting with an underscore belong to shardload")
    if len(name.encode("utf-8", "surrogatepass")) > layout.MAX_NAME_BYTES or (
        not name.isascii() and _has_surrogate(name)
    ):
        raise FormatError(f"field name {name[:40]!r}... is longer than {layout.MAX_NAME_BYTES} bytes or is not UTF-8")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(frozen=True)
class Schema(Mapping[str, Field]):
    """The ordered fields of a dataset's samples: a mapping from name to `Field`."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if not 1 <= len(names) <= layout.MAX_FIELDS:
            raise FormatError(f"a schema has 1 to {layout.MAX_FIELDS} fields, not {len(names)}")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise FormatError(f"field {twice!r} stands in the schema twice")

    def __getitem__(self, name: str) -> Field:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.fields)

    def __str__(self) -> str:
        return "{" + ", ".join(f"{field.name}: {field.type}" for field in self.fields) + "}"

    @cached_property
    def _by_name(self) -> dict[str, Field]:
        return {field.name: field for field in self.fields}

    @cached_property
    def record_fields(self) -> tuple[Field, ...]:
        """The fields stored in the record, in order."""
        return tuple(field for field in self.fields if field.in_record)

    @cached_property
    def wide_fields(self) -> tuple[Field, ...]:
        """The fixed fields with a section of their own, in order."""
        return tuple(field for field in self.fields if field.wide)

    @cached_property
    def row_fields(self) -> tuple[Field, ...]:
        """The fixed fields stored in the packed row, in order."""
        return tuple(field for field in self.fields if not field.in_record and not field.wide)

    @cached_property
    def nullable_fields(self) -> tuple[Field, ...]:
        """The nullable fields, in order: the order of the validity bits."""
        return tuple(field for field in self.fields if field.nullable)

    def number(self, name: str) -> int:
        """Returns a field's number: its place in the schema."""
        return list(self._by_name).index(name)

    @cached_property
    def canonical(self) -> list[dict[str, str]]:
        """The schema as it stands in a manifest."""
        return [{"codec": field.codec, "name": field.name, "type": field.type} for field in self.fields]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of the schema, as it stands in a shard's header."""
        return hashlib.sha256(canonical_json(self.canonical)).digest()


def parse_schema(types: Mapping[str, str], codec: str = "none") -> Schema:
    """Returns the schema of `{name: type}`.

    Args:
        types: the fields in order, such as `{"image": "jpeg", "label": "int64", "caption": "str?"}`.
        codec: `none` or `zstd`: what fields in the record are stored with. Encoded media is never compressed again.

    Raises:
        FormatError: a name or type is not one of the format's.
    """
    if not isinstance(types, Mapping):
        raise FormatError(f"a schema is a mapping of field name to type, not {type(types).__name__}")
    fields = [parse_field(name, text) for name, text in types.items()]
    return Schema(tuple(with_codec(field, codec) for field in fields))


def with_codec(field: Field, codec: str) -> Field:
    """Returns the field with the codec it is stored with if the dataset's codec is `codec`."""
    compressed = field.in_record and field.kind not in MEDIA_TYPES
    return Field(field.name, field.kind, field.shape, field.nullable, codec if compressed else "none")


def canonical_json(value: Any) -> bytes:
    """Returns the one way in which the format writes a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
