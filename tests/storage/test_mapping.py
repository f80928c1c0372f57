"""What is announced of mapped files: all pages of the ranges and no others, in few pieces that the kernel takes whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardload.storage.mapping import _MAX_AHEAD_BYTES, _PAGE_BYTES, _ahead


def pages_of(starts: list[int], lengths: list[int]) -> set[int]:
    return {
        page
        for start, length in zip(starts, lengths, strict=True)
        for page in range(start // _PAGE_BYTES, -(-(start + length) // _PAGE_BYTES))
    }


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
