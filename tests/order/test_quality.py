"""The measures of an order: what is worked out by hand, what a true permutation gives, and what bad orders give."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from shardload.order import Permutation
from shardload.order.blocks import BlockShuffle
from shardload.order.quality import expected_groups, measure_order, mixing, stretches
from shardload.order.shuffle import make_orders

SIZE, BATCH = 60_000, 100
SHARDS = {"shards": np.arange(SIZE) // 100}


def measured(shuffle, later=None):
    orders = make_orders(SIZE, SIZE, shuffle)
    ids = [orders.order(epoch, 3)(np.arange(SIZE)) for epoch in (0, 1)]
    return measure_order(*ids, SIZE, BATCH, SHARDS, whole=True)


def test_a_permutation_is_like_a_true_one():
    rng = np.random.default_rng(0)
    true = measure_order(rng.permutation(SIZE), rng.permutation(SIZE), SIZE, BATCH, SHARDS, whole=True)
    for one in (true, measured(True)):
        assert (one.num_missing, one.num_repeated, one.num_positions) == (0, 0, SIZE)
        assert abs(one.displacement - 1 / 3) < 0.005
        assert abs(one.correlation) < 0.02 and abs(one.epoch_correlation) < 0.02
        assert abs(one.mixing["shards"] - 1) < 0.005
        assert abs(one.entropy - true.entropy) < 0.02


def test_an_order_that_is_none():
    one = measured(False)
    assert (one.num_missing, one.num_repeated) == (0, 0)
    assert one.displacement == 0 and one.correlation > 0.999 and one.epoch_correlation > 0.999 and one.entropy == 0
    assert one.mixing["shards"] == pytest.approx(1 / expected_groups(np.full(600, 100), BATCH))


def test_blocks_lie_between():
    few, many = measured(BlockShuffle(100, 20)), measured(BlockShuffle(100, 200))
    assert 0.1 < few.mixing["shards"] < 0.25 and 0.8 < many.mixing["shards"] < 0.9
    assert few.entropy < many.entropy < measured(True).entropy
    assert (few.num_missing, few.num_repeated) == (0, 0)


def test_blocks_of_sorted_samples_mix_few_classes_unless_they_were_shuffled_on_disk():
    """1,000 sorted classes in blocks such as 4 MiB of images make: what the README tells, and what it says to do."""
    orders = make_orders(SIZE * 4, SIZE, BlockShuffle(38, 64))
    ids = orders.order(0, 3)(np.arange(SIZE * 4))
    classes = np.arange(SIZE * 4) // (SIZE * 4 // 1000)
    on_disk = Permutation(SIZE * 4, seed=1, epoch=0).sample_ids(np.arange(SIZE * 4))
    assert 0.25 < mixing(ids, classes, 256) < 0.35
    assert mixing(ids, classes[on_disk], 256) >= 0.97


def test_what_is_missing_or_comes_again_is_counted():
    ids = np.arange(100)
    ids[[3, 4, 50]] = 7
    one = measure_order(ids, ids, 100, 10, {}, whole=True)
    assert (one.num_missing, one.num_repeated) == (3, 3)
    assert measure_order(ids[:60], ids[:60], 100, 10, {}, whole=False).num_missing == 0


def test_expected_groups_are_those_of_all_draws():
    sizes = np.array([1, 2, 0, 3])
    groups = [0, 1, 1, 3, 3, 3]
    for batch in range(1, 7):
        draws = [len({groups[i] for i in some}) for some in itertools.combinations(range(6), batch)]
        assert expected_groups(sizes, batch) == pytest.approx(np.mean(draws))


def test_batches_that_do_not_fit():
    assert np.isnan(mixing(np.arange(5), np.zeros(5, np.int64), 6))
    assert list(stretches(5, 6, 10)) == []
    assert [(s.start, s.stop) for s in stretches(100, 10, 3)] == [(0, 30), (30, 60), (60, 100)]
