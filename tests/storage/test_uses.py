"""Which blocks give way: those whose next use is furthest away, as far as it is known."""

from __future__ import annotations

import os
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.storage.job_table import JobTable
from shardload.storage.uses import (
    MAX_JOBS,
    NEVER,
    OUTSIDE,
    SPLIT,
    ExpectedUses,
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


def test_a_job_is_as_far_as_the_last_of_its_members_of_which_anything_was_heard_lately(tmp_path, monkeypatch):
    clock = [NOW]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    descriptor = os.open(tmp_path / "jobs", os.O_RDWR | os.O_CREAT)
    tables = [JobTable(descriptor), JobTable(descriptor)]
    assert [table.tell(7, cursor, 10, member) for member, (table, cursor) in enumerate(zip(tables, (500, 300)))] == [
        0,
        0,
    ]
    assert tables[0].tell(8, 900, 10, 0) == 1
    assert tables[0].read().cursors[:2].tolist() == [300, 900]
    tables[0].tell(7, 600, 10, 0)
    assert tables[0].read().cursors[0] == 300
    tables[1].tell(7, 550, 10, 1)
    assert tables[1].read().cursors[0] == 550
    clock[0] += 3600
    tables[0].tell(7, 700, 10, 0)
    assert tables[0].read().cursors[0] == 700
    # More members than there is room for: of one that is not known to be there nobody waits.
    for member in range(200):
        tables[0].tell(9, 1000 + member, 10, member)
    assert 1000 <= tables[0].read().cursors[2] <= 1199
    os.close(descriptor)


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
@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_a_use_still_to_come_is_kept_where_it_is_sooner(old, new, cursor, first):
    here = np.array([cursor])
    joined = joined_uses(used_next(0, np.array([old])), used_next(0, np.array([new])), here, first)
    expected = min(old, new) if old >= first and old != cursor else new
    assert joined.tolist() == used_next(0, np.array([expected])).tolist()
    other = joined_uses(used_next(1, np.array([old])), used_next(0, np.array([new])), here, first)
    assert other.tolist() == used_next(0, np.array([new])).tolist()
    assert joined_uses(np.array([5], dtype=np.uint64), np.array([9], dtype=np.uint64), here, first).tolist() == [9]


class Told:
    """Expectations of a job in epochs of 100 positions, of blocks by small numbers."""

    def __init__(self, first: int = 0) -> None:
        self.uses = ExpectedUses()
        self.uses.tell(3, first, first, 10**6)

    def add(self, *facts: tuple[int, int, int], near: int = 10) -> list[bool]:
        tags, current, following = np.array(facts).T
        return self.uses.add(tags.astype(np.uint64), current, following, near).tolist()

    def position(self, tag: int, how: str = "take") -> int | None:
        found = getattr(self.uses, how)(np.array([tag], dtype=np.uint64))
        if found is None or not found[0][0]:
            return None
        (position,) = (found[0] - used_next(3, np.array([0]))).tolist()
        assert used_next(3, np.array([position])) == found[0]
        return position


def test_uses_of_a_block_are_taken_one_by_one_though_more_were_announced():
    told = Told()
    told.add((7, 90, 110), (8, 91, 150))
    # The next epoch is announced before this one is read to its end.
    told.add((7, 110, 230))
    assert [told.position(7), told.position(7), told.position(7), told.position(8)] == [110, 230, None, 150]


def test_of_several_samples_in_a_block_the_next_one_counts():
    told = Told()
    told.add((7, 10, 140), (7, 30, 120))
    assert [told.position(7), told.position(7)] == [30, 120]


def test_what_comes_with_others_is_kept_for_who_will_look_for_it_and_what_is_fetched_for_its_next_use_after_that():
    told = Told()
    told.add((7, 10, 140))
    assert told.position(7, "next_of") == 10 and told.position(7, "next_of") == 10
    told.uses.come(np.array([7], dtype=np.uint64))
    assert told.position(7, "next_of") == 140
    assert told.position(7) == 140 and told.position(7, "next_of") is None


def test_an_announcement_that_comes_after_the_read_says_when_the_next_one_is():
    told = Told()
    told.add((1, 9, 100))
    assert told.position(1) == 100 and told.position(7) is None
    assert told.add((7, 10, 140)) == [True]
    # What follows the end of an epoch is announced twice, in the next one perhaps when it was read already.
    assert told.add((7, 10, 140), (1, 9, 100)) == [False, False]
    assert told.position(7, "next_of") is None and told.position(1, "next_of") is None
    # Of the next use it says nothing.
    assert told.add((7, 140, 220)) == [False] and told.position(7) == 220


def test_a_read_long_ago_that_nobody_told_of_says_nothing_of_what_is_announced_now():
    told = Told()
    assert told.position(7) is None
    assert told.add((7, 60, 140)) == [False] and told.position(7) == 140


def test_what_was_announced_and_never_read_is_forgotten_when_it_is_past():
    told = Told()
    told.add((7, 10, 140))
    told.uses.tell(3, 100, 100, 10**6)
    told.add((7, 140, 220))
    assert told.position(7) == 220 and told.position(7) is None


def test_an_order_that_begins_anew_is_taken_as_it_comes():
    told = Told(200)
    told.add((7, 210, 340))
    assert told.position(7) == 340
    told.uses.tell(3, 0, 0, 10**6)
    told.add((7, 110, 210))
    assert told.position(7) == 210


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
