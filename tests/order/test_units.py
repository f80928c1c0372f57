"""Samples put together in blocks: each once, within its bounds, and the same on any ranks from any place."""

from __future__ import annotations

import collections
import hashlib
import itertools
import os
import pickle
from bisect import bisect_left
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardload.errors import ShardloadError
from shardload.order.cursor import Partition, RankBatch
from shardload.order.epoch import InOrder, Permuted, Reseed
from shardload.order.grouping import Grouping, Packing, TokenBudget
from shardload.order.unit_blocks import UnitOrders, UnitPlan
from shardload.order.units import UnitPartition

Int64 = NDArray[np.int64]
Unit = list[tuple[int, int, int]]
"""Sample, first item, items; in the order of the unit."""

TAILS = ["drop", "short", "pad", "mask"]


def spread(num_samples: int, seed: int) -> Int64:
    """Log-normal lengths, some of them 0."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(num_samples) < 0.03, 0, rng.lognormal(2, 1, num_samples).astype(np.int64) + 1)


def plan_of(lengths: Int64, grouping: Grouping) -> UnitPlan:
    return UnitPlan(len(lengths), grouping, lambda ids: lengths[ids])


def units_of(batch: RankBatch) -> list[Unit]:
    assert batch.units is not None
    members = list(
        zip(batch.sample_ids.tolist(), batch.units.starts.tolist(), batch.units.lengths.tolist(), strict=True)
    )
    return [members[start:stop] for start, stop in itertools.pairwise(batch.units.edges.tolist())]


def expected_units(lengths: Int64, grouping: Grouping, order: Any) -> list[tuple[int, Unit]]:
    """All units of an epoch with their positions, taken from each block's arrangement in plain loops."""
    found = []
    for number, start in enumerate(range(0, len(lengths), grouping.lookahead)):
        ids = order(np.arange(start, min(start + grouping.lookahead, len(lengths)), dtype=np.int64))
        block = grouping.arrange(lengths[ids], ids)
        for unit, (first, stop) in enumerate(itertools.pairwise(block.edges.tolist())):
            slots, starts, sizes = (of[first:stop].tolist() for of in (block.slots, block.starts, block.lengths))
            members = [(int(ids[slot]), *rest) for slot, *rest in zip(slots, starts, sizes, strict=True)]
            found.append((number * grouping.stride + unit, members))
    return found


groupings = st.one_of(
    st.builds(
        Packing,
        st.just(("tokens",)),
        st.integers(1, 60),
        st.integers(1, 40),
        st.sampled_from(["truncate", "split", "drop"]),
    ),
    st.builds(
        TokenBudget,
        st.just("tokens"),
        st.integers(400, 900),
        st.integers(1, 40),
        st.one_of(st.none(), st.integers(1, 9)),
    ),
)
cases = {"num_samples": st.integers(1, 150), "seed": st.integers(0, 99), "grouping": groupings}
splits = {"batch_size": st.integers(1, 5), "num_replicas": st.integers(1, 6), "tail": st.sampled_from(TAILS)}


@given(**cases)
@settings(max_examples=200, deadline=None)
def test_every_sample_once_and_within_bounds(num_samples: int, seed: int, grouping: Grouping) -> None:
    lengths = spread(num_samples, seed)
    units = [unit for _, unit in expected_units(lengths, grouping, lambda positions: positions)]
    seen = collections.Counter(
        i for unit in units for sample, start, size in unit for i in range(start, start + size) for i in [(sample, i)]
    )
    assert not seen or set(seen.values()) == {1}
    assert all(unit for unit in units)
    if isinstance(grouping, TokenBudget):
        assert sorted(sample for unit in units for sample, _, _ in unit) == list(range(num_samples))
        assert len(seen) == lengths.sum()
        for unit in units:
            assert len(unit) * max(1, *(size for _, _, size in unit), 1) <= grouping.max_tokens
            assert len(unit) <= (grouping.max_samples or len(unit))
        return
    assert isinstance(grouping, Packing)
    assert all(sum(size for _, _, size in unit) <= grouping.length for unit in units)
    items = collections.Counter(sample for sample, _ in seen)
    for sample, size in enumerate(lengths.tolist()):
        kept = {"truncate": min(size, grouping.length), "drop": 0 if size > grouping.length else size, "split": size}
        assert items[sample] == kept[grouping.overlong]


@given(**cases, **splits)
@settings(max_examples=150, deadline=None)
def test_ranks_share_units_as_a_partition_shares_positions(
    num_samples: int, seed: int, grouping: Grouping, batch_size: int, num_replicas: int, tail: Any
) -> None:
    """The oracle is the plain partition, over the list of all units."""
    lengths, orders = spread(num_samples, seed), Permuted(num_samples)
    order = orders.order(3, seed)
    units = expected_units(lengths, grouping, order)
    plan = plan_of(lengths, grouping)
    end = UnitOrders(orders, grouping).num_positions
    mine = UnitPartition(end, batch_size, num_replicas, tail, plan=plan).in_epoch(0, lambda: order)
    plain = Partition(len(units), batch_size, num_replicas, tail)
    if not plain.num_batches():
        assert not mine.has_batch(0) and mine.num_batches() == 0
        with pytest.raises(ValueError, match="use fewer replicas"):
            mine.check()
        return
    mine.check()
    assert mine.num_batches() == plain.num_batches()
    for rank in range(num_replicas):
        got = list(mine.batches(rank, 0, order))
        want = list(plain.batches(rank, 0, lambda positions: positions))
        assert len(got) == len(want)
        for number, (a, b) in enumerate(zip(got, want, strict=True)):
            assert units_of(a) == [units[i][1] for i in b.sample_ids]
            assert a.units is not None and a.units.positions.tolist() == [units[i][0] for i in b.sample_ids]
            assert a.units.num_valid == b.num_valid and a.num_valid == sum(
                len(units[i][1]) for i in b.sample_ids[: b.num_valid]
            )
            assert order(a.positions).tolist() == a.sample_ids.tolist()
            last = number == len(got) - 1
            # Between two units that follow each other there may be blocks without any.
            assert a.cursor == end if last else units[b.cursor - 1][0] < a.cursor <= units[b.cursor][0]
            assert a.cursor % grouping.stride == 0 or last or a.cursor == units[b.cursor][0]
            assert mine.after(0, number + 1) == a.cursor
            assert mine.has_batch(a.cursor) is not last
            assert mine.num_batches(a.cursor) == len(got) - 1 - number
            if not last:
                assert mine.batches_before(a.cursor) == number + 1


@given(**cases, **splits, later=st.fixed_dictionaries(splits), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_run_goes_on_from_any_batch_on_any_ranks(
    num_samples: int,
    seed: int,
    grouping: Grouping,
    batch_size: int,
    num_replicas: int,
    tail: Any,
    later: Any,
    data: Any,
) -> None:
    """Nothing is repeated and nothing left out between the batches before and those after, found by another process."""
    lengths, order = spread(num_samples, seed), Permuted(num_samples).order(0, seed)
    end = UnitOrders(Permuted(num_samples), grouping).num_positions
    first = UnitPartition(end, batch_size, num_replicas, tail, plan=plan_of(lengths, grouping)).in_epoch(
        0, lambda: order
    )
    cursors = [0, *(batch.cursor for batch in first.batches(0, 0, order))]
    cut = data.draw(st.integers(0, len(cursors) - 1))
    later = UnitPartition(end, **later | {"tail": "short"}, plan=plan_of(lengths, grouping)).in_epoch(0, lambda: order)
    before = [batch for rank in range(num_replicas) for batch in itertools.islice(first.batches(rank, 0, order), cut)]
    after = [batch for rank in range(later.num_replicas) for batch in later.batches(rank, cursors[cut], order)]
    got = [unit for batch in before for unit in units_of(batch)[: batch.units.num_valid]]  # type: ignore[union-attr]
    got += [unit for batch in after for unit in units_of(batch)]
    whole = [unit for _, unit in expected_units(lengths, grouping, order)]
    if cut == len(cursors) - 1:
        # At the end fillers have come, or the rest was left out.
        return
    assert sorted(got) == sorted(whole)


@given(**cases, **splits, data=st.data())
@settings(max_examples=100, deadline=None)
def test_what_was_delivered_between_two_places(
    num_samples: int, seed: int, grouping: Grouping, batch_size: int, num_replicas: int, tail: Any, data: Any
) -> None:
    lengths, order = spread(num_samples, seed), Permuted(num_samples).order(0, seed)
    end = UnitOrders(Permuted(num_samples), grouping).num_positions
    mine = UnitPartition(end, batch_size, num_replicas, tail, plan=plan_of(lengths, grouping)).in_epoch(
        0, lambda: order
    )
    ranks = [list(mine.batches(rank, 0, order)) for rank in range(num_replicas)]
    cursors = [0, *(batch.cursor for batch in ranks[0])]
    first = data.draw(st.integers(0, len(cursors) - 1))
    last = data.draw(st.integers(first, len(cursors) - 1))
    got = sorted(np.concatenate([np.empty(0, np.int64), *mine.delivered(cursors[first], cursors[last])]).tolist())
    want = [i for batches in ranks for b in batches[first:last] for i in b.sample_ids[: b.num_valid].tolist()]
    assert got == sorted(want)


@given(**cases, data=st.data())
@settings(max_examples=100, deadline=None)
def test_passing_over_samples(num_samples: int, seed: int, grouping: Grouping, data: Any) -> None:
    lengths = spread(num_samples, seed)
    units = expected_units(lengths, grouping, lambda positions: positions)
    blocks = plan_of(lengths, grouping).epoch(0, lambda: lambda positions: positions)
    start, skip = data.draw(st.integers(0, len(units))), data.draw(st.integers(0, 40))
    starts = [position for position, _ in units] + [blocks.end]
    if start == len(units) and skip == 0:
        return
    stop, left = start, skip
    while left > 0 and stop < len(units):
        left -= len(units[stop][1])
        stop += 1
    cursor, lacking = blocks.past(starts[start], skip)
    assert bisect_left(starts, cursor) == stop and lacking == max(0, left)


def test_seeds_change_between_blocks() -> None:
    """Each sample still once: what is left of a block that was begun stays as it is."""
    for overlong in ("truncate", "split"):
        grouping = Packing(("tokens",), 16, 10, overlong)
        orders = UnitOrders(Permuted(95), grouping)
        assert [orders.reseed_position(p * grouping.stride // 10) for p in (0, 10, 31)] == [
            0,
            grouping.stride,
            4 * grouping.stride,
        ]
        assert orders.reseed_position(9 * grouping.stride + 2) == orders.num_positions
        mixed = orders.order(1, 7, (Reseed(1, 3 * grouping.stride, 8),))(np.arange(95))
        plain = orders.order(1, 7)(np.arange(95))
        assert mixed[:30].tolist() == plain[:30].tolist() and mixed[30:].tolist() != plain[30:].tolist()
        assert sorted(mixed.tolist()) == list(range(95))


def test_lengths_do_not_show_in_the_order() -> None:
    """Sequences and batches come by the sample that opened them, not the long ones first."""
    lengths = np.random.default_rng(0).lognormal(5, 1, 1 << 15).astype(np.int64).clip(1, 2048)
    for grouping in (Packing(("tokens",), 2048, 4096, "error"), TokenBudget("tokens", 1 << 14, 4096)):
        units = expected_units(lengths, grouping, lambda positions: positions)
        place = np.array([position % grouping.stride for position, _ in units])
        longest = np.array([max(size for _, _, size in unit) for _, unit in units])
        assert abs(np.corrcoef(place, np.log(longest))[0, 1]) < 0.1


def test_fill_of_log_normal_lengths() -> None:
    lengths = np.random.default_rng(1).lognormal(6, 1, 1 << 15).astype(np.int64).clip(1, 2048)
    units = expected_units(lengths, Packing(("tokens",), 2048, 4096, "error"), Permuted(len(lengths)).order(0, 0))
    assert lengths.sum() / (2048 * len(units)) >= 0.97


def test_too_long_is_an_error_that_names_the_sample() -> None:
    lengths, ids = np.array([3, 9, 8, 12]), np.array([50, 51, 52, 53])
    with pytest.raises(ShardloadError, match="sample 51 has 9 items, and a sequence holds 8: say what") as caught:
        Packing(("tokens",), 8, 4, "error").arrange(lengths, ids)
    assert caught.value.sample_id == 51
    with pytest.raises(ShardloadError, match="sample 53 has 12 items, and a batch may have 11") as caught:
        TokenBudget("tokens", 11, 4).arrange(lengths, ids)
    assert caught.value.sample_id == 53
    huge = np.array([1 << 38, 1])
    with pytest.raises(ShardloadError, match="a block has room for 131,072: make length larger"):
        Packing(("tokens",), 1 << 20, 2, "split").arrange(huge, np.arange(2))


def test_carry_is_refused() -> None:
    plan = plan_of(np.ones(9, np.int64), TokenBudget("tokens", 4, 4))
    with pytest.raises(ValueError, match="tail='carry' does not go with packed sequences"):
        UnitPartition(9, 1, 1, "carry", plan=plan)


def test_each_block_is_put_together_once_whatever_the_number_of_ranks() -> None:
    """But for the first batch, before which nobody knows how many blocks one takes."""
    calls: collections.Counter[int] = collections.Counter()

    def counted(ids: Int64) -> Int64:
        calls[int(ids[0])] += 1
        return np.ones(len(ids), np.int64)

    # A batch of all ranks takes 20 blocks.
    order = InOrder(1200).order(0, 0)
    plan = UnitPlan(1200, TokenBudget("tokens", 5, 10), counted)
    mine = UnitPartition(1200, 1, 40, "short", plan=plan).in_epoch(0, lambda: order)
    assert len(list(mine.batches(7, 0, order))) == 6
    assert len(calls) == 120 and all(count == 1 for start, count in calls.items() if start >= 400)


def test_plans_are_pickled_and_forked_without_what_they_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.ones(40, np.int64)
    plan = UnitPlan(40, TokenBudget("tokens", 4, 8), lengths.take)
    plan.epoch(0, lambda: InOrder(40).order(0, 0)).num_units(0)
    with plan._lock:
        # As where another thread of the parent held it when this process was forked.
        monkeypatch.setattr(os, "getpid", lambda: -1)
        assert plan.epoch(0, lambda: InOrder(40).order(0, 0)).num_units(0) == 10
    again = pickle.loads(pickle.dumps(plan))
    assert again.epoch(0, lambda: InOrder(40).order(0, 0)).num_units(0) == 10


GOLDEN = {
    "packed/1 of tokens length=512 lookahead=256 overlong=truncate": "7aa3d1b82455f8cd",
    "packed/1 of tokens length=100 lookahead=256 overlong=split": "ebab788e9465f456",
    "batch_tokens/1 of 'tokens' max_tokens=4000 lookahead=256 max_samples=20": "eb6d4c1181c20045",
}


def test_golden_digests() -> None:
    """States count on the same units for ever: another result needs another version in the name."""
    lengths = (np.arange(1000) * 7919 % 997) ** 2 % 701
    groupings = [
        Packing(("tokens",), 512, 256, "truncate"),
        Packing(("tokens",), 100, 256, "split"),
        TokenBudget("tokens", 4000, 256, 20),
    ]
    order = Permuted(1000).order(2, 5)
    found = {
        g.name: hashlib.sha256(repr(expected_units(lengths, g, order)).encode()).hexdigest()[:16] for g in groupings
    }
    assert found == GOLDEN
