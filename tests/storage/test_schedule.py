from __future__ import annotations

import bisect
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardload.storage.answers import Kind
from shardload.storage.schedule import FINAL, RetryBudget, RetryPolicy, next_wait

POLICY = RetryPolicy()
SECONDS = st.floats(0, 200)
DRAWS = st.floats(0, 1)


@given(
    st.sampled_from(get_args(Kind)),
    st.integers(1, 30),
    st.integers(0, 30),
    SECONDS,
    DRAWS,
    st.one_of(st.none(), SECONDS),
)
def test_waits(kind: Kind, attempts: int, counted: int, left: float, draw: float, after: float | None) -> None:
    wait = next_wait(POLICY, kind, attempts, counted, left, draw, after)
    if wait is None:
        over = counted >= POLICY.max_retries and kind != "unreachable"
        assert kind in FINAL or over or left <= 0.01 or (after or 0) >= left
        return
    assert kind not in FINAL and (after or 0) <= wait <= left
    assert kind == "unreachable" or counted < POLICY.max_retries
    # Full jitter: from nothing up to three times as much with every retry.
    assert wait - (after or 0) <= min(10, 0.1 * 3 ** (attempts - 1)) + 1e-9
    assert next_wait(POLICY, kind, attempts, counted, left, 0.0, after) == (after or 0)


def test_waits_by_hand() -> None:
    def waits(draw: float, left: float = 60.0) -> list[float]:
        found = [next_wait(POLICY, "transient", n + 1, n, left, draw) for n in range(5)]
        return [round(wait, 3) for wait in found if wait is not None]

    assert waits(1.0) == [0.1, 0.3, 0.9, 2.7, 8.1] and waits(0.5) == [0.05, 0.15, 0.45, 1.35, 4.05]
    assert waits(1.0, left=4.0) == [0.1, 0.3, 0.9, 2.0, 2.0], "half of what is left is kept for the attempt"
    assert next_wait(POLICY, "unreachable", 18, 0, 60.0, 1.0) == 10.0
    assert next_wait(POLICY, "throttled", 1, 0, 60.0, 1.0, 7.0) == 7.1
    assert next_wait(POLICY, "throttled", 1, 0, 7.0, 1.0, 7.0) is None


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=200))
def test_budget(steps: list[tuple[float, bool]]) -> None:
    """Retries of any ten seconds are at most two, or a quarter of the requests of them and of the second before."""
    budget = RetryBudget(share=0.25, always=2, window_seconds=10.0)
    now, requests, taken = 0.0, [], []
    for step, is_retry in steps:
        now += step
        if not is_retry:
            budget.add_request(now)
            requests.append(now)
            continue
        wait = budget.take(now)
        if not wait:
            taken.append(now)
        else:
            # So long nothing was free, and then something is.
            assert 0.01 <= wait <= 10.0 + 1e-9
        recent = len(requests) - bisect.bisect_left(requests, math.floor(now - 11))
        assert sum(time > now - 10 for time in taken) <= max(2, recent // 4)
        if wait:
            assert sum(time > now - 10 for time in taken) >= 2


def test_a_budget_is_refilled() -> None:
    budget = RetryBudget(share=0.1, always=2, window_seconds=10.0)
    assert [budget.take(0.0), budget.take(4.0), budget.take(5.0), budget.take(9.5)] == [0, 0, 5, 0.5]
    assert budget.take(10.0) == 0 and budget.take(11.0) == 3
    for _ in range(40):
        budget.add_request(11.5)
    assert [budget.take(11.5), budget.take(11.5), budget.take(12.0)] == [0, 0, 2]
    assert budget.take(40.0) == 0 == budget.take(40.0) and budget.take(40.0) == 10


def test_options() -> None:
    made = RetryPolicy.from_options({"deadline": "2min", "progress_timeout": 3, "retries": 0, "first_wait": "5 ms"})
    assert made == RetryPolicy(120.0, 3.0, 0, 0.005) and RetryPolicy.from_options({}) == POLICY
    for options, text in (
        ({"dead_line": 3}, "no option 'dead_line': there are deadline, progress_timeout, retries, first_wait"),
        ({"deadline": 0}, r"\['deadline'\] must be a time above 0, not 0"),
        ({"deadline": "soon"}, r"\['deadline'\] must be a positive time such as .* not 'soon'"),
        ({"retries": -1}, r"\['retries'\] must be an integer from 0, not -1"),
        ({"retries": 1.5}, r"\['retries'\] must be an integer from 0, not 1.5"),
    ):
        with pytest.raises(ValueError, match=text):
            RetryPolicy.from_options(options)
