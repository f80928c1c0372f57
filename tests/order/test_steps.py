"""Steps of a run, counted by arithmetic, against batches that were made one after the other."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shardload.order.blocks import Blocked, BlockShuffle
from shardload.order.cursor import Partition, rank_batches
from shardload.order.epoch import EpochOrders, InOrder, Permuted, Reseed
from shardload.order.shuffle import orders_named
from shardload.order.steps import Begun, History, Start

TAILS = ("drop", "short", "pad", "mask", "carry")


def delivered(partition: Partition, epoch: int, position: int, num_steps: int):
    """Steps as lists of (epoch, position, rank, slot), each with the cursor after it, as loaders go through epochs."""
    steps = []
    while len(steps) < num_steps:
        ranks = [list(rank_batches(partition, r, position, lambda p: p)) for r in range(partition.num_replicas)]
        for batches in zip(*ranks, strict=True):
            seats = []
            for rank, batch in enumerate(batches):
                for slot, at in enumerate(batch.positions[: batch.num_valid].tolist()):
                    before = at < 0
                    seats.append((epoch - before, at + before * partition.num_samples, rank, slot))
            steps.append((seats, (epoch, batches[0].cursor)))
        left = partition.num_samples - (ranks[0][-1].cursor if ranks[0] else position)
        epoch, position = epoch + 1, -left if partition.tail == "carry" else 0
    return steps[:num_steps]


@st.composite
def partitions(draw):
    sizes = draw(st.tuples(st.integers(1, 60), st.integers(1, 6), st.integers(1, 5)))
    partition = Partition(*sizes, draw(st.sampled_from(TAILS)))
    assume(partition.num_batches() > 0)
    return partition


@settings(max_examples=200, deadline=None)
@given(partition=partitions(), epoch=st.integers(0, 3), data=st.data())
def test_steps_are_what_is_delivered(partition, epoch, data):
    least = -partition.num_samples + 1 if partition.tail == "carry" and epoch else 0
    position = data.draw(st.integers(least, partition.num_samples))
    start, steps = Start(partition, epoch, position), delivered(partition, epoch, position, 40)
    seen = defaultdict(list)
    for number, (seats, after) in enumerate(steps):
        places = start.places(number)
        assert list(zip(*(getattr(places, name).tolist() for name in places.__slots__), strict=True)) == seats
        assert start.number(*after) == number + 1
        for at, where, rank, slot in seats:
            seen[at, where].append((number, rank, slot))
    # Where the last epochs may go on further, nothing is said.
    for at in range(epoch - 1, steps[-1][1][0]):
        for where in range(partition.num_samples):
            if at >= 0:
                told = [(seat.step, seat.rank, seat.slot) for seat in start.seen(at, where) if seat.step < len(steps)]
                assert told == seen[at, where]
    # In the midst of a batch no step ends; behind the last one of an epoch, where too little is left for another, it did.
    ends = {after for _, after in steps} | {start.batch(0)}
    last_epoch = steps[-1][1][0]
    for where in range(1, partition.num_samples - partition.global_batch + 1):
        if epoch < last_epoch and (epoch, where) not in ends:
            assert start.number(epoch, where) is None


@settings(max_examples=150, deadline=None)
@given(
    num_samples=st.integers(1, 300),
    kind=st.sampled_from(["full", "none", "block"]),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 9)),
    reseeds=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300), st.integers(0, 9)), max_size=4),
)
def test_the_inverse_undoes_the_order(num_samples, kind, sizes, reseeds):
    shuffles = {"full": Permuted(num_samples), "none": InOrder(num_samples)}
    orders = shuffles.get(kind) or Blocked(num_samples, BlockShuffle(*sizes))
    later = [Reseed(*one) for one in sorted(reseeds)]
    assert orders_named(orders.name, num_samples) == orders
    ids = orders.order(1, 7, later)(np.arange(num_samples))
    assert orders.inverse(1, 7, later)(ids).tolist() == list(range(num_samples))
    some = ids[::7][::-1]
    assert orders.inverse(1, 7, later)(some).tolist() == np.arange(num_samples)[::7][::-1].tolist()


def test_golden():
    """By hand: 10 samples on 2 ranks, 2 a batch, so that 2 are left of each epoch."""
    start = Start(Partition(10, 2, 2, "carry"), 0, 0)
    assert [start.batch(i) for i in range(6)] == [(0, 0), (0, 4), (1, -2), (1, 2), (1, 6), (2, 0)]
    assert [(s.step, s.rank, s.slot) for s in start.seen(0, 9)] == [(2, 1, 0)]
    pad = Start(Partition(10, 2, 4, "pad"), 0, 0)
    assert [(s.step, s.rank, s.slot) for s in pad.seen(0, 1)] == [(0, 1, 0), (1, 3, 0)]
    assert pad.seen(0, 3)[1:] == [] and pad.number(0, 10) == pad.number(1, 0) == 2
    assert Start(Partition(10**15, 10**6, 10, "drop"), 3, 5).batch(10**9)[0] == 3 + -(-(10**9 - 99_999_999) // 10**8)


class Opaque(EpochOrders):
    num_positions = 4
    name = "packed(2048)"
    order = None


def test_orders_that_cannot_be_located():
    Opaque.__abstractmethods__ = frozenset()
    with pytest.raises(ValueError, match=r"kind 'packed\(2048\)'"):
        Opaque().inverse(0, 0)
    for name in ("packed(2048)", "block(0x4)", "block(4x4) and more", 7, None, "block(٤x4)"):
        with pytest.raises(ValueError, match="order of the kind"):
            orders_named(name, 10)


def test_a_run_that_goes_back():
    """Steps 0-9 on 3 ranks, then from step 6 on 1 rank, then the same again from step 8."""
    first = Begun(InOrder(100), Start(Partition(100, 2, 3, "drop"), 0, 0), 0, (), None)
    second = Begun(InOrder(100), Start(Partition(100, 4, 1, "drop"), 0, 36), 0, (), (0, 36))
    third = Begun(InOrder(100), Start(Partition(100, 5, 1, "drop"), 0, 50), 0, (), (0, 44))
    history = told(first, second, third)
    run = history.stretches()
    assert [(one.first_step, one.num_steps) for one in run] == [(0, 6), (6, 2), (8, None)]
    assert [[one.has(step) for one in run].index(True) for step in (0, 5, 6, 7, 8, 99)] == [0, 0, 1, 1, 2, 2]
    # Before the place that the second start went back to: the first one counts again.
    again = Begun(InOrder(100), second.start, 0, (), (0, 24))
    back = told(first, second, third, again).stretches()
    assert [(one.first_step, one.num_steps) for one in back] == [(0, 4), (4, None)]
    # What two copies of a rank write changes nothing.
    twice = told(first, second, third, again, again).stretches()
    assert [(one.first_step, one.num_steps) for one in twice if one.num_steps != 0] == [(0, 4), (4, None)]
    with pytest.raises(ValueError, match="position 37 of epoch 0"):
        history.add(Begun(InOrder(100), second.start, 0, (), (0, 37)))
    assert len(told(first, second, third, first).stretches()) == 1


def test_a_run_that_goes_back_and_forward_again():
    """It goes on from what it had left behind, also where what it did instead has a step that ends at the same place."""

    def begun(epoch, position, after, *reseeds):
        return Begun(Permuted(100), Start(Partition(100, 10, 1, "drop"), epoch, position), 1, reseeds, after)

    lines = [begun(0, 0, None), begun(1, 0, (0, 100))]
    other = Reseed(0, 50, 7)
    lines += [begun(0, 50, (0, 50), other), begun(1, 0, (0, 100), other)]
    run = told(*lines, begun(1, 30, (1, 30))).stretches()
    assert [(one.first_step, one.num_steps, one.reseeds) for one in run] == [(0, 10, ()), (10, 3, ()), (13, None, ())]
    run = told(*lines, begun(1, 30, (1, 30), other)).stretches()
    assert [(one.first_step, one.num_steps, one.reseeds) for one in run] == [
        (0, 5, ()),
        (5, 5, (other,)),
        (10, 3, (other,)),
        (13, None, (other,)),
    ]
    # Without the start of an epoch, it is that of the run.
    run = told(lines[0], lines[1], begun(3, 20, (3, 20))).stretches()
    assert [(one.first_step, one.num_steps) for one in run] == [(0, 10), (10, 22), (32, None)]


def told(*starts):
    history = History()
    for start in starts:
        history.add(start)
    return history
