"""Selections: whatever is chosen from whatever, the ids are those that lists would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order.selection import chosen_by_hash, ids_at, resolve_indices, select_from, selection_digest


@st.composite
def selections(draw, size):
    """A slice of so many, as a range, or any of them as an array."""
    if not size or draw(st.booleans()):
        return range(size)[draw(st.slices(size))]
    return np.array(draw(st.lists(st.integers(0, size - 1), max_size=30)), dtype=np.int64)


@given(st.data())
def test_selections_of_selections_are_those_of_lists(data):
    selection = data.draw(selections(data.draw(st.integers(0, 40))))
    listed = list(selection)
    for _ in range(3):
        chosen = data.draw(selections(len(listed)))
        selection, listed = select_from(selection, chosen), [listed[i] for i in chosen]
        assert list(selection) == listed and len(selection) == len(listed)
        places = np.arange(len(listed))[::-1]
        assert ids_at(selection, places).tolist() == listed[::-1]


@given(selections(40), selections(40))
def test_digests_name_the_ids_and_their_order(one, other):
    as_arrays = [np.array(list(selection), dtype=np.int64) for selection in (one, other)]
    assert selection_digest(one) == selection_digest(as_arrays[0])
    assert (selection_digest(one) == selection_digest(other)) == (list(one) == list(other))


def test_golden_digests():
    assert selection_digest(range(3, 11, 4)) == "3+4x2"
    assert selection_digest(np.array([7])) == "7+1x1" == selection_digest(range(7, 8, 9))
    assert selection_digest(np.array([5, 1, 2])) == "6be350a37a590a559eecac0bc3796bc17f97983364cad36091601c56175e34c7"


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.999, 1.0])
def test_a_fraction_is_chosen_whatever_the_numbers_look_like(fraction):
    size = 200_000
    for numbers in (np.arange(size), np.arange(size) << 20, np.random.default_rng(0).integers(0, 1 << 62, size)):
        chosen = [chosen_by_hash(numbers.astype(np.uint64), fraction, seed) for seed in (0, 1)]
        for some in chosen:
            # Five standard deviations.
            assert abs(int(some.sum()) - fraction * size) <= 5 * (size * fraction * (1 - fraction)) ** 0.5
        both = int((chosen[0] & chosen[1]).sum())
        assert abs(both - fraction**2 * size) <= 5 * (size * fraction**2 * (1 - fraction**2)) ** 0.5


def test_golden_choice():
    chosen = chosen_by_hash(np.arange(200, dtype=np.uint64), 0.05, seed=3)
    assert np.flatnonzero(chosen).tolist() == [6, 9, 36, 51, 53, 58, 77, 136, 145, 197]


@settings(max_examples=50)
@given(st.lists(st.integers(-7, 6)), st.sampled_from([list, tuple, np.array]))
def test_indices_count_from_either_end(indices, kind):
    given_as = np.array(indices, dtype=np.int32) if kind is np.array else kind(indices)
    assert resolve_indices(given_as, 7, "there").tolist() == [i % 7 for i in indices]


@pytest.mark.parametrize("indices", [[7], [0, -8], np.array([1, 99]), [1 << 70]])
def test_indices_outside_are_named(indices):
    with pytest.raises(IndexError, match="out of range"):
        resolve_indices(indices, 7, "there")


@pytest.mark.parametrize("indices", [[1.0], ["1"], [None], np.array([1.5])])
def test_what_is_no_index(indices):
    with pytest.raises(TypeError, match="integers"):
        resolve_indices(indices, 7, "there")


@pytest.mark.parametrize(
    "mask", [[True, False], np.array([True, False]), torch.tensor([True, False])], ids=["list", "array", "tensor"]
)
def test_a_mask_is_no_list_of_ones_and_zeros(mask):
    with pytest.raises(TypeError, match="not a mask of bools"):
        resolve_indices(mask, 7, "there")


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), float("inf"), (0.8, 0.2), "0.1"])
def test_what_is_no_fraction(fraction):
    with pytest.raises(ValueError, match="fraction"):
        chosen_by_hash(np.arange(3, dtype=np.uint64), fraction, 0)


def test_ids_are_not_those_that_others_may_change() -> None:
    given = np.arange(5)
    found = resolve_indices(given, 10, "here")
    given[:] = 7
    assert found.tolist() == [0, 1, 2, 3, 4]
