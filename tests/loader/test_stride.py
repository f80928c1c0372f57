"""A batch sampler that already gives each rank its own batches is not split a second time in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, SequentialSampler, Subset

import shardload
from shardload.errors import ShardloadError


class Strided:
    """Takes every so many-th batch, as accelerate's BatchSamplerShard does."""

    def __init__(self, batches: Any, rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world
        self.batch_size, self.drop_last = batches.batch_size, batches.drop_last

    def __len__(self) -> int:
        return len(self.batches) // self.world

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(self.batches):
            if number % self.world == self.rank:
                yield batch


def sampler(numbers: Path, world: int = 1, rank: int = 0) -> shardload.ShardBatchSampler:
    return shardload.ShardSampler(shardload.open(numbers), world, rank).batch_sampler(16, read_ahead=0)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 2), (2, 3)])
def test_a_second_split_is_refused_within_ten_steps(numbers: Path, rank: int, world: int, num_workers: int) -> None:
    batches = sampler(numbers, world, rank)
    # Workers are given batches ahead, so that the training loop is not at the tenth when the sampler is.
    more = {"prefetch_factor": 1} if num_workers else {}
    loader = DataLoader(
        batches.sampler.dataset, batch_sampler=Strided(batches, rank, world), num_workers=num_workers, **more
    )
    with pytest.raises(ShardloadError, match="splits the batches over the ranks a second time"):
        for step, _ in enumerate(loader):
            assert step < 10


@pytest.mark.parametrize("num_workers", [0, 2])
def test_plain_use_is_not_taken_for_one(numbers: Path, num_workers: int) -> None:
    batches = sampler(numbers)
    for _ in range(2):
        assert len(list(DataLoader(batches.sampler.dataset, batch_sampler=batches, num_workers=num_workers))) == 63
    # Looking at the ids only, leaving early, skipping at the start, copying, and a dataset around the dataset.
    assert sum(len(ids) for ids in batches) == 1003
    for _ in batches:
        break
    iterator = iter(batches)
    for number in range(20):
        ids = next(iterator)
        if number > 5:
            batches.sampler.dataset.__getitems__(ids)
    kept = [list(ids) if number % 3 else ids for number, ids in enumerate(batches)]
    assert len(kept) == 63
    subset = Subset(batches.sampler.dataset, range(1003))
    assert len(list(DataLoader(subset, batch_sampler=batches, num_workers=num_workers))) == 63


def test_the_first_part_of_an_epoch_passed_over_by_a_framework(numbers: Path) -> None:
    """As skip_first_batches does."""
    batches = sampler(numbers)
    loader = DataLoader(batches.sampler.dataset, batch_sampler=SkipFirst(batches, 40))
    assert len(list(loader)) == 23


class SkipFirst:
    def __init__(self, batches: Any, skipped: int) -> None:
        self.batches, self.skipped = batches, skipped

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(self.batches):
            if number >= self.skipped:
                yield batch


def test_a_batch_sampler_around_another_sampler_is_refused(numbers: Path) -> None:
    """As Lightning makes it anew unless it is told not to."""
    with pytest.raises(TypeError, match=r"not with a SequentialSampler.*use_distributed_sampler=False"):
        shardload.ShardBatchSampler(SequentialSampler(range(9)), batch_size=4, drop_last=False)  # type: ignore[arg-type]
    around = shardload.ShardSampler(shardload.open(numbers), 2, 0)
    assert len(shardload.ShardBatchSampler(around, batch_size=16, drop_last=True)) == 31
    assert len(shardload.ShardBatchSampler(around, batch_size=16, drop_last=False)) == 32
