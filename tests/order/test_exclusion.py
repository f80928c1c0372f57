"""Orders without some samples, against lists from which those were taken."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.order.blocks import Blocked, BlockShuffle
from shardload.order.epoch import InOrder, Permuted, Reseed
from shardload.order.exclusion import Exclude, left_out

KINDS = {"full": Permuted, "none": InOrder, "block": lambda n: Blocked(n, BlockShuffle(7, 3))}


@st.composite
def cases(draw):
    num_samples = draw(st.integers(2, 60))
    first = draw(st.sets(st.integers(0, num_samples - 1), max_size=num_samples - 1))
    second = draw(st.sets(st.integers(0, num_samples - 1), max_size=max(0, num_samples - 1 - len(first))))
    reseeds = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, num_samples), st.integers(0, 9)), max_size=3))
    whole = KINDS[draw(st.sampled_from(sorted(KINDS)))](num_samples)
    return whole, first, second, [Reseed(*one) for one in sorted(reseeds)]


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_the_others_come_in_their_order(case):
    whole, first, second, reseeds = case
    orders = left_out(whole, [Exclude(ids=sorted(first)), Exclude(ids=list(second))], 5)
    everything = whole.order(1, 5, reseeds)(np.arange(whole.num_positions)).tolist()
    left = [i for i in everything if i not in first | second]
    assert orders.num_positions == len(left) and orders.num_places == whole.num_positions
    assert orders.order(1, 5, reseeds)(np.arange(len(left))).tolist() == left
    assert orders.order(1, 5, reseeds)(np.arange(len(left))[::-2]).tolist() == left[::-2]
    where = orders.inverse(1, 5, reseeds)(np.array(everything)).tolist()
    assert where == [left.index(i) if i in left else -1 for i in everything]
    # From a state of any form each form goes on with what is left of what had not come yet.
    forms = list(orders.forms())
    assert forms[-1] is whole and len(forms) <= 3
    for form in forms:
        mine = form.order(1, 5, reseeds)(np.arange(form.num_positions)).tolist()
        for position in range(form.num_positions + 1):
            place = form.stored(1, position, 5, reseeds, 1)
            assert position <= place <= whole.num_positions
            assert form.restored(1, place, 5, reseeds, 1) == position
            later = orders.restored(1, place, 5, reseeds, 1)
            assert left[later:] == [i for i in mine[position:] if i in left]


@settings(max_examples=40, deadline=None)
@given(num_samples=st.integers(2, 90), data=st.data())
def test_windows_end_where_those_of_all_samples_do(num_samples, data):
    whole = Blocked(num_samples, BlockShuffle(6, 4))
    ids = data.draw(st.sets(st.integers(0, num_samples - 1), min_size=1, max_size=num_samples - 1))
    orders = left_out(whole, sorted(ids), 2)
    inside = whole.order(1, 2)(np.arange(num_samples)).tolist()
    kept = [position for position, sample_id in enumerate(inside) if sample_id not in ids]
    end, whole_end = orders.window_end(1, 2), whole.window_end(1, 2)
    ends = [whole_end(place) for place in kept]
    for position, there in enumerate(ends):
        assert end(position) == sum(one < there for one in kept) > position


def test_what_is_told():
    one = Exclude(ids=[9, 3, range(4, 7), 5], positions=[(1, 0, 4), (0, 2, 3), (1, 0, 4)])
    assert one.ids == (range(3, 7), range(9, 10)) and one.positions == ((0, 2, 3), (1, 0, 4))
    assert Exclude(range(4)) == Exclude(np.arange(4, dtype=np.uint8)) == Exclude([range(2), 2, 3])
    assert Exclude.from_facts(one.facts()) == one == pickle.loads(pickle.dumps(one)) and hash(one)
    assert Exclude.from_facts({"ids": [3, [4, 6]]}) == Exclude([3, 4, 5])
    assert one.facts() == {"ids": [[3, 7], [9, 10]], "positions": [[0, 2, 3], [1, 0, 4]]}


def test_positions_are_of_a_run_with_what_came_before():
    whole = Permuted(50)
    first = whole.order(2, 7)(np.arange(10, 15))
    once = left_out(whole, Exclude(positions=[(2, 10, 15)]), 7)
    assert once.ids.tolist() == sorted(first.tolist())
    second = once.order(2, 7)(np.arange(8, 12))
    twice = left_out(whole, [Exclude(positions=[(2, 10, 15)]), Exclude(positions=[(2, 8, 12)])], 7)
    assert twice.ids.tolist() == sorted([*first, *second])
    assert [form.name for form in twice.forms()] == [twice.name, once.name, True]
    again = pickle.loads(pickle.dumps(twice))
    assert again.name == twice.name == left_out(whole, twice.ids, 0).name and "without 9 samples" in twice.name


@pytest.mark.parametrize(
    ("excludes", "message"),
    [
        ([50], "there is no sample 50: there are 50"),
        (np.array([-1]), "each id must be an integer from 0"),
        ([range(3, 60)], "there is no sample 50"),
        (range(50), "leaves none of the 50"),
        ([range(0, 9, 2)], "no range of ids"),
        (["7"], "each id must be an integer"),
        (np.array([True, False]), "each id must be an integer from 0, not True"),
        (torch.tensor([True, False]), r"each id must be an integer from 0, not tensor\(True\)"),
        (7, "takes ids, or an Exclude, or a list of them, not 7"),
        (Exclude(positions=[(0, 48, 51)]), "positions 48 to 51 are not in an epoch of 50"),
        ([Exclude([3]), 4], "not both in one list"),
    ],
)
def test_what_cannot_be_left_out(excludes, message):
    with pytest.raises(ValueError, match=message):
        left_out(Permuted(50), excludes, 0)


@pytest.mark.parametrize("kind", [torch.tensor, iter, set, lambda ids: (i for i in ids)])
def test_ids_in_other_forms(kind):
    assert left_out(Permuted(5), kind([4, 2, 3]), 0).name == left_out(Permuted(5), [2, 3, 4], 0).name


def test_what_says_nothing():
    for nothing in ((), [], np.array([], dtype=np.int64), range(0)):
        assert left_out(Permuted(5), nothing, 0) == Permuted(5)
    for wrong in ([(0, 4, 4)], [(0, 1)], [(0, -1, 2)], [5, 6], 5):
        with pytest.raises(ValueError, match="positions"):
            Exclude(positions=wrong)
    for facts in (7, {"id": [1]}, {"ids": 4}, {"ids": [[1]]}, {"positions": [[1, 2]]}, {"ids": [None]}):
        with pytest.raises(ValueError, match=r"exclude|positions|unpack|expected"):
            Exclude.from_facts(facts)
