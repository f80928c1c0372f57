"""Which blocks give way: those whose next use is furthest away, as far as it is known."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.storage.uses import (
    MAX_JOBS,
    NEVER,
    OUTSIDE,
    SPLIT,
    Jobs,
    choose_rows,
    joined_uses,
    used_at,
    used_next,
    waits_of,
)

brief = settings(max_examples=50, deadline=None)
NOW = 1_800_000_000.0


def jobs_at(cursors: dict[int, int], pace: float = 10.0, silent: float = 0.0) -> Jobs:
    """Jobs that have come so far in 100 seconds at a pace."""
    jobs = Jobs(*(np.zeros(MAX_JOBS, dtype=kind) for kind in ("<u8", "<i8", "<f8", "<i8", "<f8", "<i8")))
    for job, cursor in cursors.items():
        jobs.keys[job], jobs.cursors[job], jobs.times[job] = 7 + job, cursor, NOW - silent
        jobs.first_cursors[job], jobs.first_times[job] = cursor - int(100 * pace), NOW - silent - 100
    return jobs


@brief
@given(st.lists(st.integers(0, NEVER), min_size=2, max_size=20), st.integers(0, 1 << 50))
def test_within_a_job_what_is_needed_later_waits_longer(positions, cursor):
    positions = sorted(positions)
    waits = waits_of(used_next(3, np.array(positions)), jobs_at({3: cursor}), NOW)
    ahead = [wait for wait, position in zip(waits.tolist(), positions, strict=True) if position >= cursor]
    assert ahead == sorted(ahead)
    assert np.isfinite(waits).all() and (waits >= 0).all()


def test_jobs_are_compared_by_their_pace_and_others_by_how_long_ago_they_were_used():
    jobs = jobs_at({0: 1000}, pace=10.0)
    fast = jobs_at({1: 1000}, pace=1000.0)
    for column in ("keys", "cursors", "times", "first_cursors", "first_times"):
        getattr(jobs, column)[1] = getattr(fast, column)[1]
    uses = np.concatenate(
        [used_next(0, np.array([1100])), used_next(1, np.array([1100])), np.array([used_at(NOW - 5)], dtype=np.uint64)]
    )
    assert np.allclose(waits_of(uses, jobs, NOW), [10.0, 0.1, 5.0])


def test_what_the_first_of_a_jobs_ranks_has_passed_by_is_kept_for_the_others_for_a_while():
    jobs = jobs_at({0: 1000})
    jobs.graces[0] = 100
    assert waits_of(used_next(0, np.array([1000, 999, 900])), jobs, NOW).tolist() == [0, 0, 0]
    assert waits_of(used_next(0, np.array([899])), jobs, NOW) > 1e8


def test_what_a_job_passed_by_goes_first_then_what_ended_jobs_wanted_and_before_all_what_nobody_needs():
    jobs = jobs_at({0: 1000})
    silent = jobs_at({1: 1000}, silent=3600)
    for column in ("keys", "cursors", "times"):
        getattr(jobs, column)[1] = getattr(silent, column)[1]
    near, passed, gone, never = (
        used_next(0, np.array([10_000_000])),
        used_next(0, np.array([999])),
        used_next(1, np.array([1001])),
        used_next(0, np.array([NEVER])),
    )
    waits = waits_of(np.concatenate([near, passed, gone, never]), jobs, NOW)
    assert sorted(waits.tolist()) == waits.tolist() and len(set(waits.tolist())) == 4


@brief
@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 1000))
def test_a_use_still_to_come_is_kept_where_it_is_sooner(old, new, cursor):
    here = np.array([cursor])
    joined = joined_uses(used_next(0, np.array([old])), used_next(0, np.array([new])), here)
    expected = min(old, new) if old > cursor else new
    assert joined.tolist() == used_next(0, np.array([expected])).tolist()
    other = joined_uses(used_next(1, np.array([old])), used_next(0, np.array([new])), here)
    assert other.tolist() == used_next(0, np.array([new])).tolist()
    assert joined_uses(np.array([5], dtype=np.uint64), np.array([9], dtype=np.uint64), here).tolist() == [9]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 4), st.integers(0, 1 << 30), st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.sampled_from([-1, 4, 7, 9])
)
def test_rows_are_chosen_as_by_looking_at_each(num_blocks, salt, free, own):
    rng = np.random.default_rng(salt)
    waits = rng.integers(0, 10, (3, 2, 8, num_blocks)).astype(float)
    waits[rng.random(waits.shape) < free] = np.inf
    chosen = choose_rows(waits, np.full(3, float(own)))
    for run, answer in zip(waits, chosen.tolist(), strict=True):
        free_rows = [[row for row in range(8) if np.isinf(run[choice, row]).all()] for choice in range(2)]
        if any(free_rows):
            choice, row = divmod(answer, 8)
            assert row in free_rows[choice] and len(free_rows[choice]) == max(map(len, free_rows))
        elif num_blocks > 1 and np.isinf(run).any():
            assert answer == SPLIT
        elif run.min(axis=2).max() <= own:
            assert answer == OUTSIDE
        else:
            choice, row = divmod(answer, 8)
            assert run[choice, row].min() == run.min(axis=2).max()
