"""Draws by weight: in proportion, by seed, epoch and position only, and the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order.epoch import Reseed
from shardload.order.weighted import Weighted, _scaled, make_weighted


def drawn(orders: Weighted, epochs: range, seed: int = 3) -> np.ndarray:
    return np.concatenate([orders.order(epoch, seed)(np.arange(orders.num_positions)) for epoch in epochs])


@pytest.mark.parametrize("kind", ["uniform", "steep", "few", "whole numbers"])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_in_proportion(kind, seed):
    """Chi-square over 200,000 draws; a limit that a right one passes but once in 10^6 (six sigma of the normal approximation)."""
    rng = np.random.default_rng(1)
    size = 1000
    weights = {
        "uniform": np.full(size, 0.1),
        "steep": rng.pareto(1.5, size) + 0.01,
        "few": np.where(np.arange(size) % 7 == 0, rng.random(size) + 0.1, 0.0),
        "whole numbers": rng.integers(0, 20, size),
    }[kind]
    counts = np.bincount(drawn(make_weighted(weights, size), range(200), seed), minlength=size)
    expected = weights / weights.sum() * counts.sum()
    assert (counts[expected == 0] == 0).all()
    some = expected > 5
    freedom = some.sum()
    chi = ((counts[some] - expected[some]) ** 2 / expected[some]).sum()
    assert abs(chi - freedom) < 6 * np.sqrt(2 * freedom)
    # Neighbours are drawn independently: how often one is drawn twice in a row.
    ids = drawn(make_weighted(weights, size), range(200), seed)
    twice = (ids[1:] == ids[:-1]).sum()
    chance = ((weights / weights.sum()) ** 2).sum() * len(ids)
    assert abs(twice - chance) < 6 * np.sqrt(chance) + 6


def test_epochs_and_seeds_are_unrelated():
    orders = make_weighted(np.ones(5000), 5000)
    draws = [orders.order(epoch, seed)(np.arange(5000)) for epoch in range(3) for seed in range(3)]
    for i, one in enumerate(draws):
        assert all((one == other).sum() < 12 for other in draws[:i])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=20), st.integers(0, 3))
def test_positions_in_any_order_and_pieces(positions, epoch):
    orders = make_weighted(np.arange(1000), 1000)
    whole = orders.order(epoch, 9)(np.arange(1000))
    assert orders.order(epoch, 9)(np.array(positions)).tolist() == whole[positions].tolist()


@settings(max_examples=200)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9), st.integers(1, 2**60))
def test_scaling_is_exact(numbers, total):
    assert _scaled(np.array(numbers, np.uint64), total).tolist() == [number * total >> 64 for number in numbers]


def test_a_seed_from_a_place_on():
    orders = make_weighted(np.arange(1, 301), 300)
    plain, other = orders.order(2, 5)(np.arange(300)), orders.order(2, 6)(np.arange(300))
    mixed = orders.order(2, 5, [Reseed(2, 120, 6)])(np.arange(300))
    assert mixed.tolist() == [*plain[:120], *other[120:]]
    assert (
        orders.order(3, 5, [Reseed(2, 120, 6)])(np.arange(300)).tolist() == orders.order(3, 6)(np.arange(300)).tolist()
    )


def test_golden():
    orders = make_weighted(np.sqrt(np.arange(70_000)), 70_000)
    assert orders.digest == "40321f3e5eed7cecf3315045b7ffec5c"
    ids = orders.order(4, 12)(np.arange(70_000)).astype("<i8")
    assert hashlib.sha256(ids.tobytes()).hexdigest()[:16] == "1f073a26a1f56549"
    assert make_weighted([1, 2, 0, 5], 4).order(0, 0)(np.arange(4)).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], r"shape \(3,\), one for each sample, not int64 of shape \(2,\)"),
        ([[1, 2, 3]], r"of shape \(1, 3\)"),
        (["a", "b", "c"], "must be numbers"),
        ([1, -2, 3], "that of sample 1 is -2.0"),
        ([1, 2, float("nan")], "that of sample 2 is nan"),
        ([float("inf"), 2, 3], "that of sample 0 is inf"),
        ([0, 0, 0], "all weights are 0"),
    ],
)
def test_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        make_weighted(weights, 3)


def test_every_part_is_its_own():
    """Parts of a few units each, so that the edges between them are hit."""
    orders = Weighted(8000, np.array([1, 1, 3, 4]), "parts of 1, 0, 2 and 1")
    counts = np.bincount(orders.order(0, 0)(np.arange(8000)), minlength=4)
    assert counts[1] == 0 and (np.abs(counts - [2000, 0, 4000, 2000]) < 6 * 45).all()


def test_the_smallest_weight_can_be_drawn():
    orders = make_weighted([1e-300, 1.0, 0.0], 3)
    assert np.diff([0, *orders.ends]).tolist() == [1, 1 << 40, 0]
