"""Best fit: the same bins as the textbook's, whatever the lengths."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order.best_fit import best_fit


def by_the_book(lengths: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing as it is told: look at all bins, take the fullest that the item fits."""
    bins, rooms = [0] * len(lengths), []
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        fitting = [(room, number) for number, room in enumerate(rooms) if room >= lengths[item]]
        if fitting:
            bins[item] = min(fitting)[1]
            rooms[bins[item]] -= lengths[item]
        else:
            bins[item] = len(rooms)
            rooms.append(capacity - lengths[item])
    return bins


@given(st.integers(1, 60).flatmap(lambda most: st.tuples(st.lists(st.integers(1, most), max_size=80), st.just(most))))
@settings(max_examples=300, deadline=None)
def test_the_bins_are_those_of_the_book(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    bins, openers = best_fit(np.array(lengths, dtype=np.int64), capacity)
    assert bins.tolist() == by_the_book(lengths, capacity)
    assert bins.dtype == openers.dtype == np.int64
    for number, opener in enumerate(openers.tolist()):
        mine = [lengths[item] for item in np.flatnonzero(bins == number)]
        assert sum(mine) <= capacity and lengths[opener] == max(mine) and bins[opener] == number


def test_golden() -> None:
    """Other bins would be other sequences: states of older versions would go on in the midst of something else."""
    bins, openers = best_fit(np.array([5, 8, 3, 3, 10, 1, 2, 7, 5, 4, 1, 9]), 10)
    assert bins.tolist() == [4, 2, 3, 5, 0, 1, 2, 3, 4, 5, 5, 1]
    assert openers.tolist() == [4, 11, 1, 7, 0, 9]
