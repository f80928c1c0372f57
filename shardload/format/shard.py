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


def plan_sections(schema: Schema, num_samples: int, heap_bytes: int) -> list[Section]:
    """Returns the sections of a shard of so many samples, their digests not yet known."""
    rows = row_layout(schema)
    wanted = [(layout.SECTION_HEAP, layout.NO_FIELD, heap_bytes, 0)] if schema.record_fields else []
    for field in schema.wide_fields:
        size = field.num_bytes
        wanted.append((layout.SECTION_WIDE, schema.number(field.name), size * num_samples, size))
    row_bytes = rows.dtype.itemsize
    wanted.append((layout.SECTION_ROWS, layout.NO_FIELD, row_bytes * num_samples, row_bytes))
    pages_bytes = rows.num_pages(num_samples) * layout.DIGEST_BYTES
    wanted.append((layout.SECTION_PAGES, layout.NO_FIELD, pages_bytes, layout.DIGEST_BYTES))
    sections, stop = [], layout.HEADER_BYTES
    for kind, number, num_bytes, item_bytes in wanted:
        start = layout.align(stop, layout.SECTION_ALIGNMENTS[kind])
        sections.append(Section(kind, number, start, num_bytes, item_bytes))
        stop = start + num_bytes
    return sections


def shard_bytes(schema: Schema, num_samples: int, heap_bytes: int) -> int:
    """Returns the length of the file of a shard of so many samples and bytes of records (with their padding)."""
    sections = plan_sections(schema, num_samples, heap_bytes)
    directory = layout.align(sections[-1].stop, layout.SMALL_SECTION_ALIGNMENT)
    return directory + layout.DIRECTORY_ENTRY_BYTES * len(sections) + layout.FOOTER_BYTES


def encode_header(schema: Schema, generation: int, unit: int, part: int) -> bytes:
    """Returns a shard's header: 4,096 bytes."""
    numbers = (layout.DRAFT, 0, 0, generation, unit, part, layout.CHECKSUM_CRC32C, 0)
    return layout.HEADER.pack(layout.HEADER_MAGIC, *numbers, schema.digest).ljust(layout.HEADER_BYTES, b"\0")


def encode_tail(sections: Sequence[Section], num_samples: int, header: bytes) -> bytes:
    """Returns directory and footer; their SHA-256 is the head digest of the shard table."""
    directory = b"".join(
        layout.DIRECTORY_ENTRY.pack(s.kind, s.field, s.start, s.num_bytes, s.item_bytes, s.digest) for s in sections
    )
    start = layout.align(sections[-1].stop, layout.SMALL_SECTION_ALIGNMENT)
    footer = layout.FOOTER.pack(
        layout.FOOTER_MAGIC,
        layout.DRAFT,
        len(sections),
        num_samples,
        start + len(directory) + layout.FOOTER_BYTES,
        hashlib.sha256(header).digest(),
        bytes(56),
        layout.FOOTER_MAGIC,
    )
    return directory + footer


@dataclass(frozen=True, slots=True)
class ShardHead:
    """What the end of a shard says, checked."""

    num_samples: int
    header_digest: bytes
    sections: tuple[Section, ...]

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
    magic, draft, num_sections, *_, magic_again = layout.FOOTER.unpack_from(end, len(end) - layout.FOOTER_BYTES)
    if magic != layout.FOOTER_MAGIC or magic_again != layout.FOOTER_MAGIC:
        raise FormatError(f"{place}: the footer is damaged or this is no shard of shardload")
    if draft != layout.DRAFT:
        raise UnsupportedVersionError(
            f"{place}: written in draft {draft} of the format; this version reads draft {layout.DRAFT}"
        )
    if num_sections > 4 * layout.MAX_FIELDS:
        raise FormatError(f"{place}: {num_sections} sections are more than a shard can have")
    return int(layout.FOOTER_BYTES + layout.DIRECTORY_ENTRY_BYTES * num_sections)


def decode_head(
    tail: bytes, head_digest: bytes, schema: Schema, num_samples: int, num_bytes: int, place: str
) -> ShardHead:
    """Returns what directory and footer say, checked against digest, schema and file.

    Args:
        tail: directory and footer, of the length that `tail_bytes` tells.
        head_digest: their SHA-256 as it stands in the shard table.
        schema: schema of the shard's generation.
        num_samples: samples as the table says.
        num_bytes: length of the file as the table says.
        place: dataset and shard, for messages.

    Raises:
        ChecksumError: the bytes do not have the digest.
        FormatError: the sections are not those of such a shard.
    """
    if hashlib.sha256(tail).digest() != head_digest:
        raise ChecksumError(
            f"{place}: directory and footer are damaged, or this is another shard: their SHA-256 is not the one in the "
            "shard table",
            start=num_bytes - len(tail),
            stop=num_bytes,
        )
    if tail_bytes(tail, place) != len(tail):
        raise FormatError(f"{place}: directory and footer have {len(tail)} bytes, which is not what the footer says")
    directory = tail[: -layout.FOOTER_BYTES]
    sections = tuple(Section(*entry) for entry in layout.DIRECTORY_ENTRY.iter_unpack(directory))
    _, _, _, samples, file_bytes, header_digest, zeros, _ = layout.FOOTER.unpack(tail[-layout.FOOTER_BYTES :])
    heap_bytes = sections[0].num_bytes if sections and sections[0].kind == layout.SECTION_HEAP else 0
    expected = plan_sections(schema, num_samples, heap_bytes)
    found = [replace(s, digest=bytes(32)) if s.kind == layout.SECTION_PAGES else s for s in sections]
    if found != expected:
        raise FormatError(f"{place}: the sections are not those of {num_samples} samples of {schema}")
    size = shard_bytes(schema, num_samples, heap_bytes)
    if (samples, file_bytes) != (num_samples, num_bytes) or size != num_bytes or any(zeros):
        raise FormatError(
            f"{place}: the footer says {samples} samples and {file_bytes} bytes, the table {num_samples} and {num_bytes}"
        )
    return ShardHead(num_samples, header_digest, sections)


def check_header(header: bytes, head: ShardHead, schema: Schema, identity: tuple[int, int, int], place: str) -> None:
    """Checks a shard's first 4,096 bytes: version first, then that they are the header this shard was written with.

    Raises:
        UnsupportedVersionError: another draft, or a required flag this version does not know.
        ChecksumError: the header has changed.
    """
    magic, draft, required, *_ = layout.HEADER.unpack_from(header)
    if magic != layout.HEADER_MAGIC:
        raise FormatError(f"{place}: the file does not start like a shard of shardload", start=0, stop=8)
    if draft != layout.DRAFT or required:
        raise UnsupportedVersionError(
            f"{place}: draft {draft} with required flags {required:#x}; this version reads draft {layout.DRAFT} without"
        )
    expected = encode_header(schema, *identity)
    expected = expected[:16] + header[16:20] + expected[20:]  # optional flags: what is unknown is passed over
    if hashlib.sha256(header).digest() != head.header_digest or header != expected:
        raise ChecksumError(f"{place}: the header is damaged", start=0, stop=layout.HEADER_BYTES)
