"""When samples are needed next on a node: against a search through the orders of the coming epochs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order.epoch import Permuted, Reseed
from shardload.order.next_use import Forecast, Uses, ranks_near

brief = settings(max_examples=50, deadline=None)

RANKS = st.sampled_from([(1, 1), (2, 1), (2, 2), (8, 2), (8, 4), (6, 3)])


@brief
@given(st.integers(1, 60), st.integers(0, 99), RANKS, st.integers(0, 7), st.integers(0, 3), st.booleans())
def test_it_is_the_first_place_in_later_epochs_that_a_rank_of_the_node_has(num, seed, ranks, rank, epoch, reseed):
    num_replicas, num_near = ranks
    rank %= num_replicas
    orders = Permuted(num)
    reseeds = (Reseed(epoch + 1, num // 2, seed + 1),) if reseed else ()
    forecast = Forecast(orders, seed, reseeds, 1, rank, num_replicas, num_near, "fingerprint")
    order = [orders.order(later, seed, reseeds, 1)(np.arange(num)) for later in range(epoch + 4)]
    ids = np.arange(num)
    epochs = np.full(num, epoch)
    epochs[::2] = max(0, epoch - 1)
    found = forecast.following(ids, epochs)
    for sample_id, after, place in zip(ids.tolist(), epochs.tolist(), found.tolist(), strict=True):
        seen = [
            later * num + position
            for later in range(after + 1, min(after + 4, epoch + 4))
            for position in np.flatnonzero(order[later] == sample_id).tolist()
            if position % num_replicas // num_near == rank // num_near
        ]
        # In no epoch that is looked at: after all that are.
        assert place == (seen[0] if seen else (after + 4) * num)


def test_uses_follow_the_positions_of_the_samples():
    orders = Permuted(10)
    forecast = Forecast(orders, 3, (), 1, 0, 1, 1, "fingerprint")
    ids = orders.order(1, 3, (), 1)(np.arange(10))
    uses = Uses(forecast, 0, ids, np.arange(10, 20))
    order = orders.order(2, 3, (), 1)(np.arange(10)).tolist()
    assert uses.following().tolist() == [20 + order.index(sample_id) for sample_id in ids.tolist()]
    assert uses[3:5].following().tolist() == uses.following()[3:5].tolist()


def test_jobs_are_told_apart_by_data_order_and_seed_and_ranks_are_not():
    facts = Permuted(10), 3, (), 1
    job = Forecast(*facts, 0, 2, 1, "a").job
    assert 0 < job < 1 << 63
    assert job == Forecast(*facts, 1, 2, 1, "a").job
    others = [Forecast(*facts, 0, 2, 1, "b"), Forecast(Permuted(10), 4, (), 1, 0, 2, 1, "a")]
    assert len({job, *(other.job for other in others)}) == 3


@pytest.mark.parametrize(
    ("world", "local", "near"),
    [("8", "4", 4), ("8", "8", 8), ("8", None, 8), ("16", "4", 8), ("8", "3", 8), ("8", "0", 8), ("8", "x", 8)],
)
def test_ranks_of_a_node_are_those_of_the_launcher(monkeypatch, world, local, near):
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert ranks_near(8) == near
