"""Where blocks lie in a cache: checked against byte-by-byte references."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from google_crc32c import extend
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.storage.slots import (
    ALL_CELLS,
    BLOCK_BYTES,
    CELL_BYTES,
    COLUMNS,
    ENTRY_BYTES,
    MIN_LIMIT_BYTES,
    ROWS,
    Geometry,
    added_cells,
    blocks_in,
    is_whole,
    key_of,
    places_of,
    runs_of,
    widened,
)

brief = settings(max_examples=50, deadline=None)
RANGES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 40_000)), min_size=1, max_size=8)


@brief
@given(RANGES)
def test_the_cells_of_ranges_are_those_in_which_their_bytes_lie(ranges):
    starts = np.array([start for start, _ in ranges])
    stops = starts + [size for _, size in ranges]
    blocks = blocks_in(starts, stops)
    expected = []
    for owner, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        cells = range(start // CELL_BYTES, (stop - 1) // CELL_BYTES + 1)
        for number in range(start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1):
            mine = [cell - number * 32 for cell in cells if cell // 32 == number]
            expected.append((owner, number, sum(1 << cell for cell in mine)))
    assert list(zip(blocks.owners.tolist(), blocks.numbers.tolist(), blocks.cells.tolist(), strict=True)) == expected


@brief
@given(st.integers(0, 1 << 40), st.integers(1, 1 << 30), st.integers(0, 1 << 30))
def test_a_range_widened_to_cells_covers_it_and_little_more(start, size, more):
    stop = start + size
    low, high = widened(start, stop, stop + more)
    assert low <= start and stop <= high <= stop + more
    assert low % CELL_BYTES == 0 and (high % CELL_BYTES == 0 or high == stop + more)
    assert start - low < CELL_BYTES and high - stop < CELL_BYTES


@brief
@given(st.integers(MIN_LIMIT_BYTES, 1 << 45))
def test_the_files_are_within_the_limit_and_use_nearly_all_of_it(limit):
    geometry = Geometry.within(limit)
    total = geometry.data_bytes + geometry.index_bytes
    assert geometry.num_sets > 0
    assert total <= limit - limit // 100
    assert total > limit * 0.98 - (1 << 17) - ROWS * COLUMNS * (BLOCK_BYTES + ENTRY_BYTES)


@brief
@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=50, unique=True), st.integers(1, 1 << 17))
def test_blocks_of_a_stripe_share_their_sets_and_no_two_blocks_a_tag(numbers, num_sets):
    key, other = key_of(b"a" * 32, 5), key_of(b"a" * 32, 6)
    places = places_of(key, np.array(numbers), num_sets)
    assert (places.sets >= 0).all() and (places.sets < num_sets).all()
    assert places.columns.tolist() == [number % COLUMNS for number in numbers]
    by_stripe: dict[int, set[tuple[int, ...]]] = {}
    for number, pair in zip(numbers, places.sets.tolist(), strict=True):
        by_stripe.setdefault(number // COLUMNS, set()).add(tuple(pair))
    assert all(len(pairs) == 1 for pairs in by_stripe.values())
    same = places_of(np.tile(key, (len(numbers), 1)), np.array(numbers), num_sets)
    assert same.tags.tolist() == places.tags.tolist()
    assert len({*places.tags.tolist(), *places_of(other, np.array(numbers), num_sets).tags.tolist()}) == 2 * len(
        numbers
    )
    assert places.tags.all()
    # By their sums, too, blocks of equal content are told apart.
    assert len(set(places.seeds.tolist())) == len(numbers) and (places.seeds < 1 << 32).all()


def test_sets_are_filled_evenly():
    places = places_of(key_of(b"b" * 32, 5), np.arange(0, 640_000, COLUMNS), 100)
    for choice in (0, 1):
        counts = np.bincount(places.sets[:, choice], minlength=100)
        # 400 in the mean: a binomial count is six deviations from it once in 10^9.
        assert abs(counts - 400).max() < 120
    assert (places.sets[:, 0] == places.sets[:, 1]).mean() < 0.02


CELL_SETS = st.lists(st.integers(0, ALL_CELLS), min_size=1, max_size=5)


@brief
@given(CELL_SETS, st.integers(0, (1 << 32) - 1), st.integers(0, 1 << 30))
def test_the_sum_of_cells_that_came_one_after_the_other_is_that_of_the_block(parts, seed, salt):
    content = np.random.default_rng(salt).integers(0, 256, BLOCK_BYTES, dtype=np.uint8)
    word, there = 0, 0
    for cells in parts:
        word = added_cells(word, seed, cells, masked(content, cells))
        there |= cells
        assert word & ALL_CELLS == there
        assert word >> 32 == int(extend(seed, masked(content, there).tobytes()))
    # What lies in the other cells does not matter, and any bit in these does.
    block = np.where(masked(np.full(BLOCK_BYTES, 255, np.uint8), there) > 0, content, salt % 256).astype(np.uint8)
    assert is_whole(word, seed, block.copy())
    if there:
        places = np.flatnonzero(masked(np.full(BLOCK_BYTES, 255, np.uint8), there))
        block[places[salt % len(places)]] ^= 1 << salt % 8
        assert not is_whole(word, seed, block.copy())
    assert not is_whole(word, seed ^ 1, content.copy())


def masked(content: np.ndarray, cells: int) -> np.ndarray:
    """The content, zero outside of the cells."""
    out = np.zeros_like(content)
    for cell in range(32):
        if cells >> cell & 1:
            out[cell * CELL_BYTES : (cell + 1) * CELL_BYTES] = content[cell * CELL_BYTES : (cell + 1) * CELL_BYTES]
    return out


@brief
@given(st.lists(st.booleans(), max_size=30))
def test_runs_are_where_flags_are_set(flags):
    runs = runs_of(np.array(flags, dtype=np.bool_))
    assert [i for low, high in runs for i in range(low, high)] == [i for i, flag in enumerate(flags) if flag]
    assert all(low < high for low, high in runs)
    assert all(high < low for (_, high), (low, _) in pairwise(runs))
