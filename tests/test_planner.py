"""Plans: ranges merged within their limits."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardload.planner import (
    CHEAP_GAP_BYTES,
    Worth,
    cut_by_shard,
    join_ranges,
    last_not_above,
    merge_ranges,
    plan_requests,
)


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


@example([(0, 0, 30), (0, 5, 1), (0, 20, 5)], 0)
@example([(0, 0, 0), (0, 1, 0), (0, 2, 0)], 1)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200), st.integers(0, 30)), max_size=25), st.integers(0, 10))
def test_joined_ranges_cover_the_same_bytes(ranges, gap):
    groups, starts, lengths = (np.array([r[k] for r in ranges], dtype=np.int64) for k in range(3))
    joined = list(zip(*(a.tolist() for a in join_ranges(groups, starts, lengths, max_gap_bytes=gap)), strict=True))
    wanted = {(g, b) for g, s, n in ranges for b in range(s, s + n)}
    covered = [(g, b) for g, s, n in joined for b in range(s, s + n)]
    assert wanted <= set(covered) and len(covered) == len(set(covered))
    for (g, s, n), (h, t, _) in itertools.pairwise(joined):
        assert (g, s) < (h, t) and (g != h or len(ranges) < 2 or t > s + n + gap)
    extra = set(covered) - wanted
    # What is covered for nothing lies in gaps that are no longer than allowed, also beside a place of no bytes.
    places = {(g, s) for g, s, _ in ranges}
    for group in range(4):
        run = 0
        for byte in range(240):
            run = 0 if (group, byte) not in extra else 1 if (group, byte) in places else run + 1
            assert run <= gap


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_ranges_of_items_are_cut_where_shards_end(data):
    counts = data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 5, 40]), min_size=1, max_size=12))
    first_items = np.concatenate([[0], np.cumsum(counts)])
    length = data.draw(st.integers(1, 50))
    last = int(first_items[-1]) - length
    starts = np.array(data.draw(st.lists(st.integers(0, last), max_size=9)) if last >= 0 else [], dtype=np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    ranges = cut_by_shard(starts, length, first_items)
    found = [
        (slot, shard_id, item)
        for slot, shard_id, low, high in zip(ranges.slots, ranges.shard_ids, ranges.low, ranges.high, strict=True)
        for item in range(low, high)
    ]
    want = [
        (slot, owner[item], item - first_items[owner[item]])
        for slot, start in enumerate(starts.tolist())
        for item in range(start, start + length)
    ]
    assert found == want and (ranges.low < ranges.high).all()
    assert len(ranges) == len({(slot, shard_id) for slot, shard_id, _ in found})
    some = ranges.of(2, 5)
    assert [(s, i) for s, i in zip(some.slots, some.low, strict=True)] == [
        (s, i) for s, i in zip(ranges.slots, ranges.low, strict=True) if 2 <= s < 5
    ]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_searched_for_is_found(data):
    steps = data.draw(st.lists(st.sampled_from([0, 0, 1, 3, 1000]), min_size=1, max_size=60))
    end = sum(steps) + data.draw(st.integers(1, 50))
    values = np.cumsum([0, *steps])[:-1]
    low = data.draw(st.integers(0, len(values) - 1))
    wanted = np.array(data.draw(st.lists(st.integers(int(values[low]), end - 1), max_size=8)), dtype=np.int64)
    size = len(wanted)
    places = np.full(size, low), np.full(size, len(values)), np.full(size, end)
    found = last_not_above(lambda at: values[at], wanted, *places)
    assert found.tolist() == (np.searchsorted(values, wanted, side="right") - 1).tolist()


def test_all_looks_but_a_few_are_at_neighbours():
    rng = np.random.default_rng(1)
    lengths = rng.lognormal(6, 1.5, 100_000).astype(np.int64)
    values, end = np.cumsum(lengths) - lengths, int(lengths.sum())
    num_pages = []
    for wanted in rng.integers(0, end, 50):
        looks: list[int] = []

        def look(at, looks=looks):
            looks.extend(at.tolist())
            return values[at]

        last_not_above(look, *(np.array([n]) for n in (wanted, 0, len(values), end)))
        assert len(looks) <= 20
        num_pages.append(len({at // 700 for at in looks}))
    assert np.mean(num_pages) < 3


SIZES = st.one_of(st.integers(0, 300), st.integers(60 << 10, 130 << 10), st.integers(0, 3 << 20))


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 2), SIZES, SIZES), max_size=40),
    request_bytes=st.sampled_from([0.0, 1000.0, 800e3, 20e6]),
    max_request_bytes=st.sampled_from([1 << 20, 8 << 20]),
    order=st.randoms(use_true_random=False),
)
def test_requests_bring_what_is_needed_and_little_else(pieces, request_bytes, max_request_bytes, order):
    worth = Worth(request_bytes, max_request_bytes)
    at, ranges = [0, 0, 0], []
    for group, gap, size in pieces:
        # A gap below zero: ranges may overlap.
        start = max(0, at[group] + gap - 100)
        ranges.append((group, start, size))
        at[group] = max(at[group], start + size)
    order.shuffle(ranges)
    columns = [np.array(column, dtype=np.int64) for column in zip(*ranges, strict=True)] or [np.empty(0, np.int64)] * 3
    planned = list(zip(*(column.tolist() for column in plan_requests(*columns, worth)), strict=True))
    for group, start, size in ranges:
        mine = sorted((max(a, start), min(a + n, start + size)) for g, a, n in planned if g == group)
        assert sum(max(0, high - low) for low, high in mine) == size
    assert planned == sorted(planned)
    assert all(0 < n <= max_request_bytes for _, _, n in planned)
    assert all(g != h or a + n <= b for (g, a, n), (h, b, _) in itertools.pairwise(planned))
    needed = gaps = 0
    cheap = min(request_bytes / 8, CHEAP_GAP_BYTES)
    for group in range(3):
        edges = sorted((a, a + n) for g, a, n in ranges if g == group and n)
        reached = edges[0][0] if edges else 0
        for low, high in edges:
            gaps += low - reached if 0 < low - reached <= cheap else 0
            needed += max(0, high - max(low, reached))
            reached = max(reached, high)
    total = sum(n for _, _, n in planned)
    assert needed <= total <= 1.05 * needed + gaps
    if all(size <= max_request_bytes // 2 for _, _, size in ranges):
        assert len(planned) <= sum(size > 0 for _, _, size in ranges)


def test_neighbours_are_one_request_and_a_dense_file_comes_whole():
    worth = Worth(1e6, 4 << 20)
    rng = np.random.default_rng(0)
    samples = np.arange(0, 4000, 4) + rng.integers(0, 4, 1000)
    groups = np.zeros(1000, dtype=np.int64)
    # Samples of 4 KiB, a quarter of them, lie a few apart: so near that the file is read from the first to the last.
    plan = plan_requests(groups, samples * 4096, np.full(1000, 4096), worth)
    assert len(plan[0]) == -(-int((samples[-1] + 1 - samples[0]) * 4096) // (4 << 20))
    # Of samples of 100 KB the ones between are too dear.
    plan = plan_requests(groups, samples * 100_000, np.full(1000, 100_000), worth)
    assert plan[2].sum() <= 1.1 * 1000 * 100_000 and len(plan[0]) < 1000
    assert len(plan_requests(*[np.empty(0, np.int64)] * 3, worth)[0]) == 0
