"""The numbers of FORMAT.md: magics, sizes, limits, and where a section may lie."""

from __future__ import annotations

import struct

FORMAT_NAME = "shardload"
FORMAT_VERSION = 1
FORMAT_NUMBER = 2
"""What stands for version 1 in the field `draft` of every file: it is the second draft, frozen as it was."""

HEADER_BYTES = 4096
FOOTER_BYTES = 128
DIRECTORY_ENTRY_BYTES = 64
PAGE_BYTES = 16_384
SECTION_ALIGNMENT = 4096
SMALL_SECTION_ALIGNMENT = 64
WIDE_FIELD_BYTES = 512
RECORD_ALIGNMENT = 16
LARGE_RECORD_ALIGNMENT = 64
LARGE_RECORD_BYTES = 1024
DIGEST_BYTES = 32
BLOCK_BYTES = 4096
"""Bytes of a stream under one checksum."""
KEY_DIGEST_BYTES = 16
KEY_ENTRY_BYTES = 20
STATISTICS_ENTRY_BYTES = 64

HEADER_MAGIC = b"\x89SHRD\r\n\x1a"
FOOTER_MAGIC = b"SHRDFOOT"
TABLE_MAGIC = b"SHRDTABL"
CHECKSUM_CRC32C = 1

HEADER = struct.Struct("<8sIIIIIIII32s")
"""Magic, format number, required flags, optional flags, generation, unit, part, checksum, zero, schema digest."""
FOOTER = struct.Struct("<8sIIQQ32sI52s8s")
"""Magic, format number, directory entries, samples, bytes of the file, header digest, flags, zeros, magic."""
DIRECTORY_ENTRY = struct.Struct("<IIQQQ32s")
"""Kind, field, offset, length, bytes an item, digest."""
IDENTITY = struct.Struct("<IIIII")
"""Generation, unit, part, field, local id: what every checksum starts with."""

SECTION_HEAP = 1
SECTION_WIDE = 2
SECTION_ROWS = 3
SECTION_PAGES = 4
SECTION_STREAM = 5
SECTION_DICTIONARY = 6
SECTION_KEYS = 7
SECTION_STATISTICS = 8
SECTION_EXTERNAL = 9
SECTION_SUMS = 10
SECTION_DESCRIPTION = 11

NO_FIELD = 0xFFFFFFFF
"""Stands for the field where a section or checksum belongs to no single one: heap, rows, pages, records."""

OFFSET_BITS = 48
OFFSET_MASK = (1 << OFFSET_BITS) - 1
RECORD_FLAG_FRAME = 1
"""The compressed fields of the record are one zstd frame."""
RECORD_FLAG_EXTERNAL = 2
"""Fields of the record lie in an existing file."""
STANDS_HERE = (1 << 64) - 1
"""In place of a field's first byte in that file: its bytes stand in the record."""
FOOTER_FLAG_LAST = 1
"""The shard is the last part of its unit."""

MAX_MANIFEST_BYTES = 1 << 20
MAX_DESCRIPTION_BYTES = MAX_MANIFEST_BYTES
MAX_DICTIONARY_BYTES = 1 << 20
MAX_FIELDS = 1024
MAX_NAME_BYTES = 128
MAX_DIMENSIONS = 16
MAX_SHARDS = 1 << 26
MAX_SHARD_SAMPLES = (1 << 32) - 1
MAX_ITEMS = (1 << 32) - 1
"""Items of one sample's ragged field."""
MAX_RECORD_BYTES = (1 << 32) - 1
MIN_ZSTD_LEVEL, MAX_ZSTD_LEVEL = -100, 22
MAX_JSON_DEPTH = 256
MAX_SHARD_BYTES = (1 << OFFSET_BITS) - 1

_DATA_SECTIONS = {SECTION_HEAP, SECTION_WIDE, SECTION_STREAM, SECTION_ROWS}

DIGESTED_SECTIONS = {
    SECTION_PAGES,
    SECTION_DICTIONARY,
    SECTION_KEYS,
    SECTION_STATISTICS,
    SECTION_EXTERNAL,
    SECTION_DESCRIPTION,
}
"""Kinds of sections whose SHA-256 stands in the directory."""


def unread(number: int) -> str:
    """Returns words for a format number that is not `FORMAT_NUMBER`, and for what to do."""
    if number < FORMAT_NUMBER:
        return f"written in draft {number}, before the format was version {FORMAT_VERSION}: write the dataset anew"
    return (
        f"written in a later version of the format (its number is {number}, that of version {FORMAT_VERSION} is "
        f"{FORMAT_NUMBER}): update shardload"
    )


def align(offset: int, alignment: int) -> int:
    """Returns the first multiple of `alignment` that is not below `offset`."""
    return -(-offset // alignment) * alignment


def section_alignment(kind: int) -> int:
    """Returns the alignment of a section of a kind."""
    return SECTION_ALIGNMENT if kind in _DATA_SECTIONS else SMALL_SECTION_ALIGNMENT


def num_blocks(num_bytes: int) -> int:
    """Returns the number of blocks of a stream of so many bytes."""
    return -(-num_bytes // BLOCK_BYTES)


def record_alignment(stored_bytes: int) -> int:
    """Returns the alignment of a record of the given stored length."""
    return LARGE_RECORD_ALIGNMENT if stored_bytes >= LARGE_RECORD_BYTES else RECORD_ALIGNMENT


def shard_name(generation: int, unit: int, part: int) -> str:
    """Returns the path of a shard inside its dataset, computed from its three numbers."""
    return f"shards/{generation:04d}-{unit:06d}-{part:05d}.shard"
