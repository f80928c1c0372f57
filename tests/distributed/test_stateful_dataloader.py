"""Our samplers inside torchdata's StatefulDataLoader: its state holds ours, and a resume is exact."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

import shardload

torchdata = pytest.importorskip("torchdata.stateful_dataloader")

# What torchdata does with newer versions of torch is not ours.
pytestmark = pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning", "ignore::FutureWarning")

NUM_BATCHES = 16
"""Of 1,003 samples in batches of 64."""


def make(numbers: Path, kind: str, **options: Any) -> Any:
    sampler = shardload.ShardSampler(shardload.open(numbers), 1, 0, seed=5)
    how = (
        {"batch_sampler": sampler.batch_sampler(64, read_ahead=2)}
        if kind == "batches"
        else {"sampler": sampler, "batch_size": 64}
    )
    return torchdata.StatefulDataLoader(sampler.dataset, **how, **options)


def saved(state: Any) -> Any:
    """The state as a checkpoint brings it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def ids(batches: Any, count: int | None = None) -> list[list[int]]:
    taken = batches if count is None else (next(batches) for _ in range(count))
    return [batch["number"].tolist() for batch in taken]


@pytest.fixture(scope="module")
def expected(numbers: Path) -> list[list[list[int]]]:
    """The batches of three epochs."""
    loader = shardload.ShardLoader(shardload.open(numbers), 64, shuffle=True, seed=5, tail="short")
    return [ids(loader) for _ in range(3)]


def check(numbers: Path, expected: list[list[list[int]]], kind: str, stop: int, **options: Any) -> None:
    """Stops after so many batches, resumes, stops again three batches later, resumes again, and runs to the end."""
    first = make(numbers, kind, **options)
    batches = iter(first)
    assert ids(batches, stop) == expected[0][:stop]
    second = make(numbers, kind, **options)
    second.load_state_dict(saved(first.state_dict()))
    more = min(3, NUM_BATCHES - stop)
    batches = iter(second)
    assert ids(batches, more) == expected[0][stop : stop + more]
    third = make(numbers, kind, **options)
    third.load_state_dict(saved(second.state_dict()))
    left = expected[0][stop + more :]
    if left:
        assert ids(third) == left
    assert ids(third) == expected[1]
    assert ids(third) == expected[2]


@pytest.mark.parametrize("kind", ["batches", "samples"])
@pytest.mark.parametrize("stop", [0, 1, 7, NUM_BATCHES - 1, NUM_BATCHES])
def test_in_the_main_process(numbers: Path, expected, kind: str, stop: int) -> None:
    check(numbers, expected, kind, stop)


@pytest.mark.parametrize(("kind", "stop"), [("batches", 5), ("samples", 11)])
@pytest.mark.parametrize("persistent", [False, True])
def test_with_workers(numbers: Path, expected, kind: str, stop: int, persistent: bool) -> None:
    """Workers are given batches ahead: what was delivered counts, not what was issued."""
    check(numbers, expected, kind, stop, num_workers=2, persistent_workers=persistent)


def test_a_state_in_the_batch_sampler_is_the_delivered_one(numbers: Path, expected) -> None:
    """It can be taken out, and gone on with by the loader or other ranks."""
    loader = make(numbers, "batches", num_workers=1)
    ids(iter(loader), 6)
    inner = loader.state_dict()["_snapshot"]["_main_snapshot"]["_index_sampler_state"]
    again = shardload.ShardLoader(shardload.open(numbers), 64, shuffle=True, seed=5, tail="short")
    again.load_state_dict(inner)
    assert ids(again) == expected[0][6:]


def test_another_number_of_workers_is_refused_by_torchdata(numbers: Path) -> None:
    """Its limit, which the README tells."""
    loader = make(numbers, "batches", num_workers=1)
    ids(iter(loader), 6)
    other = make(numbers, "batches", num_workers=2)
    other.load_state_dict(loader.state_dict())
    with pytest.raises(AssertionError):
        iter(other)
