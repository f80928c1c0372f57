"""Which blocks have been checked, against a set."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.reader import checks
from shardload.reader.checks import CheckedBlocks

NUMBERS = st.lists(st.integers(0, 39), max_size=30)


@pytest.fixture(params=["pages", "small pages", "no room"], scope="module")
def page_bits(request: pytest.FixtureRequest) -> Iterator[int]:
    """Bits of a page, where all bits of 40 blocks are in one page, or at once, or where there is no room for that."""

    def refused(*_: object, **__: object) -> mmap.mmap:
        raise OSError("no room")

    with pytest.MonkeyPatch.context() as patched:
        if request.param != "pages":
            patched.setattr(checks, "_PAGE_BITS", 16)
        if request.param == "no room":
            patched.setattr(checks, "_zeros_at_need", refused)
        yield checks._PAGE_BITS


@pytest.mark.usefixtures("page_bits")
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
        assert blocks._complete, "all were noted, and each is looked up for ever"


def test_blocks_all_over_many_take_memory_where_they_are() -> None:
    blocks, numbers = CheckedBlocks(10**9), np.random.default_rng(5).choice(10**9, 256, replace=False)
    blocks.add(numbers[:128])
    assert blocks.missing(numbers).tolist() == [False] * 128 + [True] * 128
    # As the two at the ends of all, and a whole dataset of which somebody only says how long it is.
    blocks.add(np.array([0, 10**9 - 1]))
    assert blocks.missing(np.array([0, 1, 10**9 - 2, 10**9 - 1])).tolist() == [False, True, True, False]
    huge = CheckedBlocks(2**62)
    huge.add(np.array([2**62 - 1]))
    assert huge.missing(np.array([0, 2**62 - 1])).tolist() == [True, False]
