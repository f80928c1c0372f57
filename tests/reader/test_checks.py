"""Which blocks have been checked, against a set."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardload.reader.checks import CheckedBlocks

NUMBERS = st.lists(st.integers(0, 39), max_size=30)


@given(st.lists(NUMBERS, max_size=12), st.sampled_from([None, 40, 12, 1]))
def test_what_was_added_is_not_missing_and_nothing_else(added: list[list[int]], num_blocks: int | None) -> None:
    blocks, noted = CheckedBlocks(num_blocks), set[int]()
    for numbers in added:
        mine = [number for number in numbers if num_blocks is None or number < num_blocks]
        blocks.add(np.array(mine, dtype=np.int64))
        noted |= set(mine)
        every = np.arange(num_blocks or 40)
        assert blocks.missing(every).tolist() == [number not in noted for number in every.tolist()]
    if num_blocks is not None:
        blocks.add(np.arange(num_blocks))
        assert not blocks.missing(np.arange(num_blocks)).any()
