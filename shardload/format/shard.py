"""Header, directory and footer of a shard: where everything lies (FORMAT.md section 5)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shardload.errors import ChecksumError, FormatError, UnsupportedVersionError
from shardload.format import layout
from shardload.format.rows import row_layout
from shardload.format.schema import Schema

TAIL_READ_BYTES = layout.FOOTER_BYTES + layout.DIRECTORY_ENTRY_BYTES * 60
"""What a reader fetches from the end of a shard first: enough for the directory of nearly every schema."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a shard."""

    kind: int
    """One of `layout.SECTION_*`."""
    field: int
    """Number of the field, or `layout.NO_FIELD`."""
    start: int
    """First byte in the file."""
    num_bytes: int
    """Length in bytes."""
    item_bytes: int
    """Bytes an item; 0 for the heap."""
    digest: bytes = bytes(layout.DIGEST_BYTES)
    """SHA-256 of the section, or zeros where its content has sums of its own."""

    @property
    def stop(self) -> int:
        """Byte after the section."""
        return self.start + self.num_bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """What decides where everything lies in a shard of a schema."""

    num_samples: int
    heap_bytes: int
    """Bytes of the records, with their padding."""
    num_items: tuple[int, ...]
    """Items of each stream field."""
    dictionary_bytes: int
    description_bytes: int
    external_bytes: int = 0
    """Bytes of the list of external files; 0 if there are none."""


def plan_sections(schema: Schema, contents: Contents) -> list[Section]:
    """Returns the sections of a shard, their digests not yet known."""
    rows, num_samples = row_layout(schema), contents.num_samples
    streams = [
        (schema.number(f.name), f.num_bytes, n) for f, n in zip(schema.stream_fields, contents.num_items, strict=True)
    ]
    wanted = [(layout.SECTION_HEAP, layout.NO_FIELD, contents.heap_bytes, 0)] if schema.record_fields else []
    for field in schema.wide_fields:
        size = field.num_bytes
        wanted.append((layout.SECTION_WIDE, schema.number(field.name), size * num_samples, size))
    wanted += [(layout.SECTION_STREAM, number, size * count, size) for number, size, count in streams]
    row_bytes = rows.dtype.itemsize
    wanted.append((layout.SECTION_ROWS, layout.NO_FIELD, row_bytes * num_samples, row_bytes))
    pages_bytes = rows.num_pages(num_samples) * layout.DIGEST_BYTES
    wanted.append((layout.SECTION_PAGES, layout.NO_FIELD, pages_bytes, layout.DIGEST_BYTES))
    wanted += [(layout.SECTION_SUMS, number, 4 * layout.num_blocks(size * count), 4) for number, size, count in streams]
    if contents.dictionary_bytes:
        wanted.append((layout.SECTION_DICTIONARY, layout.NO_FIELD, contents.dictionary_bytes, 0))
    if schema.key:
        key_bytes = layout.KEY_ENTRY_BYTES
        wanted.append((layout.SECTION_KEYS, schema.number(schema.key), key_bytes * num_samples, key_bytes))
    entry_bytes = layout.STATISTICS_ENTRY_BYTES
    wanted.append((layout.SECTION_STATISTICS, layout.NO_FIELD, entry_bytes * len(schema), entry_bytes))
    if contents.external_bytes:
        wanted.append((layout.SECTION_EXTERNAL, layout.NO_FIELD, contents.external_bytes, 0))
    wanted.append((layout.SECTION_DESCRIPTION, layout.NO_FIELD, contents.description_bytes, 0))
    return _place(wanted)


def _place(wanted: Sequence[tuple[int, int, int, int]]) -> list[Section]:
    sections, stop = [], layout.HEADER_BYTES
    for kind, number, num_bytes, item_bytes in wanted:
        start = layout.align(stop, layout.section_alignment(kind))
        sections.append(Section(kind, number, start, num_bytes, item_bytes))
        stop = start + num_bytes
    return sections


def shard_bytes(schema: Schema, contents: Contents) -> int:
    """Returns the length of a shard's file."""
    sections = plan_sections(schema, contents)
    directory = layout.align(sections[-1].stop, layout.SMALL_SECTION_ALIGNMENT)
    return directory + layout.DIRECTORY_ENTRY_BYTES * len(sections) + layout.FOOTER_BYTES


def encode_header(schema: Schema, generation: int, unit: int, part: int) -> bytes:
    """Returns a shard's header: 4,096 bytes."""
    numbers = (layout.FORMAT_NUMBER, 0, 0, generation, unit, part, layout.CHECKSUM_CRC32C, 0)
    return layout.HEADER.pack(layout.HEADER_MAGIC, *numbers, schema.digest).ljust(layout.HEADER_BYTES, b"\0")


def encode_tail(sections: Sequence[Section], num_samples: int, header: bytes, last: bool) -> bytes:
    """Returns directory and footer; their SHA-256 is the head digest of the shard table. `last`: of its unit."""
    directory = b"".join(
        layout.DIRECTORY_ENTRY.pack(s.kind, s.field, s.start, s.num_bytes, s.item_bytes, s.digest) for s in sections
    )
    start = layout.align(sections[-1].stop, layout.SMALL_SECTION_ALIGNMENT)
    footer = layout.FOOTER.pack(
        layout.FOOTER_MAGIC,
        layout.FORMAT_NUMBER,
        len(sections),
        num_samples,
        start + len(directory) + layout.FOOTER_BYTES,
        hashlib.sha256(header).digest(),
        layout.FOOTER_FLAG_LAST if last else 0,
        bytes(52),
        layout.FOOTER_MAGIC,
    )
    return directory + footer


@dataclass(frozen=True, slots=True)
class ShardHead:
    """What the end of a shard says, checked."""

    num_samples: int
    header_digest: bytes
    sections: tuple[Section, ...]
    last: bool
    """Whether it is the last part of its unit."""

    def section(self, kind: int, field: int = layout.NO_FIELD) -> Section:
        """Returns the section of a kind and field."""
        return next(s for s in self.sections if (s.kind, s.field) == (kind, field))


def tail_bytes(end: bytes, place: str) -> int:
    """Returns how many bytes directory and footer have together, from the last bytes of a shard.

    Raises:
        FormatError: the bytes do not end in a footer.
    """
    if len(end) < layout.FOOTER_BYTES:
        raise FormatError(f"{place}: {len(end)} bytes are no shard")
    magic, number, num_sections, *_, magic_again = layout.FOOTER.unpack_from(end, len(end) - layout.FOOTER_BYTES)
    if magic != layout.FOOTER_MAGIC or magic_again != layout.FOOTER_MAGIC:
        raise FormatError(f"{place}: the footer is damaged or this is no shard of shardload")
    if number != layout.FORMAT_NUMBER:
        raise UnsupportedVersionError(f"{place}: {layout.unread(number)}")
    if num_sections > 4 * layout.MAX_FIELDS:
        raise FormatError(f"{place}: {num_sections} sections are more than a shard can have")
    return int(layout.FOOTER_BYTES + layout.DIRECTORY_ENTRY_BYTES * num_sections)


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a shard before it is opened."""

    schema: Schema
    """Schema of its generation."""
    num_samples: int
    num_bytes: int
    """Length of the file."""
    head_digest: bytes
    """SHA-256 of directory and footer."""
    num_items: tuple[int, ...]
    """Items of each stream field."""
    dictionary: str
    """SHA-256 of its generation's dictionary in hexadecimal, or empty."""
    external: bool = False
    """Whether the dataset may have external files."""


def decode_head(tail: bytes, expected: Expected, place: str) -> ShardHead:
    """Returns what directory and footer say, checked against what the manifest and the shard table say.

    Args:
        tail: directory and footer, of the length that `tail_bytes` tells.
        expected: the shard as it should be.
        place: dataset and shard, for messages.

    Raises:
        ChecksumError: the bytes do not have the digest.
        FormatError: the sections are not those of such a shard.
    """
    num_samples, num_bytes = expected.num_samples, expected.num_bytes
    if hashlib.sha256(tail).digest() != expected.head_digest:
        raise ChecksumError(
            f"{place}: directory and footer are damaged, or this is another shard: their SHA-256 is not the one in the "
            "shard table",
            start=num_bytes - len(tail),
            stop=num_bytes,
        )
    if tail_bytes(tail, place) != len(tail):
        raise FormatError(f"{place}: directory and footer have {len(tail)} bytes, which is not what the footer says")
    sections, (samples, file_bytes, header_digest, flags, zeros) = parse_tail(tail)
    contents = contents_of(sections, expected.schema, num_samples)
    # In this order: no size is worked out from numbers of the file that the table contradicts.
    if (samples, file_bytes) != (num_samples, num_bytes) or flags > layout.FOOTER_FLAG_LAST or any(zeros):
        raise FormatError(
            f"{place}: the footer says {samples} samples and {file_bytes} bytes, the table {num_samples} and {num_bytes}"
        )
    found = [s if s.kind not in layout.DIGESTED_SECTIONS else replace(s, digest=bytes(32)) for s in sections]
    if (
        contents.num_items != expected.num_items
        or found != plan_sections(expected.schema, contents)
        or shard_bytes(expected.schema, contents) != num_bytes
    ):
        raise FormatError(f"{place}: the sections are not those of {num_samples} samples of {expected.schema}")
    head = ShardHead(num_samples, header_digest, sections, bool(flags))
    if _dictionary_digest(head) != expected.dictionary or contents.dictionary_bytes > layout.MAX_DICTIONARY_BYTES:
        raise FormatError(f"{place}: its zstd dictionary is not the one that the manifest names")
    if contents.external_bytes and not (expected.external and expected.schema.record_fields):
        raise FormatError(f"{place}: it names external files, which its dataset cannot have")
    if contents.description_bytes > layout.MAX_DESCRIPTION_BYTES:
        raise FormatError(f"{place}: a description of {contents.description_bytes} bytes is longer than 1 MiB")
    return head


def parse_tail(tail: bytes) -> tuple[tuple[Section, ...], tuple[int, int, bytes, int, bytes]]:
    """Returns the sections in the directory, and of the footer: samples, bytes, header digest, flags, zeros."""
    sections = tuple(Section(*entry) for entry in layout.DIRECTORY_ENTRY.iter_unpack(tail[: -layout.FOOTER_BYTES]))
    _, _, _, samples, file_bytes, header_digest, flags, zeros, _ = layout.FOOTER.unpack(tail[-layout.FOOTER_BYTES :])
    return sections, (samples, file_bytes, header_digest, flags, zeros)


def contents_of(sections: Sequence[Section], schema: Schema, num_samples: int) -> Contents:
    """Returns the contents that a directory tells of; nothing is checked."""
    sizes = {(s.kind, s.field): s.num_bytes for s in sections}
    items = (sizes.get((layout.SECTION_STREAM, schema.number(f.name)), 0) // f.num_bytes for f in schema.stream_fields)
    heap, dictionary, description, external = (
        sizes.get((kind, layout.NO_FIELD), 0)
        for kind in (
            layout.SECTION_HEAP,
            layout.SECTION_DICTIONARY,
            layout.SECTION_DESCRIPTION,
            layout.SECTION_EXTERNAL,
        )
    )
    return Contents(num_samples, heap, tuple(items), dictionary, description, external)


def _dictionary_digest(head: ShardHead) -> str:
    return "".join(s.digest.hex() for s in head.sections if s.kind == layout.SECTION_DICTIONARY)


def check_header(header: bytes, head: ShardHead, schema: Schema, identity: tuple[int, int, int], place: str) -> None:
    """Checks a shard's first 4,096 bytes: version first, then that they are the header this shard was written with.

    Raises:
        UnsupportedVersionError: another version of the format, or a required flag this version does not know.
        ChecksumError: the header has changed.
    """
    magic, number, required, *_ = layout.HEADER.unpack_from(header)
    if magic != layout.HEADER_MAGIC:
        raise FormatError(f"{place}: the file does not start like a shard of shardload", start=0, stop=8)
    if number != layout.FORMAT_NUMBER:
        raise UnsupportedVersionError(f"{place}: {layout.unread(number)}")
    if required:
        raise UnsupportedVersionError(
            f"{place}: needs what this version lacks: its required flags are {required:#x}; update shardload"
        )
    expected = encode_header(schema, *identity)
    expected = expected[:16] + header[16:20] + expected[20:]  # optional flags: what is unknown is passed over
    if hashlib.sha256(header).digest() != head.header_digest or header != expected:
        raise ChecksumError(f"{place}: the header is damaged", start=0, stop=layout.HEADER_BYTES)
