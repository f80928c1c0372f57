"""The runner of `python -m bench`: what it makes of the figures of arms. The cases measure, and are no tests."""

from __future__ import annotations

import itertools
import re

import pytest

from bench.__main__ import measure, text
from bench.case import NONE, Line
from bench.cases import CASES


def arm(*figures: float):
    """An arm that returns these figures, over and over."""
    turns = itertools.cycle(figures)
    return lambda: next(turns)


def shown(found: dict) -> str:
    return text({"case": "P0", "line": "some"} | found)


def test_two_arms_give_the_ratio_of_neighbours():
    # Both drift together: the ratio of neighbours is steady where that of medians would not be.
    arms = {"ours": arm(2e-6, 4e-6, 6e-6), "limit": arm(1e-6, 2e-6, 3e-6)}
    less = measure(Line("some", arms, True), (3.0, 1.5), 6)
    assert (less["value"], less["at_most"], less["aim"]) == (2.0, 3.0, 1.5)
    more = measure(Line("some", arms, False), (3.0, 5.0), 6)
    assert (more["value"], more["at_least"]) == (0.5, 3.0)
    assert less["arms"] == {"ours": 4.0, "limit": 2.0}


def test_one_arm_gives_a_figure_in_the_unit_of_its_limit():
    found = measure(Line("some", {"held": arm(0.02)}, True, unit="%"), (0.05, 0.01), 5)
    assert (found["figure"], found["value"], found["at_most"], found["aim"]) == ("%", 2.0, 5.0, 1.0)
    assert re.search(r"2\.00 % .*at most 5, aim 1", shown(found))


@pytest.mark.parametrize(
    ("figures", "repeats", "claim"),
    [
        ((1.0, 1.1), 6, True),
        ((1.0, 1.5), 6, False),
        ((1.0, 1.1), 4, False),
    ],
)
def test_unsteady_or_few_figures_are_no_claim(figures, repeats, claim):
    found = measure(Line("some", {"ours": arm(*figures), "limit": arm(1.0)}, True), (2.0, 1.0), repeats)
    assert found["claim"] is claim
    assert ("no claim" in shown(found)) is not claim


def test_a_figure_far_below_its_limit_need_not_be_steady():
    line = Line("some", {"stalled": arm(0.0, 0.004)}, True, unit="%")
    assert measure(line, (0.05, 0.01), 6)["claim"]
    assert not measure(line, (0.01, 0.001), 6)["claim"]


def test_the_first_arm_is_compared_with_the_best_of_those_named():
    arms = {"ours": arm(2.0), "second": arm(9.0), "slow": arm(8.0), "fast": arm(6.0), "shown": arm(1.0, 5.0)}
    found = measure(Line("some", arms, False, best_of=("slow", "fast")), (2.0, 5.0), 6)
    # What is only shown need not be steady.
    assert (found["value"], found["facts"]["best"], found["at_least"], found["claim"]) == (3.0, "fast", 2.0, True)
    assert list(found["arms"]) == list(arms)
    unsteady = measure(Line("some", arms | {"fast": arm(6.0, 4.0)}, False, best_of=("slow", "fast")), (2.0, 5.0), 6)
    assert not unsteady["claim"]


def test_a_line_for_comparison_shows_no_limit():
    found = measure(Line("some", {"ours": arm(3.0), "other": arm(1.0)}, True), NONE, 5)
    assert found["at_most"] is None and "at most" not in shown(found)


def test_cases_have_their_own_names():
    assert all(re.fullmatch(r"P\d+", name) and name == case.name for name, case in CASES.items())
