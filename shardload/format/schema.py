"""Fields and schemas: what a sample is made of, and how each field is stored."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
_STORED = {name: dtype.newbyteorder("<") for name, dtype in _SCALARS.items()}
MEDIA_TYPES = ("jpeg", "png", "audio", "video")
RECORD_TYPES = ("bytes", "str", "json", *MEDIA_TYPES)

# Not str.isprintable: its answer depends on the Unicode version of the Python that reads.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DIMENSION = re.compile(r"[1-9][0-9]{0,9}")
_TYPE = re.compile(r"([a-z]+[0-9]*)(?:\[([0-9,* ]*)\])?(\?)?")


FieldType = str | Mapping[str, str]
"""A field's type, or that and its codec: `{"type": "uint16[*]", "compression": "zstd"}`."""


@dataclass(frozen=True, slots=True)
class Field:
    """One named value of a sample."""

    name: str
    """Name, at most 128 bytes, not starting with an underscore."""
    kind: str
    """Scalar type (`int64`, `bfloat16`, ...) or record type (`bytes`, `str`, `json`, `jpeg`, ...)."""
    shape: tuple[int, ...] = ()
    """Shape of a fixed field, or of one item of a ragged field; empty for scalars and others."""
    nullable: bool = False
    """Whether the value may be missing (None)."""
    codec: str = "none"
    """Codec of the field: `none` or `zstd`."""
    starred: bool = False
    """Whether the first dimension differs from sample to sample: ragged numbers, or a list of bytes or str."""

    @property
    def numeric(self) -> bool:
        """Whether the value is made of numbers, fixed or ragged."""
        return self.kind in _SCALARS

    @property
    def ragged(self) -> bool:
        """Whether the value is an array whose first dimension differs from sample to sample."""
        return self.starred and self.numeric

    @property
    def listed(self) -> bool:
        """Whether the value is a list of bytes or str."""
        return self.starred and not self.numeric

    @property
    def streamed(self) -> bool:
        """Whether the value is stored in a stream, one after the other over all samples of a shard."""
        return self.ragged and self.codec == "none"

    @property
    def in_record(self) -> bool:
        """Whether the value is stored in the sample's record."""
        return not self.numeric or (self.ragged and not self.streamed)

    @property
    def fixed(self) -> bool:
        """Whether all values have one dtype and shape."""
        return self.numeric and not self.starred

    @property
    def compressible(self) -> bool:
        """Whether the codec may be another than `none`."""
        return self.starred or self.kind in ("bytes", "str", "json")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian numpy dtype of a numeric field's scalar as stored (bool as uint8, bfloat16 as uint16)."""
        return _STORED[self.kind]

    @property
    def num_bytes(self) -> int:
        """Bytes of a fixed field's value, or of one item of a ragged one."""
        return int(self.dtype.itemsize * math.prod(self.shape))

    @property
    def wide(self) -> bool:
        """Whether the value is stored in a section of its own rather than in the packed row."""
        return self.fixed and self.num_bytes >= layout.WIDE_FIELD_BYTES

    @property
    def type(self) -> str:
        """The type as written in a schema: `float32[3,224,224]`, `str?`, `uint16[*]`, ..."""
        dimensions = ("*",) * self.starred + tuple(map(str, self.shape))
        shape = f"[{','.join(dimensions)}]" if dimensions else ""
        return f"{self.kind}{shape}{'?' if self.nullable else ''}"


def parse_field(name: str, type_text: str) -> Field:
    """Returns the field of the given name and type, codec `none`.

    Raises:
        FormatError: the name or the type is not one of the format's; the message names the field.
    """
    _check_name(name)
    if not isinstance(type_text, str) or (match := _TYPE.fullmatch(type_text.strip())) is None:
        raise FormatError(
            f"field {name!r}: {type_text!r} is not a type such as int64, float32[3,224,224], uint16[*], bytes or str?"
        )
    kind, shape_text, nullable = match[1], match[2], match[3] is not None
    if kind not in _SCALARS and kind not in RECORD_TYPES:
        known = ", ".join((*_SCALARS, *RECORD_TYPES))
        raise FormatError(f"field {name!r}: unknown type {kind!r}; the types are {known}")
    if shape_text is None:
        return Field(name, kind, nullable=nullable)
    dimensions = [part.strip() for part in shape_text.split(",")]
    starred = dimensions[0] == "*"
    if kind in RECORD_TYPES and not (kind in ("bytes", "str") and dimensions == ["*"]):
        raise FormatError(
            f"field {name!r}: {kind} takes no shape, but {type_text!r} gives one; lists are bytes[*] and str[*]"
        )
    if not all(_DIMENSION.fullmatch(part) for part in dimensions[starred:]):
        raise FormatError(
            f"field {name!r}: the shape in {type_text!r} must be integers from 1, separated by commas; the first may be *"
        )
    field = Field(name, kind, tuple(int(part) for part in dimensions[starred:]), nullable, starred=starred)
    if len(dimensions) > layout.MAX_DIMENSIONS or (kind in _SCALARS and field.num_bytes > layout.MAX_RECORD_BYTES):
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
    key: str = ""
    """Name of the field by which samples are looked up, or empty."""

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if not 1 <= len(names) <= layout.MAX_FIELDS:
            raise FormatError(f"a schema has 1 to {layout.MAX_FIELDS} fields, not {len(names)}")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise FormatError(f"field {twice!r} stands in the schema twice")
        if self.key:
            self._check_key()

    def __getitem__(self, name: str) -> Field:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.fields)

    def __str__(self) -> str:
        return "{" + ", ".join(f"{field.name}: {field.type}" for field in self.fields) + "}"

    def _check_key(self) -> None:
        field = next((field for field in self.fields if field.name == self.key), None)
        if field is None:
            raise FormatError(f"the key {self.key!r} is not a field of the schema {self}")
        scalar = (
            field.fixed and not field.shape and (field.dtype.kind in "iu" and field.kind not in ("bool", "bfloat16"))
        )
        if field.nullable or field.starred or not (scalar or field.kind in ("bytes", "str")):
            raise FormatError(
                f"field {field.name!r}: {field.type} is no key; that is str, bytes or an integer, and not nullable"
            )

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
    def stream_fields(self) -> tuple[Field, ...]:
        """The ragged fields stored in streams, in order."""
        return tuple(field for field in self.fields if field.streamed)

    @cached_property
    def row_fields(self) -> tuple[Field, ...]:
        """The fixed fields stored in the packed row, in order."""
        return tuple(field for field in self.fields if field.fixed and not field.wide)

    @cached_property
    def nullable_fields(self) -> tuple[Field, ...]:
        """The nullable fields, in order: the order of the validity bits."""
        return tuple(field for field in self.fields if field.nullable)

    @property
    def types(self) -> dict[str, FieldType]:
        """Field name -> type, as `parse_schema` takes it."""
        return {field.name: field.type for field in self.fields}

    def prefix(self, num_fields: int) -> Schema:
        """Returns the schema of the first fields: that of an earlier generation."""
        return self if num_fields == len(self) else Schema(self.fields[:num_fields], self.key)

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


def parse_schema(types: Mapping[str, FieldType], codec: str = "none", key: str = "") -> Schema:
    """Returns the schema of `{name: type}`.

    Args:
        types: the fields in order, such as `{"image": "jpeg", "label": "int64", "caption": "str?"}`. In place of a type
            may stand a mapping of `type` and `compression`, which is `none` or `zstd` for this field alone.
        codec: `none` or `zstd`: what fields of bytes, str, json and lists are stored with unless they say. Encoded
            media is never compressed again, and ragged numbers only if they say so.
        key: name of the field by which samples are looked up, or nothing.

    Raises:
        FormatError: a name, type or codec is not one of the format's.
    """
    if not isinstance(types, Mapping):
        raise FormatError(f"a schema is a mapping of field name to type, not {type(types).__name__}")
    return Schema(tuple(_parse_entry(name, entry, codec) for name, entry in types.items()), key)


def _parse_entry(name: str, entry: FieldType, codec: str) -> Field:
    if not isinstance(entry, Mapping):
        return with_codec(parse_field(name, entry), codec)
    if "type" not in entry or not entry.keys() <= {"type", "compression"}:
        raise FormatError(
            f"field {name!r}: {dict(entry)!r} must have `type` and may have `compression`, as in "
            '{"type": "uint16[*]", "compression": "zstd"}'
        )
    field = parse_field(name, entry["type"])
    own = entry.get("compression")
    if own is None:
        return with_codec(field, codec)
    if own not in ("none", "zstd"):
        raise FormatError(f"field {name!r}: compression {own!r} must be none or zstd; the level is the dataset's")
    if own == "zstd" and not field.compressible:
        raise FormatError(
            f"field {name!r}: {field.type} is not compressed: that is for bytes, str, json and ragged fields"
        )
    if own == "zstd" and codec == "none":
        raise FormatError(f"field {name!r} asks for zstd, but the dataset's compression is none: give it a level there")
    return replace(field, codec=own)


def with_codec(field: Field, codec: str) -> Field:
    """Returns the field with the codec it is stored with, unless it says, if the dataset's codec is `codec`."""
    return replace(field, codec=codec if field.compressible and not field.ragged else "none")


def extend_schema(base: Schema, types: Mapping[str, FieldType], codec: str) -> Schema:
    """Returns the schema of a generation that is appended: all fields that are there, and new ones at the end.

    Args:
        base: schema of the dataset.
        types: fields of the new samples; those of `base` keep their codec.
        codec: as in `parse_schema`, for new fields.

    Raises:
        FormatError: a field changes its type, is left out and not nullable, or is new and not nullable.
    """
    given = {name: _parse_entry(name, entry, codec) for name, entry in types.items()}
    for field in base.fields:
        new = given.get(field.name)
        if new is None and not field.nullable:
            raise FormatError(
                f"field {field.name!r}: the dataset has it as {field.type}, the samples to append lack it"
            )
        if new is not None and new.type != field.type:
            raise FormatError(f"field {field.name!r}: the dataset has it as {field.type}, not {new.type}")
    added = [field for name, field in given.items() if name not in base]
    for field in added:
        if not field.nullable:
            raise FormatError(
                f"field {field.name!r}: {field.type} is not in the dataset; a field that comes later must be nullable: "
                f"{field.type}?"
            )
    return Schema((*base.fields, *added), base.key)


def canonical_json(value: Any) -> bytes:
    """Returns the one way in which the format writes a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
