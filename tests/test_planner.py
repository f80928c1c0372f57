"""Plans: every id once in its slot, in file order; ranges merged within their limits."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.planner import merge_ranges, plan_by_shard


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=20), data=st.data())
@settings(max_examples=200, deadline=None)
def test_plan_covers_every_slot(counts, data):
    first = np.concatenate([[0], np.cumsum(counts)])
    ids = np.array(data.draw(st.lists(st.integers(0, int(first[-1]) - 1), max_size=64)), dtype=np.int64)
    seen = np.full(len(ids), -1)
    shards = []
    for reads in plan_by_shard(ids, first):
        shards.append(reads.shard_id)
        assert (np.diff(reads.local_ids) >= 0).all()
        assert (reads.local_ids < counts[reads.shard_id]).all()
        seen[reads.slots] = reads.local_ids + first[reads.shard_id]
    assert seen.tolist() == ids.tolist()
    assert shards == sorted(set(shards))


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), max_size=40), st.integers(0, 80), st.integers(1, 400)
)
def test_merged_ranges_keep_their_limits(pieces, max_gap, max_read):
    starts, stops, at = [], [], 0
    for gap, size in pieces:
        starts.append(at + gap)
        at += gap + size
        stops.append(at)
    starts, stops = np.array(starts, dtype=np.int64), np.array(stops, dtype=np.int64)
    runs = merge_ranges(starts, stops, max_gap_bytes=max_gap, max_read_bytes=max_read)
    assert [i for first, last in runs for i in range(first, last)] == list(range(len(pieces)))
    for first, last in runs:
        assert last - first == 1 or stops[last - 1] - starts[first] <= max_read
        assert all(starts[i] - stops[i - 1] <= max_gap for i in range(first + 1, last))
