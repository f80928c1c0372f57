"""Orders of mixtures: every source in passes of its own, whatever shares it has and however they change."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order.blend import Blend
from shardload.order.epoch import InOrder, Permuted, Reseed
from shardload.order.mixture import MixtureOrders, Part, make_mixture_orders, seed_of

SEED = 11
weights_of = st.sampled_from([0.0, 1.0, 2.0, 3.0, 0.25, 0.1, 2.718281828, 1.41421356, 17.3])


def mixture(sizes, weights, stop, shuffle=True, num_samples=None) -> MixtureOrders:
    firsts = np.cumsum([0, *sizes]).tolist()
    orders = [Permuted(size) if shuffle else InOrder(size) for size in sizes]
    parts = [Part(f"source {i}", one, firsts[i]) for i, one in enumerate(orders)]
    if stop == "repeat" and num_samples is None:
        num_samples = sum(sizes)
    return make_mixture_orders(parts, Blend.of(weights), stop, num_samples)


def stream(orders: MixtureOrders, number: int, length: int) -> list[int]:
    """What a source gives from its beginning on: pass after pass of its own order, as ids of the mixture."""
    part, ids = orders.parts[number], []
    size = part.orders.num_positions
    for number_of_pass in range(-(-length // size)):
        order = part.orders.order(number_of_pass, seed_of(SEED, part.name))
        ids += (order(np.arange(size)) + part.first_id).tolist()
    return ids[:length]


@st.composite
def runs(draw):
    """Sizes, weights that are in force one after the other, the rule, and how much is delivered with each."""
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    given_weights = st.lists(weights_of, min_size=len(sizes), max_size=len(sizes)).filter(any)
    weights = draw(st.lists(given_weights, min_size=1, max_size=4))
    stop = draw(st.sampled_from(["first_exhausted", "all_exhausted", "repeat"]))
    steps = draw(st.lists(st.integers(0, 250), min_size=len(weights), max_size=len(weights)))
    return sizes, weights, stop, steps


@settings(max_examples=60, deadline=None)
@given(runs())
def test_passes_go_on_whatever_the_weights(run):
    sizes, weights, stop, steps = run
    bounds = np.cumsum([0, *sizes])
    orders, epoch, position = None, 0, 0
    delivered = [[] for _ in sizes]
    in_epoch = [0] * len(sizes)
    for mine, step in zip(weights, steps, strict=True):
        new = mixture(sizes, mine, stop)
        if orders is not None:
            new, position = new.going_on(orders.segment, epoch, position)
        orders, left = new, step
        since = orders.segment
        blend, shares = orders.blend, np.array(orders.blend.parts) / orders.blend.period
        while left:
            if position == orders.num_positions:
                check_end(orders, in_epoch, sizes)
                epoch, position, in_epoch = epoch + 1, 0, [0] * len(sizes)
            stop_at = min(orders.num_positions, position + left)
            ids = orders.order(epoch, SEED)(np.arange(position, stop_at))
            numbers = np.searchsorted(bounds, ids, side="right") - 1
            # In proportion from where the weights or the epoch began.
            start = since.position if epoch == since.epoch else 0
            before = np.array(blend.counts(position - start))
            for p, counts in enumerate(np.cumsum(np.eye(len(sizes))[numbers], axis=0) + before, position - start + 1):
                assert (np.abs(counts - p * shares) <= 1 + 1e-9).all()
            for i, number in zip(ids.tolist(), numbers.tolist(), strict=True):
                delivered[number].append(i)
                in_epoch[number] += 1
            left -= stop_at - position
            position = stop_at
            if stop == "first_exhausted":
                assert all(used <= size for used, size in zip(in_epoch, sizes, strict=True))
    assert orders.drawn(epoch, position) == [len(ids) for ids in delivered]
    for number, ids in enumerate(delivered):
        assert ids == stream(orders, number, len(ids))


def check_end(orders: MixtureOrders, used: list[int], sizes: list[int]) -> None:
    """The epoch has ended where its rule says, and not later."""
    coming = [i for i, part in enumerate(orders.blend.parts) if part]
    since = orders.segment
    if orders.stop == "first_exhausted":
        assert any(used[i] == sizes[i] for i in coming)
    elif orders.stop == "all_exhausted":
        assert all(used[i] >= sizes[i] for i in coming)
        assert since.epoch or since.position or min(used[i] - sizes[i] for i in coming) == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=5),
    st.lists(st.floats(0.01, 10), min_size=5, max_size=5),
    st.sampled_from(["first_exhausted", "all_exhausted"]),
)
def test_length_of_an_epoch(sizes, weights, stop):
    """The same as by going through it."""
    orders = mixture(sizes, weights[: len(sizes)], stop)
    numbers = orders.blend.draws(np.arange(orders.num_positions + 1))[0]
    counts = np.bincount(numbers[:-1], minlength=len(sizes))
    after = np.bincount(numbers, minlength=len(sizes))
    before = np.bincount(numbers[:-2], minlength=len(sizes))
    if stop == "first_exhausted":
        assert (counts <= sizes).all() and (after > sizes).any()
    else:
        assert (counts >= sizes).all() and (before < sizes).any()


def test_a_change_within_the_first_epoch_repeats_nothing():
    sizes = [400, 300, 50]
    orders, seen, position = mixture(sizes, [0.9, 0.08, 0.02], "first_exhausted"), [], 0
    for weights in ([0.1, 0.8, 0.1], [1, 1, 0], [0.3, 0.3, 0.4]):
        stop_at = position + 60
        seen += orders.order(0, SEED)(np.arange(position, stop_at)).tolist()
        orders, position = mixture(sizes, weights, "first_exhausted").going_on(orders.segment, 0, stop_at)
    seen += orders.order(0, SEED)(np.arange(position, orders.num_positions)).tolist()
    assert len(seen) == len(set(seen)) > 200
    assert sum(i >= 700 for i in seen) == 50


def test_a_seed_from_a_place_on_keeps_the_passes():
    sizes, cut = [40, 25], 70
    orders = mixture(sizes, [2, 1], "repeat", num_samples=150)
    plain = [orders.order(epoch, SEED)(np.arange(150)) for epoch in range(3)]
    reseeds = [Reseed(1, cut, 99)]
    other = [orders.order(epoch, SEED, reseeds)(np.arange(150)) for epoch in range(3)]
    assert np.array_equal(plain[0], other[0]) and np.array_equal(plain[1][:cut], other[1][:cut])
    assert not np.array_equal(plain[1][cut:], other[1][cut:]) and not np.array_equal(plain[2], other[2])
    everything = np.concatenate(other)
    for number, (first, size) in enumerate(((0, 40), (40, 25))):
        mine = everything[(everything >= first) & (everything < first + size)]
        for start, stop in pairwise(range(0, len(mine) + 1, size)):
            assert sorted(mine[start:stop].tolist()) == list(range(first, first + size)), number


def test_sources_of_equal_size_are_mixed_differently():
    orders = mixture([50, 50], [1, 1], "first_exhausted")
    ids = orders.order(0, SEED)(np.arange(100))
    assert not np.array_equal(ids[ids < 50], ids[ids >= 50] - 50)
    assert sorted(ids.tolist()) == list(range(100))


def test_far_epochs_cost_nothing_more():
    orders = mixture([10**9, 10**6], [1.4142, 1], "repeat", num_samples=10**8)
    ids = orders.order(10**6, SEED)(np.arange(10**8 - 1000, 10**8))
    whole = orders.blend.counts(10**8)
    assert sum(whole) == 10**8 and orders.drawn(10**6, 10**8) == [(10**6 + 1) * count for count in whole]
    assert ((ids >= 0) & (ids < 10**9 + 10**6)).all()


def test_what_is_asked_for_before_a_change():
    """Fillers from the start of its epoch are some of the epoch's; of epochs before nothing is known."""
    orders = mixture([40, 30], [2, 1], "repeat", num_samples=50)
    changed, position = mixture([40, 30], [1, 2], "repeat", num_samples=50).going_on(orders.segment, 3, 20)
    assert position == 20
    order = changed.order(3, SEED)
    fillers, rest = order(np.arange(20)), order(np.arange(20, 50))
    assert set(fillers.tolist()) <= set(rest.tolist())
    with pytest.raises(ValueError, match="before the weights"):
        changed.order(2, SEED)(np.arange(3))


def test_golden():
    orders = mixture([1000, 70_000, 30], [0.5, 0.3, 0.2], "all_exhausted")
    assert orders.num_positions == 233_334
    ids = np.concatenate([orders.order(epoch, 5)(np.arange(3_000) + 100_000) for epoch in (0, 7)])
    assert hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:16] == "6fa2b554d5dc6387"
