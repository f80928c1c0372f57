"""The split over ranks: equal counts by arithmetic, every position as the tail promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order.cursor import Partition, rank_batches


def run(partition: Partition, rank: int, cursor: int = 0):
    return list(rank_batches(partition, rank, cursor, lambda positions: positions))


sizes = {
    "num_samples": st.integers(0, 500),
    "batch_size": st.integers(1, 9),
    "num_replicas": st.integers(1, 17),
    "tail": st.sampled_from(["drop", "short", "pad", "mask", "carry"]),
}


@given(**sizes)
@settings(max_examples=400, deadline=None)
def test_every_position_as_promised(num_samples, batch_size, num_replicas, tail):
    partition = Partition(num_samples, batch_size, num_replicas, tail)
    ranks = [run(partition, rank) for rank in range(num_replicas)]
    assert {len(batches) for batches in ranks} == {partition.num_batches()}
    delivered = sorted(np.concatenate([b.positions for batches in ranks for b in batches] or [[]]).astype(int).tolist())
    valid = sorted(p for batches in ranks for b in batches for p in b.positions[: b.num_valid].tolist())
    if tail == "mask":
        assert valid == list(range(num_samples))
        assert all(len(b.positions) == batch_size for batches in ranks for b in batches)
        return
    assert valid == delivered
    if tail in ("drop", "carry"):
        assert delivered == list(range(num_samples // partition.global_batch * partition.global_batch))
    elif tail == "short":
        assert delivered == list(range(num_samples))
    else:
        padded = -(-num_samples // num_replicas) * num_replicas
        # As torch's DistributedSampler: the end is filled with the epoch's first positions.
        assert delivered == sorted([*range(num_samples), *(i % num_samples for i in range(num_samples, padded))])
        assert len({len(b.positions) for batches in ranks for b in batches[-1:]}) <= 1


@given(**sizes)
@settings(max_examples=100, deadline=None)
def test_cursors_are_equal_on_all_ranks_and_end_at_the_end(num_samples, batch_size, num_replicas, tail):
    partition = Partition(num_samples, batch_size, num_replicas, tail)
    cursors = {tuple(b.cursor for b in run(partition, rank)) for rank in range(num_replicas)}
    assert len(cursors) == 1
    (cursors,) = cursors
    if cursors:
        assert cursors[-1] == (len(cursors) * partition.global_batch if tail == "carry" else num_samples)
        assert list(cursors[:-1]) == [(i + 1) * partition.global_batch for i in range(len(cursors) - 1)]


@given(
    num_samples=st.integers(1, 400),
    legs=st.lists(st.tuples(st.integers(1, 48), st.integers(1, 8), st.integers(0, 6)), min_size=1, max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_a_chain_of_resumes_delivers_every_position_once(num_samples, legs):
    """Other batch sizes and world sizes go on from the same cursor."""
    cursor, delivered = 0, []
    for i, (batch_size, num_replicas, steps) in enumerate(legs):
        partition = Partition(num_samples, batch_size, num_replicas, "short")
        last = i == len(legs) - 1
        ranks = [run(partition, rank, cursor)[: None if last else steps] for rank in range(num_replicas)]
        delivered += [p for batches in ranks for b in batches for p in b.positions.tolist()]
        if ranks[0]:
            cursor = ranks[0][-1].cursor
    assert sorted(delivered) == list(range(num_samples))


def test_rank_takes_every_rth_position():
    batches = run(Partition(20, 3, 2, "drop"), 1)
    assert [b.positions.tolist() for b in batches] == [[1, 3, 5], [7, 9, 11], [13, 15, 17]]


def test_windows_do_not_show():
    """Ids are computed for many batches at once; where those blocks end makes no difference."""
    calls = []

    def order(positions):
        calls.append(len(positions))
        return positions * 3

    partition = Partition(100_000, 7, 3, "short")
    batches = list(rank_batches(partition, 2, 0, order))
    assert len(calls) > 1
    assert np.concatenate([b.sample_ids for b in batches]).tolist() == [3 * p for p in range(2, 100_000, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((97, 64, 2, "drop"), "do not fill one global batch of 128"),
        ((97, 64, 2, "carry"), "do not fill one global batch of 128"),
        ((0, 4, 1, "short"), "no samples"),
    ],
)
def test_settings_without_a_batch_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Partition(*arguments).check()


@pytest.mark.parametrize(
    "arguments", [(9, 0, 1, "drop"), (9, True, 1, "drop"), (9, 2.0, 1, "drop"), (9, 1, -1, "drop")]
)
def test_sizes_must_be_integers_from_one(arguments):
    with pytest.raises(ValueError, match="must be an integer from 1"):
        Partition(*arguments)


def test_unknown_tail():
    with pytest.raises(ValueError, match="tail must be one of drop, short, pad, mask, carry"):
        Partition(9, 2, 1, "wrap")


@given(num_samples=st.integers(1, 200), batch_size=st.integers(1, 9), num_replicas=st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_what_carry_leaves_opens_the_next_epoch(num_samples, batch_size, num_replicas):
    partition = Partition(num_samples, batch_size, num_replicas, "carry")
    if not partition.num_batches():
        return
    cursor, stream = 0, []
    for epoch in range(4):
        ranks = [run(partition, rank, cursor) for rank in range(num_replicas)]
        assert {len(batches) for batches in ranks} == {partition.num_batches(cursor)}
        for batch in zip(*ranks, strict=True):
            assert {len(b.positions) for b in batch} == {batch_size}
            assert [b.num_before for b in batch] == [sum(p < 0 for p in b.positions.tolist()) for b in batch]
            stream += sorted(epoch * num_samples + p for b in batch for p in b.positions.tolist())
        cursor = ranks[0][-1].cursor - num_samples
        assert -partition.global_batch < cursor <= 0
    assert stream == list(range(len(stream)))
