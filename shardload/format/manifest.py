"""The manifest: the one small file that names a dataset's content (FORMAT.md section 2)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec

from shardload.errors import ChecksumError, FormatError, UnsupportedVersionError
from shardload.format import layout
from shardload.format.schema import Schema, canonical_json, parse_field, with_codec

MANIFEST_NAME = "manifest.json"
COMPRESSION = re.compile(r"none|zstd:(-?[0-9]{1,3})")

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

Metadata = dict[str, str | int | list[str]]


def check_metadata(metadata: Mapping[str, Any]) -> Metadata:
    """Returns metadata that a manifest can hold.

    Raises:
        FormatError: it is not text, integers of 64 bits or lists of text by name, or far too long.
    """
    try:
        data = canonical_json(metadata)
        checked: Metadata = msgspec.json.decode(data, type=Metadata)
        if not all(isinstance(name, str) for name in metadata) or not _all_64_bits(checked):
            raise ValueError("a name is not text, or an integer has over 64 bits")
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"metadata must be text, integers or lists of text by name: {error}") from None
    if len(data) > layout.MAX_MANIFEST_BYTES // 2:
        raise FormatError(f"the metadata is {len(data)} bytes long; a manifest has at most 1 MiB altogether")
    return checked


def _all_64_bits(metadata: Metadata) -> bool:
    return all(-(1 << 63) <= value < 1 << 63 for value in metadata.values() if isinstance(value, int))


class FieldEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field as it stands in a manifest."""

    codec: str
    name: str
    type: str


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pack or append."""

    generation: int
    num_fields: int
    num_samples: int


class Writer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Versions of what wrote the dataset; equal input gives equal bytes for equal versions."""

    numpy: str
    shardload: str
    zstd: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """What a dataset is. Field by field as in FORMAT.md section 2."""

    codec: str
    generations: list[Generation]
    metadata: Metadata
    num_bytes: int
    num_samples: int
    num_shards: int
    schema: list[FieldEntry]
    shard_size: int
    table: str
    version: int
    writer: Writer
    draft: int = layout.DRAFT
    format: str = layout.FORMAT_NAME
    required: list[str] = []

    @cached_property
    def parsed_schema(self) -> Schema:
        """The schema of the newest generation."""
        fields = [parse_field(entry.name, entry.type) for entry in self.schema]
        return Schema(tuple(with_codec(f, entry.codec) for f, entry in zip(fields, self.schema, strict=True)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal: the name of this content."""
        return hashlib.sha256(canonical_json(msgspec.to_builtins(self))).hexdigest()

    def encode(self) -> bytes:
        """Returns the bytes of the manifest's file.

        Raises:
            FormatError: the manifest is over 1 MiB.
        """
        data = canonical_json({"fingerprint": self.fingerprint, "manifest": msgspec.to_builtins(self)}) + b"\n"
        if len(data) > layout.MAX_MANIFEST_BYTES:
            raise FormatError(f"the manifest would be {len(data)} bytes; the format allows 1 MiB: shorten its metadata")
        return data


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fingerprint: str
    manifest: Manifest


class _Probe(msgspec.Struct, frozen=True):
    """As much of a manifest as tells whether this version reads it."""

    format: str
    draft: int
    required: list[str] = []


class _ProbeFile(msgspec.Struct, frozen=True):
    manifest: _Probe


def decode_manifest(data: bytes, place: str) -> Manifest:
    """Returns the manifest in `data`, checked against its own fingerprint.

    Args:
        data: bytes of the file; at most 1 MiB is looked at.
        place: name of the file for error messages.

    Raises:
        UnsupportedVersionError: another draft, or a required feature this version does not have.
        ChecksumError: the content does not have the fingerprint written beside it.
        FormatError: anything else that the format does not allow.
    """
    if len(data) > layout.MAX_MANIFEST_BYTES:
        raise FormatError(f"{place}: {len(data)} bytes are no manifest: the format allows 1 MiB")
    try:
        _check_version(msgspec.json.decode(data, type=_ProbeFile).manifest, place)
        file = msgspec.json.decode(data, type=_File)
        manifest = file.manifest
        _check_numbers(manifest)
        intact = manifest.fingerprint == file.fingerprint
        canonical = manifest.encode() == data
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError(f"{place}: not a manifest of shardload, or damaged: {error}") from None
    except FormatError as error:
        raise type(error)(f"{place}: {error.message}" if place not in error.message else error.message) from None
    if not intact:
        raise ChecksumError(f"{place}: the manifest is damaged: its content does not have its fingerprint")
    if not canonical:
        raise FormatError(f"{place}: the manifest is damaged: it is not in its canonical form")
    return manifest


def _check_version(probe: _Probe, place: str) -> None:
    if probe.format != layout.FORMAT_NAME:
        raise FormatError(f"{place}: the format is {probe.format[:40]!r}, not {layout.FORMAT_NAME!r}")
    if probe.draft != layout.DRAFT:
        raise UnsupportedVersionError(
            f"{place}: written in draft {probe.draft} of the format; this version reads draft {layout.DRAFT}"
        )
    if probe.required:
        raise UnsupportedVersionError(f"{place}: needs {', '.join(probe.required)[:200]}, which this version lacks")


def _check_numbers(manifest: Manifest) -> None:
    _check_schema(manifest)
    counts = (manifest.num_bytes, manifest.num_samples, manifest.num_shards)
    if min(counts) < 0 or max(counts[:2]) >= 1 << 63 or manifest.num_shards > layout.MAX_SHARDS:
        raise FormatError(f"{counts} are no counts of bytes, samples and shards")
    if manifest.version < 1 or manifest.shard_size < 1:
        raise FormatError(f"version {manifest.version} or shard size {manifest.shard_size} is below 1")
    if _HEX_DIGEST.fullmatch(manifest.table) is None:
        raise FormatError("the shard table is not named by a SHA-256 in hexadecimal")
    if sum(generation.num_samples for generation in manifest.generations) != manifest.num_samples:
        raise FormatError("the generations do not have as many samples as the manifest says")
    numbers = [generation.generation for generation in manifest.generations]
    if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 1 or numbers[-1] >= 1 << 32:
        raise FormatError(f"generations {numbers[:8]} do not ascend from at least 1")


def _check_schema(manifest: Manifest) -> None:
    match = COMPRESSION.fullmatch(manifest.codec)
    low, high = layout.MIN_ZSTD_LEVEL, layout.MAX_ZSTD_LEVEL
    if match is None or not low <= int(match[1] or 0) <= high:
        raise UnsupportedVersionError(
            f"codec {manifest.codec[:40]!r} is unknown; this version has none and zstd:<level> from {low} to {high}"
        )
    codec = manifest.codec.partition(":")[0]
    for entry, field in zip(manifest.schema, manifest.parsed_schema.fields, strict=True):
        if entry.codec not in ("none", "zstd"):
            raise UnsupportedVersionError(f"field {entry.name!r}: unknown codec {entry.codec[:40]!r}")
        if field.type != entry.type or entry.codec not in ("none", with_codec(field, codec).codec):
            raise FormatError(f"field {entry.name!r}: type {entry.type!r} with codec {entry.codec!r} is not canonical")
    if any(generation.num_fields != len(manifest.schema) for generation in manifest.generations):
        raise FormatError("draft 1 has the whole schema in every generation")
