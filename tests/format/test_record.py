from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import FormatError
from shardload.format.record import RecordPlaces, record_layout, record_lengths, record_places
from shardload.format.rows import row_layout
from shardload.format.schema import parse_schema

SCHEMA = parse_schema({"a": "str", "x": "int8", "b": "png", "c": "json", "d": "video"}, "zstd")
LAYOUT = record_layout(SCHEMA)
HEADER = 4 + 4 * 4


def rows(*columns: tuple[int, int, int]) -> Any:
    table = np.zeros(len(columns), row_layout(SCHEMA).dtype)
    for row, (place, stored, raw) in zip(table, columns, strict=True):
        row["_place"], row["_stored"], row["_raw"] = place, stored, raw
    return table


def record(*lengths: int, body: int, header: int = 4) -> memoryview:
    return memoryview(
        bytes(4) + np.array(lengths, "<u4").tobytes()[: 4 * header] + bytes(range(256)) * (body // 256 + 1)
    )[: HEADER + body]


def test_layout() -> None:
    assert LAYOUT.header.size == HEADER
    assert [field.name for field in LAYOUT.fields] == ["a", "b", "c", "d"]
    assert (LAYOUT.plain, LAYOUT.packed, LAYOUT.order) == ((1, 3), (0, 2), (1, 3, 0, 2))
    assert record_layout(parse_schema({"a": "str"})).packed == ()


def test_places() -> None:
    table = rows((4096, 100, 100), (4208 | 1 << 48, 52, 1 << 31), (8192, 4096, 4096))
    places = record_places(table, 4096, 12_288, HEADER)
    assert places.start.tolist() == [4096, 4208, 8192] and places.stored.tolist() == [100, 52, 4096]
    assert places.raw.tolist() == [100, 1 << 31, 4096] and places.framed.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("place", "stored", "raw"),
    [
        (4080, 100, 100),  # before the heap
        (0, 100, 100),
        (12_208, 100, 100),  # over its end
        (12_288, 100, 100),
        ((1 << 48) - 16, 100, 100),
        (4096, 0xFFFFFFFF, 0xFFFFFFFF),
        (4097, 100, 100),  # not on 16
        (4096, HEADER - 1, HEADER),  # shorter than its header
        (4096, 0, 0),
        (4096, 100, 99),  # stored longer than raw
        (4096 | 2 << 48, 100, 100),  # unknown flags
        (4096 | 0x8000 << 48, 100, 100),
        (4096 | 3 << 48, 100, 100),
    ],
)
def test_places_that_cannot_be(place: int, stored: int, raw: int) -> None:
    table = rows((4096, 100, 100), (place, stored, raw), (4096, 100, 100))
    with pytest.raises(FormatError, match="no record in the heap"):
        record_places(table, 4096, 12_288, HEADER)


def lengths_of(record: memoryview, raw: int, framed: bool) -> tuple[list[int], int]:
    """Returns what the header of one record says, and the bytes of its packed fields."""
    start, stored = np.zeros(1, np.int64), np.array([len(record)])
    places = RecordPlaces(start, stored, np.array([raw]), np.array([framed]))
    headers = np.frombuffer(record[:HEADER], "<u4").reshape(1, -1)
    lengths, packed = record_lengths(headers, LAYOUT, places)
    return lengths[0].tolist(), int(packed[0])


def test_lengths() -> None:
    assert lengths_of(record(3, 5, 2, 7, body=17), HEADER + 17, framed=False) == ([3, 5, 2, 7], 5)
    assert lengths_of(record(300, 5, 2, 7, body=20), HEADER + 314, framed=True) == ([300, 5, 2, 7], 302)
    assert lengths_of(record(0, 0, 0, 0, body=0), HEADER, framed=False) == ([0] * 4, 0)


def test_the_first_of_many_records_that_cannot_be_is_named() -> None:
    headers = np.array([[0, 3, 5, 2, 7], [0, 3, 5, 2, 8], [0, 9, 9, 9, 9]], "<u4")
    size = np.full(3, HEADER + 17)
    with pytest.raises(FormatError) as caught:
        record_lengths(headers, LAYOUT, RecordPlaces(size * 0, size, size, np.zeros(3, np.bool_)))
    assert caught.value.sample_id == 1


@pytest.mark.parametrize(
    ("lengths", "body", "raw", "framed"),
    [
        ((3, 5, 2, 7), 17, HEADER + 16, False),  # raw length is another
        ((3, 5, 2, 8), 17, HEADER + 17, False),
        ((3, 5, 2, 7), 16, HEADER + 17, False),  # cut
        ((3, 5, 2, 7), 18, HEADER + 17, False),  # longer
        ((3, 50, 2, 7), 17, HEADER + 62, False),  # plain fields over the end
        ((3, 50, 2, 7), 17, HEADER + 62, True),
        ((3, 5, 2, 7), 12, HEADER + 17, True),  # no frame
        ((3, 5, 2, 7), 17, HEADER + 17, True),  # a frame no smaller than what is in it
        ((0, 5, 0, 7), 12, HEADER + 12, True),
        ((0xFFFFFFFF,) * 4, 17, HEADER + 17, False),
        ((0xFFFFFFFF,) * 4, 17, HEADER + 4 * 0xFFFFFFFF, True),
    ],
)
def test_lengths_that_cannot_be(lengths: tuple[int, ...], body: int, raw: int, framed: bool) -> None:
    with pytest.raises(FormatError):
        lengths_of(record(*lengths, body=body), raw, framed)


@given(st.binary(min_size=HEADER, max_size=200), st.integers(0, 1 << 32), st.booleans())
def test_any_record_is_taken_or_refused(data: bytes, raw: int, framed: bool) -> None:
    try:
        lengths, packed_bytes = lengths_of(memoryview(data), raw, framed)
    except FormatError:
        return
    assert sum(lengths) == raw - HEADER and packed_bytes == lengths[0] + lengths[2]
    stored = len(data) - HEADER - lengths[1] - lengths[3]
    assert 0 < stored < packed_bytes if framed else stored == packed_bytes
