from __future__ import annotations

import math
import struct
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.schema import Field, parse_field
from shardload.format.statistics import (
    FieldStatistics,
    decode_statistics,
    encode_statistics,
    of_lengths,
    range_of,
)

FLOATS = [parse_field("x", kind) for kind in ("float16", "float32", "float64", "bfloat16")]
INTEGERS = [parse_field("x", f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
BOUNDS = st.one_of(st.none(), st.tuples(st.integers(-9, 9), st.integers(0, 9)).map(lambda p: (p[0], p[0] + p[1])))


def number_of(field: Field, bits: int) -> int | float:
    """What stored bits mean, one value at a time."""
    if field.kind == "bfloat16":
        return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])
    data = bits.to_bytes(field.dtype.itemsize, "little")
    if field.dtype.kind != "f":
        return int.from_bytes(data, "little", signed=field.dtype.kind == "i")
    return float(struct.unpack({2: "<e", 4: "<f", 8: "<d"}[len(data)], data)[0])


@st.composite
def stored(draw: st.DrawFn) -> tuple[Field, list[int], NDArray[Any]]:
    field = draw(st.sampled_from([*FLOATS, *INTEGERS, parse_field("x", "bool")]))
    size = field.dtype.itemsize
    limit = 1 if field.kind == "bool" else (1 << 8 * size) - 1
    special = {"float16": (0x7E00, 0x8000, 0xFC00), "bfloat16": (0x7FC0, 0x8000, 0xFF80), "float32": (0x7FC00000, 1 << 31),
               "float64": (0x7FF8 << 48, 1 << 63)}.get(field.kind, (0, limit))  # fmt: skip
    bits = draw(st.lists(st.one_of(st.sampled_from(special), st.integers(0, limit)), max_size=9))
    return field, bits, np.frombuffer(b"".join(b.to_bytes(size, "little") for b in bits), field.dtype)


@given(stored())
def test_a_range_is_that_of_the_numbers(case: tuple[Field, list[int], NDArray[Any]]) -> None:
    field, bits, array = case
    numbers = [number_of(field, b) for b in bits]
    sound = [number for number in numbers if number == number]
    got = range_of(field, array)
    assert got.has_nan == (len(sound) < len(numbers))
    assert (got.smallest, got.largest) == (min(sound, default=None), max(sound, default=None))
    for bound in (got.smallest, got.largest):
        assert bound is None or bound != 0 or math.copysign(1, bound) == 1
    assert got == reduce(add, (range_of(field, array[i : i + 1]) for i in range(len(array))), FieldStatistics())
    (again,) = decode_statistics(encode_statistics([field], [got]), [field], 0)
    assert again == got


def test_numbers_at_the_limits() -> None:
    big = parse_field("x", "uint64")
    one = range_of(big, np.array([(1 << 64) - 1, 0], np.uint64))
    assert (one.smallest, one.largest) == (0, (1 << 64) - 1)
    small = parse_field("x", "int64[2]")
    one = range_of(small, np.array([[-(1 << 63), (1 << 63) - 1]]))
    assert (one.smallest, one.largest) == (-(1 << 63), (1 << 63) - 1)
    nan = range_of(parse_field("x", "float32"), np.array([np.nan], np.float32))
    assert nan == FieldStatistics(has_nan=True)
    data = encode_statistics([parse_field("x", "float32")], [nan])
    assert data == bytes(48) + struct.pack("<I", 2) + bytes(12)


def test_golden_bytes() -> None:
    fields = [
        parse_field("a", "int16?"),
        parse_field("b", "bfloat16[*]"),
        parse_field("c", "str?"),
        parse_field("d", "bool"),
    ]
    facts = [
        FieldStatistics(2, 1, 0, 0, 0, -3, 7),
        FieldStatistics(0, 3, 9, 0, 5, -0.5, 2.0, True),
        FieldStatistics(3),
        FieldStatistics(0, 3, 0, 0, 0, 0, 1),
    ]
    data = encode_statistics(fields, facts)
    assert data == b"".join(
        entry + bytes(12)
        for entry in (
            struct.pack("<4QqqI", 2, 0, 0, 0, -3, 7, 1),
            struct.pack("<4QddI", 0, 9, 0, 5, -0.5, 2.0, 3),
            struct.pack("<4QqqI", 3, 0, 0, 0, 0, 0, 0),
            struct.pack("<4QQQI", 0, 0, 0, 0, 0, 1, 1),
        )
    )
    assert decode_statistics(data, fields, 3) == facts


ONE = st.builds(
    lambda missing, lengths, bounds, nan: FieldStatistics(
        missing, len(lengths), sum(lengths), min(lengths, default=0), max(lengths, default=0), *(bounds or (None, None)), nan
    ),
    st.integers(0, 9), st.lists(st.integers(0, 99), max_size=4), BOUNDS, st.booleans(),
)  # fmt: skip


@given(ONE, ONE, ONE)
def test_addition(a: FieldStatistics, b: FieldStatistics, c: FieldStatistics) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + FieldStatistics() == FieldStatistics() + a == a


@given(st.lists(st.lists(st.integers(0, (1 << 32) - 1), max_size=5), max_size=4))
def test_lengths_add_up(parts: list[list[int]]) -> None:
    whole = [length for part in parts for length in part]
    added = reduce(add, (of_lengths(np.array(part, np.uint32), 1) for part in parts), FieldStatistics())
    assert added == of_lengths(np.array(whole, np.uint32), len(parts))
    assert added == FieldStatistics(len(parts), len(whole), sum(whole), min(whole, default=0), max(whole, default=0))


@pytest.mark.parametrize(
    ("kind", "at", "value"),
    [
        ("int8", 0, 4),  # more missing than samples
        ("int8", 7, 255),
        ("str", 16, 9),  # the shortest is longer than the longest
        ("int8", 48, 4),  # unknown flags
        ("int8", 51, 1),
        ("int8", 52, 1),
        ("int8", 63, 1),
        ("str", 48, 1),  # text has no range
        ("str[*]", 48, 2),
    ],
)
def test_entries_that_cannot_be(kind: str, at: int, value: int) -> None:
    field = parse_field("name", kind)
    data = bytearray(encode_statistics([field], [FieldStatistics(0, 3)]))
    assert decode_statistics(bytes(data), [field], 3) == [FieldStatistics(0, 3)]
    data[at] = value
    with pytest.raises(FormatError, match=r"'name'.* 3 samples"):
        decode_statistics(bytes(data), [field], 3)
