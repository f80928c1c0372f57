"""The block shuffle: a permutation whose windows are whole blocks, the same as a plain reading of its rule."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order import Permutation
from shardload.order.blocks import Blocked, BlockShuffle, block_order, usual_blocks
from shardload.order.epoch import Reseed
from shardload.order.shuffle import check_shuffle, make_orders


def by_the_rule(num_samples: int, size: int, window: int, seed: int, epoch: int) -> list[int]:
    """The order as lists of lists."""
    blocks = [list(range(start, min(start + size, num_samples))) for start in range(0, num_samples, size)]
    in_turn = [blocks[k] for k in Permutation(len(blocks), seed=seed, epoch=epoch).sample_ids(np.arange(len(blocks)))]
    ids = []
    for number, first in enumerate(range(0, len(in_turn), window)):
        inside = [i for block in in_turn[first : first + window] for i in block]
        key = hashlib.blake2b(f"shardload window {seed} {number}".encode(), digest_size=8).digest()
        mixed = Permutation(len(inside), seed=int.from_bytes(key, "little"), epoch=epoch)
        ids += [inside[i] for i in mixed.sample_ids(np.arange(len(inside)))]
    return ids


SIZES = {"num_samples": st.integers(0, 400), "size": st.integers(1, 50), "window": st.integers(1, 12)}


@settings(max_examples=150, deadline=None)
@given(**SIZES, seed=st.integers(0, 3), epoch=st.integers(0, 2), data=st.data())
def test_the_order_is_that_of_the_rule(num_samples, size, window, seed, epoch, data):
    order = block_order(num_samples, BlockShuffle(size, window), seed, epoch)
    expected = by_the_rule(num_samples, size, window, seed, epoch)
    assert sorted(expected) == list(range(num_samples))
    assert order(np.arange(num_samples)).tolist() == expected
    if num_samples:
        some = data.draw(st.lists(st.integers(0, num_samples - 1), max_size=20))
        assert order(np.array(some, dtype=np.int64)).tolist() == [expected[p] for p in some]


def test_golden():
    order = Blocked(1000, BlockShuffle(16, 4)).order(2, 7)
    assert order(np.arange(6)).tolist() == [318, 153, 343, 152, 306, 309]
    assert order(np.arange(994, 1000)).tolist() == [298, 469, 288, 471, 466, 564]


def test_a_window_reads_whole_blocks():
    size, window = 64, 8
    orders = Blocked(64 * 100, BlockShuffle(size, window))
    ids = orders.order(0, 1)(np.arange(6400))
    assert [orders.window_end(0, 1)(p) for p in (0, 511, 512, 6399)] == [512, 512, 1024, 6400]
    for start in range(0, 6400, 512):
        inside = np.sort(ids[start : start + 512])
        blocks = np.unique(inside // size)
        assert len(blocks) <= window and len(inside) == len(blocks) * size
    # Of a batch nearly all blocks of the window are in it: they are mixed, not one after the other.
    assert np.mean([len(np.unique(ids[i : i + 64] // size)) for i in range(0, 6144, 64)]) > 7.9


@settings(max_examples=60, deadline=None)
@given(**SIZES, places=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9)), max_size=3))
def test_another_seed_in_its_midst_keeps_what_was_delivered(num_samples, size, window, places):
    reseeds = [Reseed(1, min(place, num_samples), seed) for place, seed in sorted(places)]
    orders, everything = Blocked(num_samples, BlockShuffle(size, window)), np.arange(num_samples)
    ids = orders.order(1, 5, reseeds)(everything)
    assert sorted(ids.tolist()) == everything.tolist()
    for i, reseed in enumerate(reseeds):
        before, after = (orders.order(1, 5, reseeds[:k])(everything)[: reseed.position] for k in (i, i + 1))
        assert before.tolist() == after.tolist()


def test_positions_at_the_end_of_very_many():
    orders = Blocked(10**10 + 3, BlockShuffle(1000))
    assert orders.order(0, 0)(np.array([0, 10**10, 10**10 + 2])).max() < 10**10 + 3


def test_what_is_asked_for():
    assert make_orders(100, 400 << 20, "block").name == "block(1x64)"
    assert (
        make_orders(10**6, 4 * 10**9, "block")
        == Blocked(10**6, BlockShuffle(1048))
        == Blocked(10**6, usual_blocks(10**6, 4 * 10**9))
    )
    assert [make_orders(9, 9, shuffle).name for shuffle in (True, False, BlockShuffle(4, 2))] == [
        True,
        False,
        "block(4x2)",
    ]
    assert check_shuffle(1) is True and check_shuffle(None) is False
    for wrong in ("blocks", "", "True"):
        with pytest.raises(ValueError, match="shuffle must be True, False, 'block' or a BlockShuffle"):
            check_shuffle(wrong)
    for sizes in ((0, 4), (4, 0), (-1, 1)):
        with pytest.raises(ValueError, match=r"block_samples|window_blocks"):
            BlockShuffle(*sizes)


@settings(max_examples=80, deadline=None)
@given(**SIZES, seed=st.integers(0, 3))
def test_windows_end_where_the_rule_says(num_samples, size, window, seed):
    end, orders = 0, Blocked(num_samples, BlockShuffle(size, window))
    in_turn = Permutation(-(-num_samples // size), seed=seed, epoch=1).sample_ids(np.arange(-(-num_samples // size)))
    sizes = [min(size, num_samples - k * size) for k in in_turn.tolist()]
    for first in range(0, len(sizes), window):
        start, end = end, end + sum(sizes[first : first + window])
        assert {orders.window_end(1, seed)(position) for position in (start, end - 1)} == {end}
