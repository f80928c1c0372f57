"""What is announced of mapped files: all pages of the ranges and no others, in few pieces that the kernel takes whole; gathers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardload.storage import MappedFiles, mapping
from shardload.storage.mapping import _MAX_AHEAD_BYTES, _PAGE_BYTES, _ahead


def pages_of(starts: list[int], lengths: list[int]) -> set[int]:
    return {
        page
        for start, length in zip(starts, lengths, strict=True)
        for page in range(start // _PAGE_BYTES, -(-(start + length) // _PAGE_BYTES))
    }


SIZES = st.lists(st.one_of(st.integers(1, 9_000), st.integers(1, 9 << 20)), max_size=6)


@given(SIZES, SIZES)
@example([(5 << 20) + 1, 3 << 20], [(5 << 20) + 1, 3 << 20])
def test_files_start_on_large_pages_where_they_are_long(first: list[int], later: list[int]) -> None:
    """Also those that are added; no two share a page, and what is reserved for the later ones is enough for them."""
    large = 2 << 20
    mapped = MappedFiles(np.array(first, dtype=np.int64), 2 * sum(later) + 2 * large)
    mapped.add(np.array(later, dtype=np.int64))
    addresses, sizes = mapped.addresses.tolist(), first + later
    ends = [address + size for address, size in zip(addresses, sizes, strict=True)]
    assert all(start >= end for start, end in zip(addresses[1:], ends, strict=False))
    for group, some in ((first, addresses[: len(first)]), (later, addresses[len(first) :])):
        unit = large if sum(group) >= large * len(group) else _PAGE_BYTES
        assert not [address for address in some if address % unit]
    # A dataset of many small shards is not spread over more addresses than it has bytes for.
    assert not sizes or ends[-1] - addresses[0] <= 2 * (sum(sizes) + large) + _PAGE_BYTES * len(sizes)


RANGES = st.lists(st.tuples(st.integers(0, 1 << 22), st.integers(1, 40_000)), max_size=30)
GAPS = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 5000]), st.integers(1, 400_000)), max_size=30)


@given(st.one_of(RANGES, GAPS.map(lambda gaps: [(gap, size) for gap, size in gaps])), st.booleans())
def test_all_pages_of_ranges_and_no_others_are_announced(pairs, follow):
    starts, lengths, end = [], [], 12_345
    for start, length in pairs:
        # Either anywhere, or one after the other with gaps.
        start = end + start if follow else start
        starts.append(start)
        lengths.append(length)
        end = start + length
    found = _ahead(np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64))
    assert pages_of(*(one.tolist() for one in found)) == pages_of(starts, lengths)
    assert not (found[0] % _PAGE_BYTES).any()
    assert (found[1] > 0).all() and (found[1] <= _MAX_AHEAD_BYTES).all()


def test_what_follows_is_announced_as_one():
    starts = np.arange(5, 5 + 1000 * 4096, 4096)
    found = _ahead(starts, np.full(1000, 4096))
    assert len(found[0]) == -(-1001 * 4096 // _MAX_AHEAD_BYTES)
    apart = _ahead(starts * 8, np.full(1000, 4096))
    assert len(apart[0]) == 1000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[MappedFiles, list[bytes]]:
    """Three mapped files, the last one of whole pages, and what is in them."""
    folder, contents = tmp_path_factory.mktemp("mapped"), []
    mapped = MappedFiles(np.array([9_001, 1, 20_480]))
    for number, size in enumerate((9_001, 1, 20_480)):
        contents.append(np.random.default_rng(number).bytes(size))
        path: Path = folder / str(number)
        path.write_bytes(contents[-1])
        with open(path, "rb") as file:
            mapped.map(number, file.fileno())
    return mapped, contents


@given(data=st.data())
def test_ranges_of_one_size_are_gathered_wherever_they_start(files, data):
    """Also those that overlap, and up to the last byte; into one array or several."""
    mapped, contents = files
    size = data.draw(st.one_of(st.integers(1, 20), st.integers(1, 9_001)))
    number = st.sampled_from([i for i, content in enumerate(contents) if len(content) >= size])
    place = number.flatmap(
        lambda i: st.tuples(
            st.just(i), st.one_of(st.integers(0, len(contents[i]) - size), st.just(len(contents[i]) - size))
        )
    )
    parts = data.draw(st.lists(st.lists(place, max_size=6), min_size=1, max_size=3))
    places = [one for part in parts for one in part]
    starts = np.array([mapped.addresses[i] + at for i, at in places], dtype=np.int64)
    targets = [np.zeros(len(part) * size, dtype=np.uint8) for part in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "_PIECE_BYTES", data.draw(st.sampled_from([1, 3 * size, 1 << 17])))
        assert mapped.gather_anywhere(starts, size, targets)
    assert b"".join(map(bytes, targets)) == b"".join(contents[i][at : at + size] for i, at in places)
