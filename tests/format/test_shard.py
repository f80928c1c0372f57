from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import ChecksumError, FormatError, UnsupportedVersionError
from shardload.format import layout
from shardload.format.schema import Schema, parse_schema
from shardload.format.shard import (
    Section,
    ShardHead,
    check_header,
    decode_head,
    encode_header,
    encode_tail,
    plan_sections,
    shard_bytes,
    tail_bytes,
)

SCHEMA = parse_schema({"text": "str", "wide": "uint8[1000]", "x": "int64", "more": "float32[128]?"})
IDENTITY = (1, 2, 3)
SAMPLES, HEAP = 10, 100
HEADER = encode_header(SCHEMA, *IDENTITY)
SECTIONS = plan_sections(SCHEMA, SAMPLES, HEAP)
TAIL = encode_tail(SECTIONS, SAMPLES, HEADER)
SIZE = shard_bytes(SCHEMA, SAMPLES, HEAP)
DIGEST = hashlib.sha256(TAIL).digest()


def decode(tail: bytes = TAIL, digest: bytes | None = None, samples: int = SAMPLES, size: int = SIZE) -> ShardHead:
    return decode_head(tail, hashlib.sha256(tail).digest() if digest is None else digest, SCHEMA, samples, size, "s")


def test_golden_header() -> None:
    golden = "89534852440d0a1a0100000000000000000000000100000002000000030000000100000000000000"
    text = (
        '[{"codec":"none","name":"text","type":"str"},{"codec":"none","name":"wide","type":"uint8[1000]"},'
        '{"codec":"none","name":"x","type":"int64"},{"codec":"none","name":"more","type":"float32[128]?"}]'
    )
    assert (bytes.fromhex(golden) + hashlib.sha256(text.encode()).digest()).ljust(4096, b"\0") == HEADER


def test_golden_tail() -> None:
    # place 8, stored 4, raw 4, two sums 4 each, x 8, validity 1: 33 bytes, so a row has 40
    golden = "".join(
        struct.pack("<IIQQQ32s", *entry, bytes(32)).hex()
        for entry in (
            (1, 0xFFFFFFFF, 4096, 100, 0),
            (2, 1, 8192, 10_000, 1000),
            (2, 3, 20_480, 5120, 512),
            (3, 0xFFFFFFFF, 28_672, 400, 40),
            (4, 0xFFFFFFFF, 29_120, 32, 32),
        )
    )
    size = 29_184 + 5 * 64 + 128
    golden += b"SHRDFOOT".hex() + "01000000050000000a00000000000000" + size.to_bytes(8, "little").hex()
    golden += hashlib.sha256(HEADER).hexdigest() + "00" * 56 + b"SHRDFOOT".hex()
    assert TAIL.hex() == golden
    assert size == SIZE
    assert tail_bytes(TAIL, "s") == tail_bytes(bytes(999) + TAIL, "s") == len(TAIL)


def test_decodes() -> None:
    head = decode(digest=DIGEST)
    assert head == ShardHead(SAMPLES, hashlib.sha256(HEADER).digest(), tuple(SECTIONS))
    assert head.section(layout.SECTION_WIDE, 3).stop == 25_600
    check_header(HEADER, head, SCHEMA, IDENTITY, "s")


def test_every_changed_byte_of_the_tail_is_refused() -> None:
    for place in range(len(TAIL)):
        tail = TAIL[:place] + bytes([TAIL[place] ^ 16]) + TAIL[place + 1 :]
        with pytest.raises(ChecksumError):
            decode(tail, DIGEST)


def test_every_changed_byte_of_the_header_is_refused() -> None:
    head = decode()
    for place in range(len(HEADER)):
        header = HEADER[:place] + bytes([HEADER[place] ^ 16]) + HEADER[place + 1 :]
        error = UnsupportedVersionError if 8 <= place < 16 else FormatError if place < 8 else ChecksumError
        with pytest.raises(error) as caught:
            check_header(header, head, SCHEMA, IDENTITY, "s")
        assert type(caught.value) is error


def test_a_changed_tail_under_the_right_digest() -> None:
    """What a hostile or broken writer could seal: every number in it is compared."""
    footer = len(TAIL) - 128
    digests = {*range(footer + 32, footer + 64), *range(footer - 32, footer)}  # compared with header and pages later
    heap_length = {16, 17}  # another heap length within the padding after it moves nothing
    for place in set(range(len(TAIL))) - digests - heap_length:
        tail = TAIL[:place] + bytes([TAIL[place] ^ 16]) + TAIL[place + 1 :]
        with pytest.raises(FormatError):
            decode(tail)
    for place in (16, footer - 1, footer + 40):
        assert decode(TAIL[:place] + bytes([TAIL[place] ^ 16]) + TAIL[place + 1 :]) != decode()


def test_sealed_nonsense() -> None:
    def sealed(*sections: Section) -> bytes:
        return encode_tail(sections, SAMPLES, HEADER)

    huge = (1 << 64) - 1
    for tail in (
        TAIL[-128:],
        TAIL[:-128],
        b"",
        TAIL[1:],
        bytes(64) + TAIL,
        sealed(*SECTIONS[1:]),
        sealed(*SECTIONS[:-1]),
        sealed(*SECTIONS, SECTIONS[-1]),
        sealed(SECTIONS[1], SECTIONS[0], *SECTIONS[2:]),
        sealed(replace(SECTIONS[0], num_bytes=8192), *SECTIONS[1:]),
        sealed(replace(SECTIONS[0], kind=5), *SECTIONS[1:]),
    ):
        with pytest.raises(FormatError):
            decode(tail)
    other = TAIL[:-104] + struct.pack("<Q", SIZE + 64) + TAIL[-96:]  # footer and table agree, the sections do not
    with pytest.raises(FormatError):
        decode(other, size=SIZE + 64)
    entry = struct.pack("<IIQQQ32s", 1, 0xFFFFFFFF, 4096, huge, 0, bytes(32))
    with pytest.raises(FormatError):
        decode(entry + TAIL[64:])
    for samples, size in ((SAMPLES + 1, SIZE), (SAMPLES, SIZE + 64), (0, SIZE), (1 << 32, SIZE)):
        with pytest.raises(FormatError):
            decode(samples=samples, size=size)


def test_another_schema_or_shard() -> None:
    other = parse_schema({"text": "str", "wide": "uint8[1000]", "y": "int64", "more": "float32[128]?"})
    head = decode_head(TAIL, DIGEST, other, SAMPLES, SIZE, "s")  # the same sections
    with pytest.raises(ChecksumError):
        check_header(HEADER, head, other, IDENTITY, "s")
    for identity in ((2, 2, 3), (1, 1, 3), (1, 2, 4)):
        with pytest.raises(ChecksumError):
            check_header(HEADER, head, SCHEMA, identity, "s")


def test_flags() -> None:
    head = decode()

    def checked(header: bytes) -> None:
        check_header(header, replace(head, header_digest=hashlib.sha256(header).digest()), SCHEMA, IDENTITY, "s")

    checked(HEADER[:16] + b"\1\0\0\x80" + HEADER[20:])  # optional flags are passed over
    with pytest.raises(UnsupportedVersionError, match="0x80000000"):
        checked(HEADER[:12] + b"\0\0\0\x80" + HEADER[16:])
    with pytest.raises(UnsupportedVersionError, match="draft 2"):
        checked(HEADER[:8] + b"\2\0\0\0" + HEADER[12:])
    for place in (32, 36, 40, 72, 4095):  # checksum kind, zero, schema digest, zeros
        with pytest.raises(ChecksumError):
            checked(HEADER[:place] + b"\7" + HEADER[place + 1 :])


def test_ends_that_are_no_footer() -> None:
    for end in (b"", TAIL[-127:], bytes(128), TAIL[:-1], TAIL + b"\0"):
        with pytest.raises(FormatError):
            tail_bytes(end, "s")
    with pytest.raises(UnsupportedVersionError, match="draft 3"):
        tail_bytes(TAIL[:-120] + b"\3\0\0\0" + TAIL[-116:], "s")
    with pytest.raises(FormatError, match="4294967295 sections"):
        tail_bytes(TAIL[:-116] + b"\xff\xff\xff\xff" + TAIL[-112:], "s")


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    kinds = st.sampled_from(["str", "png", "int8", "uint8[511]", "uint8[512]", "float64[700]", "bfloat16[3]?", "json?"])
    return parse_schema({str(n): kind for n, kind in enumerate(draw(st.lists(kinds, min_size=1, max_size=12)))})


@given(schemas(), st.integers(1, 10**6), st.integers(0, 10**9))
def test_sections_tile_the_file(schema: Schema, samples: int, heap: int) -> None:
    sections = plan_sections(schema, samples, heap)
    stop = 4096
    for section in sections:
        alignment = layout.SECTION_ALIGNMENTS[section.kind]
        assert section.start % alignment == 0 and 0 <= section.start - stop < alignment
        stop = section.stop
    tail = encode_tail(sections, samples, HEADER)
    size = layout.align(stop, 64) + len(tail)
    assert size == shard_bytes(schema, samples, heap)
    digest = hashlib.sha256(tail).digest()
    assert decode_head(tail, digest, schema, samples, size, "s").sections == tuple(sections)
    assert tail_bytes(tail, "s") == len(tail)
