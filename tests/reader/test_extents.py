"""Requests that reach to the ends of extents: they hold what was asked for, and no part of a file is reached over twice."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardload.planner import Worth
from shardload.reader.extents import MAX_EXTENT_BYTES, Extents, extent_bytes
from shardload.reader.requests import UNIT_BYTES

SIZES = (5 * UNIT_BYTES + 77, 40 * UNIT_BYTES, 100)
PLACES = st.lists(
    st.integers(0, 2).flatmap(
        lambda number: st.tuples(
            st.just(number), st.integers(0, SIZES[number] - 1), st.sampled_from([1, 5000, 100_000, 2_000_000])
        )
    ),
    max_size=12,
)


def apart(places: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Places as requests: disjoint, and in the order of the files."""
    found: list[tuple[int, int, int]] = []
    for number, start, size in sorted(places):
        if found and found[-1][0] == number:
            start = max(start, found[-1][2])
        stop = min(start + size, SIZES[number])
        if start < stop:
            found.append((number, start, stop))
    return found


@given(st.lists(st.tuples(PLACES, st.sampled_from([0.0, 1e5, 3e5, 1e6, 1e8])), max_size=8))
def test_any_requests_reach_as_far_as_they_may(calls: list[tuple[list[tuple[int, int, int]], float]]) -> None:
    extents = Extents(SIZES.__getitem__)
    times = [np.zeros(size, dtype=np.int64) for size in SIZES]
    for places, cost in calls:
        requests, worth = apart(places), Worth(cost, 8 << 20)
        reached = extents.reached(requests, worth)
        size = max(1, extent_bytes(worth))
        for (number, start, stop), (other, low, _) in itertools.pairwise(reached):
            assert (number, start) < (other, low) and start < stop and (number < other or stop <= low)
        for number, seen in enumerate(times):
            wanted, allowed, got = (np.zeros(SIZES[number], dtype=np.bool_) for _ in range(3))
            for _, start, stop in [place for place in requests if place[0] == number]:
                wanted[start:stop] = True
                # No further than to the ends of extents.
                allowed[start // size * size : -(-stop // size) * size] = True
            for _, start, stop in [place for place in reached if place[0] == number]:
                assert 0 <= start < stop <= SIZES[number]
                got[start:stop] = True
            assert got[wanted].all() and not got[~allowed].any()
            seen += got & ~wanted
    assert all((seen <= 1).all() for seen in times)


def test_a_file_is_reached_over_by_few_requests() -> None:
    extents, worth = Extents(lambda number: 10 << 20), Worth(600_000.0, 8 << 20)
    starts = np.random.default_rng(1).permutation((10 << 20) // 4096) * 4096
    found = [extents.reached([(0, start, start + 4096)], worth)[0] for start in starts.tolist()]
    wide = [one for one in found if one[2] - one[1] > 4096]
    assert [one[2] - one[1] for one in wide] == [1 << 19] * 20
    assert sorted(one[1] for one in wide) == list(range(0, 10 << 20, 1 << 19))


def test_extents_take_no_longer_than_an_answer() -> None:
    for cost in (0.0, 0.5, 1.0, 70_000.0, 131_072.0, 2e6, 1e12):
        size = extent_bytes(Worth(cost, 8 << 20))
        assert size <= cost and size <= MAX_EXTENT_BYTES and size & (size - 1) == 0
        assert cost < 1 or 2 * size > min(cost, MAX_EXTENT_BYTES)


def test_what_ends_beyond_its_file_stays_as_it_is() -> None:
    extents = Extents(SIZES.__getitem__)
    for start, stop in ((0, SIZES[0] + 1), (SIZES[0] + UNIT_BYTES, SIZES[0] + 2 * UNIT_BYTES)):
        assert extents.reached([(0, start, stop)], Worth(float(UNIT_BYTES), 1 << 23)) == [(0, start, stop)]
    assert extents.reached([(0, 0, 1)], Worth(float(UNIT_BYTES), 1 << 23)) == [(0, 0, UNIT_BYTES)]
