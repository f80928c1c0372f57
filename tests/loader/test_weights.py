"""Weighted sampling through loaders and samplers: keyed by place, so that it stops and goes on as any order does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import shardload
from shardload.errors import StateMismatchError

NUM_SAMPLES = 1003
WEIGHTS = np.arange(NUM_SAMPLES) % 10


def make(numbers: Path, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"batch_size": 16, "shuffle": True, "seed": 6, "num_replicas": 1, "rank": 0}
    settings |= {"tail": "carry", "weights": WEIGHTS, "with_ids": True, "prefetch_batches": 0}
    return shardload.ShardLoader(shardload.open(numbers), **settings | options)


def places(batches: list[dict[str, Any]]) -> dict[tuple[int, int], int]:
    columns = [(batch["_epoch"], batch["_position"], batch["number"]) for batch in batches]
    return {(int(e), int(p)): int(n) for column in columns for e, p, n in zip(*column, strict=True)}


def test_a_resume_at_any_size_draws_the_same(numbers: Path) -> None:
    loader = make(numbers, tail="short")
    whole = places([batch for _ in range(3) for batch in loader])
    assert sorted(whole) == [(epoch, position) for epoch in range(3) for position in range(NUM_SAMPLES)]
    counts = np.bincount(list(whole.values()), minlength=NUM_SAMPLES)
    assert (counts[WEIGHTS == 0] == 0).all() and counts[WEIGHTS == 9].mean() > 4 > counts[WEIGHTS == 2].mean()
    found: dict[tuple[int, int], int] = {}
    state = None
    for world, batch_size, num_batches in ((3, 7, 20), (1, 50, 9), (4, 5, 30), (2, 16, 20)):
        for rank in range(world):
            loader = make(numbers, num_replicas=world, rank=rank, batch_size=batch_size)
            if state is not None:
                loader.load_state_dict(state)
            batches: list[Any] = []
            while len(batches) < num_batches:
                batches += [batch for _, batch in zip(range(num_batches - len(batches)), loader, strict=False)]
            part = places(batches)
            assert not part.keys() & found.keys()
            found |= part
        state = loader.state_dict()
    assert len(found) > 2 * NUM_SAMPLES
    assert all(whole[place] == number for place, number in found.items())


def test_a_sampler_draws_the_same(numbers: Path) -> None:
    dataset = shardload.open(numbers)
    options: dict[str, Any] = {"num_replicas": 2, "rank": 1, "seed": 6}
    sampler = shardload.ShardSampler(dataset, **options, weights=WEIGHTS)
    loaded = DataLoader(dataset, batch_sampler=sampler.batch_sampler(16, tail="drop"), collate_fn=shardload.collate)
    loader = make(numbers, **options, tail="drop")
    assert [batch["number"].tolist() for batch in loaded] == [batch["number"].tolist() for batch in loader]
    assert sampler.state_dict() == loader.state_dict()
    loader.load_state_dict(sampler.state_at(3, 16))
    with pytest.raises(ValueError, match="all weights are 0"):
        shardload.ShardSampler(dataset, **options, weights=np.zeros(NUM_SAMPLES))


def test_a_state_names_its_weights(numbers: Path) -> None:
    state = make(numbers).state_at(4)
    make(numbers, weights=WEIGHTS * 3.0).load_state_dict(state)
    for other in (WEIGHTS + 1, None):
        with pytest.raises(StateMismatchError, match="saved with shuffle 'weighted"):
            make(numbers, weights=other).load_state_dict(state)
    loader = make(numbers)
    loader.load_state_dict(state, reseed=8)
    assert places([next(iter(loader))]).keys() == {(0, 64 + i) for i in range(16)}


def test_refused(numbers: Path) -> None:
    with pytest.raises(ValueError, match="goes with shuffle=True"):
        make(numbers, shuffle=False)
    with pytest.raises(ValueError, match=r"of shape \(1003,\), one for each sample"):
        make(numbers, weights=[1, 2])
    view = shardload.open(numbers)[:3]
    assert set(
        places(list(shardload.ShardLoader(view, 1, shuffle=True, weights=[0, 1, 0], with_ids=True))).values()
    ) == {1}
