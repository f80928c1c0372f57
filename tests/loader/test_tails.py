"""The ends of epochs, as the loader and the batch sampler deliver them."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardload

NUM_SAMPLES = 1003


def make(numbers: Path, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"batch_size": 16, "shuffle": True, "num_replicas": 1, "rank": 0, "with_ids": True}
    return shardload.ShardLoader(shardload.open(numbers), **settings | options)


@pytest.mark.parametrize("world", [1, 3])
def test_mask_gives_full_batches_and_every_sample_once(numbers: Path, world: int) -> None:
    seen: collections.Counter[int] = collections.Counter()
    for rank in range(world):
        loader = make(numbers, tail="mask", num_replicas=world, rank=rank)
        num_batches = 0
        for batch in loader:
            valid = batch["_valid"]
            assert valid.dtype == torch.bool and valid.shape == batch["number"].shape == (16,)
            assert batch["number"][valid].tolist() == batch["_sample_id"][valid].tolist()
            assert set(batch["_sample_id"][~valid].tolist()) <= {-1} and set(batch["_position"][~valid].tolist()) <= {
                -1
            }
            seen.update(batch["number"][valid].tolist())
            num_batches += 1
        assert num_batches == len(loader) == -(-NUM_SAMPLES // (16 * world))
        assert loader.stats().num_samples == len(range(rank, NUM_SAMPLES, world))
    assert seen == dict.fromkeys(range(NUM_SAMPLES), 1)


def double(sample: dict[str, Any]) -> dict[str, Any]:
    return {"number": sample["number"] * 2}


@pytest.mark.parametrize("transform", [None, double])
@pytest.mark.parametrize("collate", [None, shardload.collate])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_mask_under_a_dataloader(numbers: Path, transform, collate, num_workers: int) -> None:
    """With torch's collation too: each sample says whether it is one."""
    dataset = shardload.open(numbers, transform=transform)
    ours = make(numbers, tail="mask", num_replicas=3, rank=1, transform=transform, batch_size=50)
    batches = shardload.ShardSampler(dataset, 3, 1).batch_sampler(50, tail="mask")
    theirs = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=num_workers)
    count = 0
    for mine, their in zip(ours, theirs, strict=True):
        assert mine["number"].tolist() == their["number"].tolist()
        assert mine["_valid"].tolist() == their["_valid"].tolist()
        count += int(their["_valid"].sum())
    assert count == len(range(1, NUM_SAMPLES, 3))


def test_mask_needs_dicts(numbers: Path) -> None:
    dataset = shardload.open(numbers, transform=lambda sample: sample["number"])
    batches = shardload.ShardSampler(dataset, 1, 0).batch_sampler(16, tail="mask")
    with pytest.raises(TypeError, match="tail='mask' adds '_valid' to samples that are dicts"):
        dataset.__getitems__(next(iter(batches)))
    loader = make(numbers, tail="mask", with_ids=False, collate_fn=lambda samples: [s["number"] for s in samples])
    with pytest.raises(TypeError, match="tail='mask' adds fields to batches that are dicts"):
        next(iter(loader))


def test_carry_opens_the_next_epoch_with_what_is_left(numbers: Path) -> None:
    loaders = [make(numbers, tail="carry", num_replicas=3, rank=rank) for rank in range(3)]
    stream, lengths = [], []
    for _ in range(4):
        for batches in zip(*loaders, strict=True):
            rows = [row for batch in batches for row in zip(*(batch[k].tolist() for k in KEYS), strict=True)]
            assert len(rows) == 48
            stream += sorted(rows)
        assert len({len(loader) for loader in loaders}) == 1
        lengths.append(len(loaders[0]))
    # (epoch, position, id, number), in order without a gap
    assert [row[:2] for row in stream] == [divmod(i, NUM_SAMPLES) for i in range(len(stream))]
    assert all(row[2] == row[3] for row in stream)
    for epoch in range(3):
        assert sorted(row[2] for row in stream if row[0] == epoch) == list(range(NUM_SAMPLES))
    assert lengths == [20, 21, 21, 21] and len(stream) == 48 * sum(lengths)


KEYS = ["_epoch", "_position", "_sample_id", "number"]


@pytest.mark.parametrize("stop", [0, 1, 19, 20, 21, 22, 40, 41, 42])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_carry_goes_on_anywhere(numbers: Path, stop: int, world: int) -> None:
    """At the seam of two epochs too, with other ranks, and with a sampler that shares the state."""
    whole = make(numbers, tail="carry", batch_size=48)
    expected = [
        row for _ in range(5) for batch in whole for row in zip(batch["_epoch"].tolist(), batch["number"].tolist())
    ]
    first = make(numbers, tail="carry", batch_size=48)
    done = 0
    state = first.state_dict()
    while done < stop:
        for _ in first:
            done += 1
            state = first.state_dict()
            if done == stop:
                break
    rest: list[list[tuple[int, int]]] = []
    for rank in range(world):
        loader = make(numbers, tail="carry", batch_size=48 // world, num_replicas=world, rank=rank)
        loader.load_state_dict(json.loads(json.dumps(state)))
        assert loader.state_dict() == state
        rows = []
        left = loader.remaining
        for _ in range(2):
            batches = [list(zip(b["_epoch"].tolist(), b["number"].tolist())) for b in loader]
            assert len(batches) == (left or len(loader))
            left = 0
            rows += batches
        rest.append([row for batch in rows for row in batch])
    merged = [row for rows in zip(*rest, strict=True) for row in rows]
    assert merged == expected[48 * done : 48 * done + len(merged)] and len(merged) >= 48 * 20


def test_carry_counts_on_in_the_same_run_whether_set_epoch_is_called_or_not(numbers: Path) -> None:
    plain, told = (make(numbers, tail="carry", batch_size=100) for _ in range(2))
    for epoch in range(3):
        told.set_epoch(epoch)
        told.set_epoch(epoch)
        assert told.state_dict() == plain.state_dict() and told.remaining == len(told)
        assert [b["number"].tolist() for b in told] == [b["number"].tolist() for b in plain]
        assert (len(told), told.remaining) == (len(plain), 0)
    # Another epoch is another place: what was left is not carried there.
    told.set_epoch(9)
    assert next(iter(told))["_epoch"].tolist() == [9] * 100


def test_a_carried_rest_is_gone_on_with_under_another_tail(numbers: Path) -> None:
    loader = make(numbers, tail="carry", batch_size=100)
    first = [i for batch in loader for i in batch["number"].tolist()]
    short = make(numbers, tail="short", batch_size=100)
    short.load_state_dict(loader.state_dict())
    assert sorted(first + [i for batch in short for i in batch["number"].tolist()]) == list(range(NUM_SAMPLES))
    drop = make(numbers, tail="drop", batch_size=100)
    drop.load_state_dict(loader.state_dict())
    assert next(iter(drop))["_epoch"].tolist() == [1] * 100


def keyed(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"number": sample["number"], "draw": rng.random()}


def test_a_carried_sample_has_the_generator_of_its_own_epoch(numbers: Path) -> None:
    """So that it is augmented in the same way wherever the batches are cut."""
    draws: list[dict[tuple[int, int], float]] = []
    for batch_size in (100, 59):
        loader = make(numbers, tail="carry", batch_size=batch_size, transform=keyed)
        batches = [batch for _ in range(3) for batch in loader]
        rows = [zip(*(b[k].tolist() for k in ("_epoch", "number", "draw")), strict=True) for b in batches]
        draws.append({(epoch, number): draw for row in rows for epoch, number, draw in row})
    shared = draws[0].keys() & draws[1].keys()
    assert len(shared) > 2900 and all(draws[0][key] == draws[1][key] for key in shared)
    dataset = shardload.open(numbers, transform=keyed)
    batches = shardload.ShardSampler(dataset, 1, 0).batch_sampler(100, tail="carry")
    for _ in range(2):
        under_torch = list(DataLoader(dataset, batch_sampler=batches))
    for number, draw in zip(under_torch[0]["number"].tolist(), under_torch[0]["draw"].tolist(), strict=True):
        assert draw in (draws[0].get((0, number)), draws[0].get((1, number)))
    loader = make(numbers, tail="carry", batch_size=100, transform=keyed)
    for _ in range(2):
        ours = list(loader)
    assert [b["draw"].tolist() for b in ours] == [b["draw"].tolist() for b in under_torch]


def test_epochs_end_the_run(numbers: Path) -> None:
    loader = make(numbers, epochs=2)
    assert sum(1 for _ in range(2) for _ in loader) == 2 * len(loader)
    with pytest.raises(shardload.LoaderClosedError, match="epochs=2, and all of them"):
        iter(loader)
    late = make(numbers, epochs=2)
    late.load_state_dict(loader.state_dict())
    with pytest.raises(shardload.LoaderClosedError, match="epochs=2"):
        iter(late)
    late.load_state_dict(make(numbers).state_at(60))
    assert sum(1 for _ in late) == 2
    with pytest.raises(ValueError, match="epochs must be an integer from 1"):
        make(numbers, epochs=0)
