from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.errors import FormatError
from shardload.format.external import (
    ExternalFile,
    ExternalPlaces,
    decode_external,
    encode_external,
    encode_places,
    external_places,
    name_fault,
)
from shardload.format.record import record_layout
from shardload.format.schema import parse_schema

# Plain fields a and c, then the packed b, as their bytes would stand in a record.
LAYOUT = record_layout(parse_schema({"a": "jpeg", "b": "str", "c": "png"}, "zstd"))
HERE = (1 << 64) - 1
GOLDEN = (
    b'[{"name":"train 0.tar","num_bytes":10240,"sha256":"%s"},{"name":"\xc3\xa4.tar","num_bytes":1,"sha256":"%s"}]'
    % (b"ab" * 32, b"00" * 32)
)


def test_golden_list() -> None:
    files = [ExternalFile("train 0.tar", 10_240, "ab" * 32), ExternalFile("ä.tar", 1, "00" * 32)]
    assert encode_external(files) == GOLDEN and decode_external(GOLDEN) == files


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'[{"name":"train', b'[ {"name":"train'),
        (b"train 0.tar", b"\\u00e4.tar"),
        (b"10240", b"0"),
        (b"10240", b"-1"),
        (b"10240", b"281474976710656"),
        (b"10240", b'"10240"'),
        (b"ab" * 32, b"AB" * 32),
        (b"ab" * 32, b"ab" * 31),
        (b"train 0.tar", "ä.tar".encode()),
        (b"train 0.tar", b"../0.tar"),
        (b'"num_bytes":1,', b'"bytes":1,'),
        (GOLDEN, b"[]"),
        (GOLDEN, b""),
        (GOLDEN, b"{}"),
        (GOLDEN, b"[" * 100_000),
    ],
)
def test_lists_that_are_none(old: bytes, new: bytes) -> None:
    assert GOLDEN.count(old) == 1
    with pytest.raises(FormatError):
        decode_external(GOLDEN.replace(old, new))


@pytest.mark.parametrize("name", ["a.tar", "a b.tar", "ä", "...", "-", "a:b", "1:b", "manifest.json", "x" * 255])
def test_names(name: str) -> None:
    assert bool(name_fault(name)) == (name == "a:b")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\\b", "C:a", "https:x", "x" * 256, "ä" * 128, "a\0", "\x85"]
)
def test_names_that_cannot_be(name: str) -> None:
    assert name_fault(name)
    with pytest.raises(FormatError):
        decode_external(json.dumps([{"name": name, "num_bytes": 1, "sha256": "00" * 32}]).encode())
    assert name_fault("\udc80") == "it is not UTF-8"


@st.composite
def records(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """The number of a file, and length and place of each field."""
    lengths = [draw(st.sampled_from([0, 1, 5, 300])) for _ in range(3)]
    places = [draw(st.sampled_from([HERE, 0, 512, (1 << 48) - 1])) if n else HERE for n in lengths]
    return draw(st.integers(0, (1 << 32) - 1)), lengths, places


def heads(found: list[tuple[int, list[int], list[int]]]) -> np.ndarray:
    data = [struct.pack("<IIII", 9, *lengths) + encode_places(file, places) for file, lengths, places in found]
    return np.frombuffer(b"".join(data), np.uint8).reshape(len(found), -1)


def sizes(lengths: list[int], places: list[int]) -> tuple[int, int]:
    """Bytes in the heap, and of all fields with the header."""
    return 44 + sum(n for n, place in zip(lengths, places) if place == HERE), 16 + sum(lengths)


def read(found: list[tuple[int, list[int], list[int]]], shift: tuple[int, int] = (0, 0)) -> ExternalPlaces:
    stored, raw = np.array([sizes(*one[1:]) for one in found]).T + np.array(shift)[:, None]
    return external_places(heads(found), LAYOUT, stored, raw)


@given(st.lists(records().filter(lambda one: any(place != HERE for place in one[2])), min_size=1, max_size=4))
def test_places(found: list[tuple[int, list[int], list[int]]]) -> None:
    places = read(found)
    assert places.files.tolist() == [file for file, _, _ in found]
    for i, (_, lengths, expected) in enumerate(found):
        here = 44
        for n in (0, 2, 1):
            stands_here = expected[n] == HERE
            assert places.outside[i, n] == (not stands_here) and places.lengths[i, n] == lengths[n]
            assert places.starts[i, n] == (here if stands_here else expected[n])
            here += lengths[n] * stands_here
    for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        with pytest.raises(FormatError) as caught:
            read(found, shift)
        assert caught.value.sample_id == 0


@pytest.mark.parametrize(
    ("lengths", "places"),
    [
        ([1, 1, 1], [HERE] * 3),  # nothing lies in the file
        ([0, 5, 5], [7, 100, 200]),  # an empty field does
        ([5, 5, 5], [1 << 48, 0, 100]),  # further away than any file is long
        ([5, 5, 5], [HERE - 1, 0, 100]),
        ([0xFFFFFFFF] * 3, [HERE - 1] * 3),
    ],
)
def test_places_that_cannot_be(lengths: list[int], places: list[int]) -> None:
    sound = (0, [5, 5, 5], [0, 10, 20])
    with pytest.raises(FormatError, match="do not fit an external record") as caught:
        read([sound, (0, lengths, places)])
    assert caught.value.sample_id == 1


@given(st.binary(min_size=44, max_size=44), st.integers(0, 1 << 33), st.integers(0, 1 << 33))
def test_any_record_is_taken_or_refused(data: bytes, stored: int, raw: int) -> None:
    array = np.frombuffer(data, np.uint8).reshape(1, -1)
    try:
        places = external_places(array, LAYOUT, np.array([stored]), np.array([raw]))
    except FormatError:
        return
    assert places.outside.any() and (places.starts >= 0).all()
