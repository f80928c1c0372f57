from __future__ import annotations

import contextlib
import hashlib
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import ChecksumError, FormatError, UnsupportedVersionError
from shardload.format import layout
from shardload.format.schema import Schema, parse_schema
from shardload.format.shard import (
    Contents,
    Expected,
    Section,
    ShardHead,
    check_header,
    contents_of,
    decode_head,
    encode_header,
    encode_tail,
    plan_sections,
    shard_bytes,
    tail_bytes,
)

SCHEMA = parse_schema(
    {"text": "str", "wide": "uint8[1000]", "x": "int64", "more": "float32[128]?", "tokens": "uint16[*]"}, key="x"
)
IDENTITY = (1, 2, 3)
SAMPLES = 10
DICTIONARY = "ab" * 32
CONTENTS = Contents(SAMPLES, 100, (3000,), 50, 70)
HEADER = encode_header(SCHEMA, *IDENTITY)


def with_dictionary(sections: list[Section]) -> list[Section]:
    digest = bytes.fromhex(DICTIONARY)
    return [replace(s, digest=digest) if s.kind == layout.SECTION_DICTIONARY else s for s in sections]


SECTIONS = with_dictionary(plan_sections(SCHEMA, CONTENTS))
TAIL = encode_tail(SECTIONS, SAMPLES, HEADER, last=False)
SIZE = shard_bytes(SCHEMA, CONTENTS)
EXPECTED = Expected(SCHEMA, SAMPLES, SIZE, hashlib.sha256(TAIL).digest(), (3000,), DICTIONARY)


def decode(tail: bytes = TAIL, **facts: Any) -> ShardHead:
    """Decodes a tail under its own digest, unless told otherwise."""
    return decode_head(tail, replace(EXPECTED, **{"head_digest": hashlib.sha256(tail).digest()} | facts), "s")


def test_golden_header() -> None:
    golden = "89534852440d0a1a0200000000000000000000000100000002000000030000000100000000000000"
    text = (
        '[{"codec":"none","name":"text","type":"str"},{"codec":"none","name":"wide","type":"uint8[1000]"},'
        '{"codec":"none","name":"x","type":"int64"},{"codec":"none","name":"more","type":"float32[128]?"},'
        '{"codec":"none","name":"tokens","type":"uint16[*]"}]'
    )
    assert (bytes.fromhex(golden) + hashlib.sha256(text.encode()).digest()).ljust(4096, b"\0") == HEADER


def test_golden_tail() -> None:
    # place 8, start 8, x 8, stored 4, raw 4, two sums 4 each, count 4, validity 1: 45 bytes, so a row has 48
    golden = "".join(
        struct.pack("<IIQQQ32s", *entry, bytes.fromhex(DICTIONARY) if entry[0] == 6 else bytes(32)).hex()
        for entry in (
            (1, 0xFFFFFFFF, 4096, 100, 0),
            (2, 1, 8192, 10_000, 1000),
            (2, 3, 20_480, 5120, 512),
            (5, 4, 28_672, 6000, 2),
            (3, 0xFFFFFFFF, 36_864, 480, 48),
            (4, 0xFFFFFFFF, 37_376, 32, 32),
            (10, 4, 37_440, 8, 4),
            (6, 0xFFFFFFFF, 37_504, 50, 0),
            (7, 2, 37_568, 200, 20),
            (8, 0xFFFFFFFF, 37_824, 320, 64),
            (11, 0xFFFFFFFF, 38_144, 70, 0),
        )
    )
    size = 38_272 + 11 * 64 + 128
    golden += b"SHRDFOOT".hex() + "020000000b0000000a00000000000000" + size.to_bytes(8, "little").hex()
    golden += hashlib.sha256(HEADER).hexdigest() + "00" * 56 + b"SHRDFOOT".hex()
    assert TAIL.hex() == golden
    assert size == SIZE
    assert tail_bytes(TAIL, "s") == tail_bytes(bytes(999) + TAIL, "s") == len(TAIL)
    last = encode_tail(SECTIONS, SAMPLES, HEADER, last=True)
    assert last == TAIL[:-64] + b"\1" + TAIL[-63:]


def test_decodes() -> None:
    head = decode_head(TAIL, EXPECTED, "s")
    assert head == ShardHead(SAMPLES, hashlib.sha256(HEADER).digest(), tuple(SECTIONS), False)
    assert decode(encode_tail(SECTIONS, SAMPLES, HEADER, last=True)).last
    assert head.section(layout.SECTION_WIDE, 3).stop == 25_600
    assert contents_of(SECTIONS, SCHEMA, SAMPLES) == CONTENTS
    check_header(HEADER, head, SCHEMA, IDENTITY, "s")


def test_every_changed_byte_of_the_tail_is_refused() -> None:
    for place in range(len(TAIL)):
        tail = TAIL[:place] + bytes([TAIL[place] ^ 16]) + TAIL[place + 1 :]
        with pytest.raises(ChecksumError):
            decode_head(tail, EXPECTED, "s")


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
    footer, free = len(TAIL) - 128, set()
    for number, section in enumerate(SECTIONS):
        if section.kind in layout.DIGESTED_SECTIONS - {layout.SECTION_DICTIONARY}:  # compared with the sections later
            free |= set(range(64 * number + 32, 64 * number + 64))
        # Another length within the padding behind it moves nothing; the sections themselves have digests.
        if section.kind in (layout.SECTION_HEAP, layout.SECTION_DICTIONARY, layout.SECTION_DESCRIPTION):
            free |= {64 * number + 16, 64 * number + 17}
    free |= set(range(footer + 32, footer + 64))  # compared with the header later
    for place in range(len(TAIL)):
        for change in (1, 16, 128):
            tail = TAIL[:place] + bytes([TAIL[place] ^ change]) + TAIL[place + 1 :]
            if place in free or (place == footer + 64 and change == 1):
                with contextlib.suppress(FormatError):
                    assert decode(tail) != decode()
                continue
            with pytest.raises(FormatError):
                decode(tail)


def test_what_the_table_says_is_compared() -> None:
    for facts in (
        {"num_samples": SAMPLES + 1},
        {"num_samples": 0},
        {"num_samples": 1 << 32},
        {"num_bytes": SIZE + 64},
        {"num_items": (2999,)},
        {"num_items": (3001,)},
        {"num_items": ()},
        {"num_items": (3000, 0)},
        {"dictionary": "ab" * 31 + "ac"},
        {"dictionary": ""},
    ):
        with pytest.raises(FormatError):
            decode(**facts)
    plain = replace(CONTENTS, dictionary_bytes=0)
    tail = encode_tail(plan_sections(SCHEMA, plain), SAMPLES, HEADER, last=False)
    assert decode(tail, num_bytes=shard_bytes(SCHEMA, plain), dictionary="")
    with pytest.raises(FormatError, match="dictionary"):
        decode(tail, num_bytes=shard_bytes(SCHEMA, plain))


@pytest.mark.parametrize(("name", "told"), [("dictionary_bytes", "dictionary"), ("description_bytes", "description")])
def test_limits_of_small_sections(name: str, told: str) -> None:
    for size, good in ((1 << 20, True), ((1 << 20) + 1, False)):
        contents = replace(CONTENTS, **{name: size})
        tail = encode_tail(with_dictionary(plan_sections(SCHEMA, contents)), SAMPLES, HEADER, last=True)
        if good:
            decode(tail, num_bytes=shard_bytes(SCHEMA, contents))
        else:
            with pytest.raises(FormatError, match=told):
                decode(tail, num_bytes=shard_bytes(SCHEMA, contents))


def test_sealed_nonsense() -> None:
    def sealed(*sections: Section) -> bytes:
        return encode_tail(sections, SAMPLES, HEADER, last=False)

    huge = (1 << 64) - 1
    for tail in (
        TAIL[-128:],
        TAIL[:-128],
        b"",
        TAIL[1:],
        bytes(64) + TAIL,
        sealed(*SECTIONS, SECTIONS[-1]),
        sealed(SECTIONS[1], SECTIONS[0], *SECTIONS[2:]),
        sealed(replace(SECTIONS[0], num_bytes=8192), *SECTIONS[1:]),
        sealed(replace(SECTIONS[0], kind=9), *SECTIONS[1:]),
        *(sealed(*SECTIONS[:n], *SECTIONS[n + 1 :]) for n in range(len(SECTIONS))),
        *(sealed(*SECTIONS[:n], replace(s, digest=b"x" * 32), *SECTIONS[n + 1 :]) for n, s in enumerate(SECTIONS)
          if s.kind not in layout.DIGESTED_SECTIONS or s.kind == layout.SECTION_DICTIONARY),
    ):  # fmt: skip
        with pytest.raises(FormatError):
            decode(tail)
    other = TAIL[:-104] + struct.pack("<Q", SIZE + 64) + TAIL[-96:]  # footer and table agree, the sections do not
    with pytest.raises(FormatError):
        decode(other, num_bytes=SIZE + 64)
    entry = struct.pack("<IIQQQ32s", 1, 0xFFFFFFFF, 4096, huge, 0, bytes(32))
    with pytest.raises(FormatError):
        decode(entry + TAIL[64:])


def test_another_schema_or_shard() -> None:
    types = SCHEMA.types
    types["y"] = types.pop("x")
    types = {name: types[name] for name in ("text", "wide", "y", "more", "tokens")}
    other = parse_schema(types, key="y")
    head = decode(schema=other)  # the same sections
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
    with pytest.raises(UnsupportedVersionError, match="draft 1"):
        checked(HEADER[:8] + b"\1\0\0\0" + HEADER[12:])
    for place in (32, 36, 40, 72, 4095):  # checksum kind, zero, schema digest, zeros
        with pytest.raises(ChecksumError):
            checked(HEADER[:place] + b"\7" + HEADER[place + 1 :])


def test_ends_that_are_no_footer() -> None:
    for end in (b"", TAIL[-127:], bytes(128), TAIL[:-1], TAIL + b"\0"):
        with pytest.raises(FormatError):
            tail_bytes(end, "s")
    with pytest.raises(UnsupportedVersionError, match=r"later version of the format \(its number is 3,"):
        tail_bytes(TAIL[:-120] + b"\3\0\0\0" + TAIL[-116:], "s")
    with pytest.raises(FormatError, match="4294967295 sections"):
        tail_bytes(TAIL[:-116] + b"\xff\xff\xff\xff" + TAIL[-112:], "s")


KINDS = ["str", "png", "int8", "uint8[511]", "uint8[512]", "float64[700]", "bfloat16[3]?", "json?", "uint16[*]", "float32[*,80]?",
         "str[*]", "bytes[*]?"]  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> tuple[Schema, Contents]:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12))
    types: dict[str, Any] = {str(n): kind for n, kind in enumerate(kinds)}
    key = draw(st.sampled_from(["", *(name for name, kind in types.items() if kind in ("str", "int8"))]))
    for name, kind in types.items():
        if "*" in kind and draw(st.booleans()):
            types[name] = {"type": kind, "compression": "zstd"}
    schema = parse_schema(types, "zstd", key)
    items = tuple(draw(st.integers(0, 10**9)) for _ in schema.stream_fields)
    heap = draw(st.integers(0, 10**9)) if schema.record_fields else 0
    return schema, Contents(
        *(draw(st.integers(1, 10**6)), heap, items, draw(st.integers(0, 1 << 20)), draw(st.integers(1, 1 << 20))),
        draw(st.integers(0, 1 << 20)) if heap else 0,
    )


ORDER = [1, 2, 5, 3, 4, 10, 6, 7, 8, 9, 11]


@given(cases())
def test_sections_tile_the_file(case: tuple[Schema, Contents]) -> None:
    schema, contents = case
    sections = with_dictionary(plan_sections(schema, contents))
    stop = 4096
    for section in sections:
        alignment = 4096 if section.kind in (1, 2, 3, 5) else 64
        assert section.start % alignment == 0 and 0 <= section.start - stop < alignment
        stop = section.stop
    order = [(ORDER.index(section.kind), section.field) for section in sections]
    assert order == sorted(set(order))
    kinds = [section.kind for section in sections]
    assert kinds.count(2) == len(schema.wide_fields)
    assert [s.field for s in sections if s.kind == 5] == [s.field for s in sections if s.kind == 10]
    assert kinds.count(5) == len(schema.stream_fields)
    assert {kind: kinds.count(kind) for kind in (1, 6, 7)} == {
        1: bool(schema.record_fields), 6: contents.dictionary_bytes > 0, 7: bool(schema.key)
    }  # fmt: skip
    assert kinds.count(3) == kinds.count(4) == kinds.count(8) == kinds.count(11) == 1
    tail = encode_tail(sections, contents.num_samples, HEADER, last=True)
    size = layout.align(stop, 64) + len(tail)
    assert size == shard_bytes(schema, contents)
    dictionary = DICTIONARY if contents.dictionary_bytes else ""
    digest = hashlib.sha256(tail).digest()
    external = contents.external_bytes > 0
    assert (9 in kinds) == external
    expected = Expected(schema, contents.num_samples, size, digest, contents.num_items, dictionary, external)
    assert decode_head(tail, expected, "s").sections == tuple(sections)
    if external:
        with pytest.raises(FormatError, match="names external files, which its dataset cannot have"):
            decode_head(tail, replace(expected, external=False), "s")
    assert tail_bytes(tail, "s") == len(tail)
