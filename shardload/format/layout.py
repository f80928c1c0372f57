"""The numbers of FORMAT.md: magics, sizes, limits, and where a section may lie."""

from __future__ import annotations

import struct

DRAFT = 1
FORMAT_NAME = "shardload"

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

HEADER_MAGIC = b"\x89SHRD\r\n\x1a"
FOOTER_MAGIC = b"SHRDFOOT"
TABLE_MAGIC = b"SHRDTABL"
CHECKSUM_CRC32C = 1

HEADER = struct.Struct("<8sIIIIIIII32s")
"""Magic, draft, required flags, optional flags, generation, unit, part, checksum, zero, schema digest."""
FOOTER = struct.Struct("<8sIIQQ32s56s8s")
"""Magic, draft, directory entries, samples, bytes of the file, header digest, zeros, magic."""
DIRECTORY_ENTRY = struct.Struct("<IIQQQ32s")
"""Kind, field, offset, length, bytes an item, digest."""
IDENTITY = struct.Struct("<IIIII")
"""Generation, unit, part, field, local id: what every checksum starts with."""

SECTION_HEAP = 1
SECTION_WIDE = 2
SECTION_ROWS = 3
SECTION_PAGES = 4

NO_FIELD = 0xFFFFFFFF
"""Stands for the field where a section or checksum belongs to no single one: heap, rows, pages, records."""

OFFSET_BITS = 48
OFFSET_MASK = (1 << OFFSET_BITS) - 1
RECORD_FLAG_FRAME = 1
"""The compressed fields of the record are one zstd frame."""

MAX_MANIFEST_BYTES = 1 << 20
MAX_FIELDS = 1024
MAX_NAME_BYTES = 128
MAX_DIMENSIONS = 16
MAX_SHARDS = 1 << 26
MAX_SHARD_SAMPLES = (1 << 32) - 1
MAX_RECORD_BYTES = (1 << 32) - 1
MIN_ZSTD_LEVEL, MAX_ZSTD_LEVEL = -100, 22
MAX_JSON_DEPTH = 256
MAX_SHARD_BYTES = (1 << OFFSET_BITS) - 1

SECTION_ALIGNMENTS = {
    SECTION_HEAP: SECTION_ALIGNMENT,
    SECTION_WIDE: SECTION_ALIGNMENT,
    SECTION_ROWS: SECTION_ALIGNMENT,
    SECTION_PAGES: SMALL_SECTION_ALIGNMENT,
}


def align(offset: int, alignment: int) -> int:
    """Returns the first multiple of `alignment` that is not below `offset`."""
    return -(-offset // alignment) * alignment


def record_alignment(stored_bytes: int) -> int:
    """Returns the alignment of a record of the given stored length."""
    return LARGE_RECORD_ALIGNMENT if stored_bytes >= LARGE_RECORD_BYTES else RECORD_ALIGNMENT


def shard_name(generation: int, unit: int, part: int) -> str:
    """Returns the path of a shard inside its dataset, computed from its three numbers."""
    return f"shards/{generation:04d}-{unit:06d}-{part:05d}.shard"
