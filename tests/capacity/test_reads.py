"""What reading costs, by hand for windows that can be counted."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from shardload.capacity import plan_reads
from shardload.planner import Worth, plan_requests

PLAN = functools.partial(plan_requests, worth=Worth(0.0, 1 << 20))


def ranges_of(ids):
    """Samples of 1,000 bytes, 100 in each file, one after another."""
    return ids // 100, ids % 100 * 1000, np.full(len(ids), 1000, dtype=np.int64)


def test_whole_blocks_are_a_request_and_single_samples_one_each():
    blocks = plan_reads("block", [np.arange(100, 200), np.arange(250, 350)], ranges_of, PLAN, 10**6)
    assert (blocks.num_requests, blocks.needed_bytes, blocks.requested_bytes) == (3, 200_000, 200_000)
    assert (blocks.amplification, blocks.requests_per_sample, blocks.cache_bytes) == (1.0, 3 / 200, 200_000)
    apart = plan_reads("full", [np.arange(0, 100, 2)], ranges_of, PLAN, 10**6)
    assert (apart.num_requests, apart.requests_per_sample, apart.cache_bytes) == (50, 1.0, 10**6)


def test_bytes_for_nothing_are_told():
    plan = functools.partial(plan_requests, worth=Worth(1e6, 1 << 20))
    apart = plan_reads("full", [np.arange(0, 100, 2)], ranges_of, plan, 10**6)
    assert (apart.num_requests, apart.needed_bytes, apart.requested_bytes) == (1, 50_000, 99_000)
    assert apart.amplification == pytest.approx(1.98)


def test_overlapping_ranges_are_needed_once():
    twice = plan_reads("full", [np.array([5, 5, 6])], ranges_of, PLAN, 10**6)
    assert (twice.needed_bytes, twice.requested_bytes, twice.num_samples) == (2000, 2000, 3)
    assert plan_reads("full", [], ranges_of, PLAN, 10**6).amplification == 0.0
