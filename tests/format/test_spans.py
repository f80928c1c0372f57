"""In which of many spans numbers lie: as a binary search finds it, before and after a table is made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.format.spans import Spans

SIZES = st.lists(st.integers(0, 40) | st.integers(0, 3) | st.just(10_000), min_size=1, max_size=60).filter(any)


@given(sizes=SIZES, seed=st.integers(0, 99), scale=st.sampled_from([1, 1, 1 << 20]))
def test_numbers_are_found_as_by_a_search(sizes: list[int], seed: int, scale: int) -> None:
    """Among spans of any sizes, empty ones and very unlike ones among them."""
    edges = np.cumsum([0, *sizes], dtype=np.int64) * scale
    inside = np.random.default_rng(seed).integers(0, edges[-1], 300)
    numbers = np.concatenate([inside, edges[:-1], edges[1:] - 1, [0, edges[-1] - 1]])
    numbers = numbers[(numbers >= 0) & (numbers < edges[-1])]
    wanted, kept = np.searchsorted(edges, numbers, side="right") - 1, numbers.tolist()
    spans = Spans(edges)
    for _ in range(3):
        found = spans.of(numbers)
        assert found.dtype == np.int64 and found.tolist() == wanted.tolist()
    assert spans.of(numbers[:0]).tolist() == []
    assert numbers.tolist() == kept


@pytest.mark.parametrize(("sizes", "is_made"), [([1000] * 50, True), ([1] * 50 + [1_000_000], False)])
def test_a_table_is_made_once_it_is_worth_it(sizes: list[int], is_made: bool) -> None:
    """And only for spans that are about alike."""
    edges = np.cumsum([0, *sizes], dtype=np.int64)
    spans = Spans(edges)
    numbers = np.arange(100, dtype=np.int64)
    spans.of(numbers)
    assert spans._begins is None
    for _ in range(5):
        spans.of(numbers)
    assert (spans._begins is not None) == is_made
