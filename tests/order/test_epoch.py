"""An epoch that is given another seed in its midst still has every sample once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order import Permutation
from shardload.order.epoch import Reseed, epoch_order, seed_at


@given(
    num_samples=st.integers(1, 300),
    places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300), st.integers(0, 9)), max_size=5),
    epoch=st.integers(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_a_permutation_that_keeps_what_was_delivered(num_samples, places, epoch):
    reseeds = [Reseed(e, min(p, num_samples), s) for e, p, s in sorted(places)]
    everything = np.arange(num_samples)
    ids = epoch_order(num_samples, 7, epoch, reseeds)(everything)
    assert sorted(ids.tolist()) == everything.tolist()
    for i, reseed in enumerate(reseeds):
        if reseed.epoch == epoch:
            before = epoch_order(num_samples, 7, epoch, reseeds[:i])(everything)
            after = epoch_order(num_samples, 7, epoch, reseeds[: i + 1])(everything)
            assert before[: reseed.position].tolist() == after[: reseed.position].tolist()


def test_positions_may_be_asked_for_in_any_pieces():
    order = epoch_order(5000, 1, 2, [Reseed(2, 1000, 5), Reseed(2, 3001, 6)])
    whole = order(np.arange(5000))
    some = np.array([4999, 0, 1000, 3001, 999, 3000, 2])
    assert order(some).tolist() == whole[some].tolist()
    assert some.tolist() == [4999, 0, 1000, 3001, 999, 3000, 2]


def test_the_rest_is_another_order():
    plain = epoch_order(5000, 1, 2)(np.arange(5000))
    assert plain.tolist() == Permutation(5000, seed=1, epoch=2).sample_ids(np.arange(5000)).tolist()
    reseeded = epoch_order(5000, 1, 2, [Reseed(2, 1000, 5)])(np.arange(5000))
    assert np.mean(plain[1000:] == reseeded[1000:]) < 0.01
    # Golden: this is part of what a state means.
    assert reseeded[998:1004].tolist() == [125, 43, 4656, 3225, 3934, 21]
    later = epoch_order(5000, 1, 3, [Reseed(2, 1000, 5)])(np.arange(5000))
    assert later.tolist() == Permutation(5000, seed=5, epoch=3).sample_ids(np.arange(5000)).tolist()


@pytest.mark.parametrize(
    ("epoch", "position", "seed"), [(0, 0, 1), (2, 9, 1), (2, 10, 5), (2, 11, 5), (3, 0, 6), (3, 1, 6), (9, 0, 6)]
)
def test_the_seed_in_force(epoch, position, seed):
    assert seed_at(1, [Reseed(2, 10, 5), Reseed(3, 0, 6)], epoch, position) == seed
