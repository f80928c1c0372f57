"""torchdata's StatefulDataLoader over the batch sampler: exact with the same worker processes, refused with others."""

from __future__ import annotations

import copy

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

import shardload

# Torch has deprecated what this version of torchdata calls.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def make(path, num_workers, batch_size=32):
    dataset = shardload.open(path)
    batches = shardload.ShardSampler(dataset, seed=3).batch_sampler(batch_size)
    return StatefulDataLoader(dataset, batch_sampler=batches, collate_fn=shardload.collate, num_workers=num_workers)


def numbers_of(batches):
    return [batch["number"].tolist() for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 31])
def test_it_goes_on_with_the_next_batch(numbers, num_workers, done):
    want = numbers_of(make(numbers, 0))
    loader = make(numbers, num_workers)
    iterator = iter(loader)
    assert numbers_of(next(iterator) for _ in range(done)) == want[:done]
    state = copy.deepcopy(loader.state_dict())
    again = make(numbers, num_workers)
    again.load_state_dict(state)
    assert numbers_of(again) == want[done:]
    assert sorted(i for batch in numbers_of(again) for i in batch) == list(range(1003))


def test_another_batch_size_goes_on_and_other_workers_are_refused(numbers):
    loader = make(numbers, 2)
    iterator = iter(loader)
    first = numbers_of(next(iterator) for _ in range(5))
    state = copy.deepcopy(loader.state_dict())
    again = make(numbers, 2, batch_size=20)
    again.load_state_dict(state)
    assert sorted(i for batch in first + numbers_of(again) for i in batch) == list(range(1003))
    with pytest.raises(AssertionError):
        other = make(numbers, 1)
        other.load_state_dict(state)
        iter(other)
