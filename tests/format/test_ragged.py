from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import FormatError
from shardload.format.ragged import decode_list, encode_list, join_ragged
from shardload.format.schema import parse_field

LISTS = st.lists(st.binary(max_size=9), max_size=9)


@given(LISTS)
def test_lists(items: list[bytes]) -> None:
    data = encode_list(items)
    lengths = [len(item) for item in items]
    assert data == struct.pack(f"<{len(items) + 1}I", len(items), *lengths) + b"".join(items)
    assert decode_list(data) == items


@given(LISTS, st.integers(0, 99), st.integers(0, 255))
def test_any_list_is_decoded_or_refused(items: list[bytes], at: int, byte: int) -> None:
    data = bytearray(encode_list(items))
    data[at % len(data)] = byte
    for wrong in (bytes(data), encode_list(items) + b"\0", encode_list(items)[:-1], bytes(at % 4)):
        try:
            decoded = decode_list(wrong)
        except ValueError:
            continue
        assert encode_list(decoded) == wrong


@pytest.mark.parametrize("data", [b"", b"\0" * 3, b"\xff" * 4, b"\xff" * 400, struct.pack("<3I", 1, 9, 0)])
def test_lists_that_cannot_be(data: bytes) -> None:
    with pytest.raises(ValueError, match="list"):
        decode_list(data)


@given(st.lists(st.integers(0, 5), max_size=9))
def test_joins(counts: list[int]) -> None:
    field = parse_field("x", "int16[*,3]")
    arrays = [np.arange(count * 3, dtype="<i2").reshape(count, 3) for count in counts]
    joined = join_ragged(field, [array.tobytes() for array in arrays])
    assert len(joined) == len(counts) and joined.values.shape == (sum(counts), 3)
    for slot, array in enumerate(arrays):
        assert joined[slot].tolist() == array.tolist() and joined[slot].flags.writeable


def test_half_an_item_names_the_value() -> None:
    field = parse_field("name", "int16[*,3]")
    with pytest.raises(FormatError, match=r"'name': 7 bytes are no whole number of items of int16.*") as caught:
        join_ragged(field, [bytes(6), b"", bytes(7), bytes(5)])
    assert caught.value.sample_id == 2
