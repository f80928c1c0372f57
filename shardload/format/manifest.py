"""The manifest: the one small file that names a dataset's content (FORMAT.md section 2)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import msgspec

from shardload.errors import ChecksumError, FormatError, UnsupportedVersionError
from shardload.format import layout
from shardload.format.external import EXTERNAL, external_bytes_fact
from shardload.format.schema import Schema, canonical_json, parse_field

MANIFEST_NAME = "manifest.json"
COMPRESSION = re.compile(r"none|zstd:(-?[0-9]{1,3})")

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

Fact = str | int | bool
Metadata = dict[str, Fact | list[Fact]]


def check_metadata(metadata: Mapping[str, Any]) -> Metadata:
    """Returns metadata that a manifest can hold.

    Raises:
        FormatError: it is not text, booleans, integers of 64 bits or lists of these by name, or far too long.
    """
    try:
        data = canonical_json(metadata)
        checked: Metadata = msgspec.json.decode(data, type=Metadata)
        if not all(isinstance(name, str) for name in metadata) or not _all_64_bits(checked):
            raise ValueError("a name is not text, or an integer has over 64 bits")
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"metadata must be text, booleans, integers or lists of these by name: {error}") from None
    if len(data) > layout.MAX_MANIFEST_BYTES // 2:
        raise FormatError(f"the metadata is {len(data)} bytes long; a manifest has at most 1 MiB altogether")
    return checked


def _all_64_bits(metadata: Metadata) -> bool:
    values = (value for entry in metadata.values() for value in (entry if isinstance(entry, list) else [entry]))
    return all(-(1 << 63) <= value < 1 << 63 for value in values if isinstance(value, int))


class FieldEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field as it stands in a manifest."""

    codec: str
    name: str
    type: str


class Writer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Versions of what wrote a generation; equal input gives equal bytes for equal versions."""

    numpy: str
    shardload: str
    zstd: str


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pack or append."""

    codec: str
    dictionary: str
    """SHA-256 of its dictionary in hexadecimal, or empty."""
    generation: int
    num_fields: int
    num_samples: int
    num_units: int
    shard_size: int
    writer: Writer


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True, kw_only=True):
    """What is known of a dataset before its first shard is written; the last generation has no samples yet."""

    generations: list[Generation]
    key: str
    metadata: Metadata
    schema: list[FieldEntry]
    version: int
    draft: int = layout.FORMAT_NUMBER
    """The number of the format: the name is from before it was frozen."""
    format: str = layout.FORMAT_NAME
    required: list[str] = []

    @property
    def external(self) -> bool:
        """Whether records may lie in existing files."""
        return EXTERNAL in self.required

    @property
    def external_bytes(self) -> int:
        """Bytes of the external files of all generations, by what stands in the metadata: for planning only."""
        facts = (self.metadata.get(external_bytes_fact(one.generation)) for one in self.generations if self.external)
        return sum(fact for fact in facts if isinstance(fact, int) and fact > 0)

    @cached_property
    def parsed_schema(self) -> Schema:
        """The schema of the newest generation."""
        fields = [parse_field(entry.name, entry.type) for entry in self.schema]
        entries = zip(fields, self.schema, strict=True)
        return Schema(tuple(replace(field, codec=entry.codec) for field, entry in entries), self.key)

    def schema_of(self, generation: int) -> Schema:
        """Returns the schema of one of the generations."""
        return self.parsed_schema.prefix(self.generation(generation).num_fields)

    def generation(self, number: int) -> Generation:
        """Returns the generation of a number."""
        return self._generations[number]

    @cached_property
    def _generations(self) -> dict[int, Generation]:
        return {generation.generation: generation for generation in self.generations}

    def encode(self) -> bytes:
        """Returns the canonical JSON.

        Raises:
            FormatError: it is over 1 MiB.
        """
        data = canonical_json(msgspec.to_builtins(self))
        if len(data) > layout.MAX_DESCRIPTION_BYTES:
            raise FormatError(
                f"the description would be {len(data)} bytes; the format allows 1 MiB: shorten the metadata"
            )
        return data


class Manifest(Description, frozen=True, forbid_unknown_fields=True, dict=True, kw_only=True):
    """What a dataset is. Field by field as in FORMAT.md section 2."""

    num_bytes: int
    num_samples: int
    num_shards: int
    table: str

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


def describe(
    schema: Schema,
    version: int,
    generation: Generation,
    metadata: Metadata,
    earlier: Sequence[Generation] = (),
    required: Sequence[str] = (),
) -> Description:
    """Returns the description of a dataset whose newest generation is about to be written.

    Raises:
        FormatError: it is not one that the format allows, such as for too much metadata.
    """
    description = Description(
        generations=[*earlier, generation],
        key=schema.key,
        metadata=metadata,
        required=list(required),
        schema=[FieldEntry(**entry) for entry in schema.canonical],
        version=version,
    )
    _check_numbers(description)
    description.encode()
    return description


def complete(description: Description, num_bytes: int, num_shards: int, num_added: int, table: str) -> Manifest:
    """Returns the manifest of a dataset that is written.

    Args:
        description: what was known before.
        num_bytes: of all shards, those of earlier generations too.
        num_shards: all shards.
        num_added: samples of the newest generation.
        table: SHA-256 of the shard table, in hexadecimal.
    """
    *earlier, newest = description.generations
    generations = [*earlier, msgspec.structs.replace(newest, num_samples=num_added)]
    return Manifest(
        generations=generations,
        key=description.key,
        metadata=description.metadata,
        num_bytes=num_bytes,
        num_samples=sum(generation.num_samples for generation in generations),
        num_shards=num_shards,
        required=description.required,
        schema=description.schema,
        table=table,
        version=description.version,
    )


def decode_description(data: bytes, place: str) -> Description:
    """Returns the description in `data`, the content of a shard's section.

    Raises:
        UnsupportedVersionError: another version of the format, or a required feature this version does not have.
        FormatError: anything else that the format does not allow.
    """
    try:
        _check_version(msgspec.json.decode(data, type=_Probe), place)
        description = msgspec.json.decode(data, type=Description)
        _check_numbers(description)
        if description.generations[-1].num_samples:
            raise FormatError("a description cannot know the samples of its own generation")
        canonical = description.encode() == data
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError(f"{place}: no description of a dataset, or damaged: {error}") from None
    except FormatError as error:
        raise _with_place(error, place) from None
    if not canonical:
        raise FormatError(f"{place}: the description is damaged: it is not in its canonical form")
    return description


def _with_place(error: FormatError, place: str) -> FormatError:
    # Names and types may be as long as the manifest, the message may not.
    message = error.message if len(error.message) <= 1000 else f"{error.message[:1000]}..."
    return type(error)(message if place in message else f"{place}: {message}")


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
        UnsupportedVersionError: another version of the format, or a required feature this version does not have.
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
        _check_counts(manifest)
        intact = manifest.fingerprint == file.fingerprint
        canonical = manifest.encode() == data
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError(f"{place}: not a manifest of shardload, or damaged: {error}") from None
    except FormatError as error:
        raise _with_place(error, place) from None
    if not intact:
        raise ChecksumError(f"{place}: the manifest is damaged: its content does not have its fingerprint")
    if not canonical:
        raise FormatError(f"{place}: the manifest is damaged: it is not in its canonical form")
    return manifest


def _check_version(probe: _Probe, place: str) -> None:
    if probe.format != layout.FORMAT_NAME:
        raise FormatError(f"{place}: the format is {probe.format[:40]!r}, not {layout.FORMAT_NAME!r}")
    if probe.draft != layout.FORMAT_NUMBER:
        raise UnsupportedVersionError(f"{place}: {layout.unread(probe.draft)}")
    if lacking := [name for name in probe.required if name != EXTERNAL]:
        raise UnsupportedVersionError(
            f"{place}: needs {', '.join(map(repr, lacking))[:200]}, which this version lacks: update shardload"
        )


def _check_counts(manifest: Manifest) -> None:
    counts = (manifest.num_bytes, manifest.num_samples, manifest.num_shards)
    if min(counts) < 0 or max(counts[:2]) >= 1 << 63 or manifest.num_shards > layout.MAX_SHARDS:
        raise FormatError(f"{counts} are no counts of bytes, samples and shards")
    if _HEX_DIGEST.fullmatch(manifest.table) is None:
        raise FormatError("the shard table is not named by a SHA-256 in hexadecimal")
    if sum(generation.num_samples for generation in manifest.generations) != manifest.num_samples:
        raise FormatError("the generations do not have as many samples as the manifest says")


def _check_numbers(description: Description) -> None:
    if len(description.required) > 1:
        raise FormatError("a feature is required twice")
    if not 1 <= description.version < 1 << 63:
        raise FormatError("the version is below 1 or has over 64 bits")
    if not _all_64_bits(description.metadata):
        raise FormatError("an integer in the metadata has over 64 bits")
    numbers = [generation.generation for generation in description.generations]
    if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 1 or numbers[-1] >= 1 << 32:
        raise FormatError(f"generations {numbers[:8]} do not ascend from at least 1")
    for generation in description.generations:
        _check_generation(generation)
    _check_schema(description)


def _check_generation(generation: Generation) -> None:
    match = COMPRESSION.fullmatch(generation.codec)
    low, high = layout.MIN_ZSTD_LEVEL, layout.MAX_ZSTD_LEVEL
    canonical = match is not None and match[1] in (None, str(int(match[1] or 0)))
    if match is None or not canonical or not low <= int(match[1] or 0) <= high:
        raise UnsupportedVersionError(
            f"codec {generation.codec[:40]!r} is unknown; this version has none and zstd:<level> from {low} to {high}"
        )
    if generation.dictionary and (_HEX_DIGEST.fullmatch(generation.dictionary) is None or generation.codec == "none"):
        raise FormatError("a dictionary is not named by a SHA-256 in hexadecimal, or has no codec")
    counts = (generation.num_samples, generation.num_units, generation.shard_size)
    if min(counts) < 0 or max(counts) >= 1 << 63 or generation.shard_size < 1:
        raise FormatError(f"{counts} are no counts of samples and units and no shard size")


def _check_schema(description: Description) -> None:
    for entry, field in zip(description.schema, description.parsed_schema.fields, strict=True):
        if entry.codec not in ("none", "zstd"):
            raise UnsupportedVersionError(f"field {entry.name!r}: unknown codec {entry.codec[:40]!r}")
        if field.type != entry.type or (entry.codec == "zstd" and not field.compressible):
            raise FormatError(f"field {entry.name!r}: type {entry.type!r} with codec {entry.codec!r} is not canonical")
    sizes = [generation.num_fields for generation in description.generations]
    if sizes != sorted(sizes) or sizes[0] < 1 or sizes[-1] != len(description.schema):
        raise FormatError(f"generations of {sizes[:8]} fields cannot be those of a schema of {len(description.schema)}")
    if not all(field.nullable for field in description.parsed_schema.fields[sizes[0] :]):
        raise FormatError("a field that came after the first generation is not nullable")
    if description.key:
        description.parsed_schema.prefix(sizes[0])
