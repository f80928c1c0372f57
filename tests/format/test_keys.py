from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import FormatError
from shardload.format.keys import KEY_ENTRY, decode_keys, encode_keys, find_keys, key_bytes, key_digest
from shardload.format.schema import parse_field

DIGESTS = st.binary(min_size=16, max_size=16)
# Digests that share their first half, or sort otherwise as little-endian numbers.
CLOSE = st.tuples(
    st.sampled_from([bytes(8), b"\0" * 7 + b"\1", b"\1" + b"\0" * 7, b"\xff" * 8]), st.binary(min_size=8, max_size=8)
)
SETS = st.lists(st.one_of(DIGESTS, CLOSE.map(b"".join)), unique=True, max_size=30)


@given(SETS, st.lists(DIGESTS, max_size=3))
def test_every_key_is_found_as_in_a_dict(digests: list[bytes], others: list[bytes]) -> None:
    data = encode_keys(digests)
    assert data == b"".join(d + struct.pack("<I", i) for d, i in sorted((d, i) for i, d in enumerate(digests)))
    entries = decode_keys(data)
    known = {digest: number for number, digest in enumerate(digests)}
    wanted = [*digests[::-1], *others, *digests[:2]]
    near = [digest[:15] + bytes([digest[15] ^ 1]) for digest in digests]
    for asked in (wanted, near, []):
        assert find_keys(entries, asked).tolist() == [known.get(digest, -1) for digest in asked]


def test_what_is_hashed() -> None:
    assert key_digest(b"abc") == hashlib.sha256(b"abc").digest()[:16]
    assert key_bytes(parse_field("x", "str"), "é") == "é".encode()
    for data in (b"a\0", bytearray(b"a\0"), memoryview(b"a\0")):
        assert key_bytes(parse_field("x", "bytes"), data) == b"a\0"
    for kind, number, stored in (
        ("int64", -2, b"\xfe" + b"\xff" * 7), ("uint8", 255, b"\xff"), ("int16", np.int64(258), b"\2\1"),
        ("uint64", (1 << 64) - 1, b"\xff" * 8),
    ):  # fmt: skip
        assert key_bytes(parse_field("x", kind), number) == stored
    for kind, wrong in (
        ("str", b"a"), ("str", 1), ("bytes", "a"), ("uint8", 256), ("uint8", -1), ("int8", 128), ("int64", True),
        ("int64", 1.0), ("int64", "1"), ("int64", None), ("int64", 1 << 64),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="is no key: field 'name' is"):
            key_bytes(parse_field("name", kind), wrong)


def test_sections_that_cannot_be() -> None:
    entries = np.frombuffer(encode_keys([key_digest(bytes([n])) for n in range(5)]), KEY_ENTRY)
    decode_keys(entries.tobytes())
    swapped, twice, outside, same = (entries.copy() for _ in range(4))
    swapped[[1, 2]] = swapped[[2, 1]]
    twice["local_id"][0] = twice["local_id"][1]
    outside["local_id"][3] = 5
    for column in ("high", "low"):
        same[column][1] = same[column][0]
    lower = entries.copy()
    lower["high"] = 7
    lower["low"] = [1, 2, 4, 3, 5]
    for wrong in (swapped, twice, outside, same, lower, entries[1:]):
        with pytest.raises(FormatError, match="not sorted, or do not name each sample once"):
            decode_keys(wrong.tobytes())
