"""Chains of resumes over other batch sizes, ranks, paths and ways to take a state, against the contract's arithmetic.

The model below is written from the contract and not from the code: from cursor p a global batch is positions [p, p + G),
and rank r of R takes p + r, p + r + R, ... It knows the order of an epoch only from a single process that was never stopped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

import shardload
from shardload.order.cursor import Tail

SIZES = (97, 331)
SEED = 21

Batch = list[tuple[int, int]]
"""Pairs of epoch and sample id, without fillers."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Datasets by their number of samples. Read only."""
    found = {}
    for size in SIZES:
        found[size] = tmp_path_factory.mktemp("chain") / "dataset"
        with shardload.ShardWriter(found[size], {"number": "int64"}, shard_size="8KiB") as writer:
            for i in range(size):
                writer.write({"number": i})
    return found


@functools.lru_cache(maxsize=4)
def datasets(path: Path) -> shardload.ShardDataset:
    return shardload.open(path)


@functools.lru_cache(maxsize=64)
def order(path: Path, epoch: int) -> list[int]:
    sampler = shardload.ShardSampler(datasets(path), 1, 0, seed=SEED)
    sampler.set_epoch(epoch)
    return list(sampler)


class Model:
    """What all ranks must be given, one global batch after the other."""

    def __init__(self, path: Path, num_samples: int, tail: str) -> None:
        self.path, self.num_samples, self.tail = path, num_samples, tail
        self.epoch, self.cursor = 0, 0

    def left(self, size: int) -> int:
        """Global batches of a size that are left of the epoch."""
        left = self.num_samples - self.cursor
        return left // size if self.tail in ("drop", "carry") else -(-left // size)

    def normalise(self, size: int) -> None:
        """A place that no batch follows in its epoch is one in the next; with `carry` what is left goes there too."""
        if not self.left(size):
            rest = self.num_samples - self.cursor if self.tail == "carry" else 0
            self.epoch, self.cursor = self.epoch + 1, -rest

    def place(self) -> tuple[int, int]:
        """Epoch and position as a state tells them: what was carried over is still of the epoch before."""
        if self.cursor < 0:
            return self.epoch - 1, self.cursor + self.num_samples
        return self.epoch, self.cursor

    def take(self, batch_size: int, world: int) -> list[Batch]:
        """Returns the next batch of every rank."""
        size = batch_size * world
        stop = self.cursor + size
        if self.tail == "short":
            stop = min(stop, self.num_samples)
        elif self.tail == "pad" and stop > self.num_samples:
            stop = self.num_samples + -(self.num_samples - self.cursor) % world
        ranks = [
            [self.pair(p) for p in range(self.cursor + rank, stop, world) if p < self.num_samples or self.tail == "pad"]
            for rank in range(world)
        ]
        self.cursor = min(self.cursor + size, self.num_samples)
        if not self.left(size) and self.tail != "carry":
            self.cursor = self.num_samples
        return ranks

    def pair(self, position: int) -> tuple[int, int]:
        """Epoch and sample at a position; beyond the end `pad` repeats the epoch's first ones."""
        epoch = self.epoch - (position < 0)
        return epoch, order(self.path, epoch)[position % self.num_samples]


class Run:
    """One rank of one leg, by either path."""

    def __init__(self, path: Path, kind: str, tail: str, batch_size: int, world: int, rank: int | None) -> None:
        dataset, self.kind = datasets(path), kind
        if kind == "batches":
            sampler = shardload.ShardSampler(dataset, world, rank, seed=SEED)
            self.order: Any = sampler.batch_sampler(batch_size, read_ahead=0, tail=tail)  # type: ignore[arg-type]
            return
        options: dict[str, Any] = {"prefetch_batches": 0 if kind == "loader" else 3, "with_ids": True}
        options |= {"shuffle": True, "seed": SEED, "num_replicas": world, "rank": rank, "tail": tail}
        self.order = shardload.ShardLoader(dataset, batch_size, **options)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.order:
            if self.kind == "batches":
                num_valid = len(batch) if batch.num_valid is None else batch.num_valid
                yield list(zip(batch.epochs, batch, strict=True))[:num_valid]
            else:
                ids = batch["_sample_id"]
                assert batch["number"][ids >= 0].tolist() == ids[ids >= 0].tolist()
                epochs = batch["_epoch"].tolist()
                yield [(epoch, i) for epoch, i in zip(epochs, ids.tolist(), strict=True) if i >= 0]


LEG = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 48),
        "world": st.integers(1, 8),
        "steps": st.one_of(st.integers(0, 12), st.just(10_000)),
        "how": st.sampled_from(["at the place", "one ahead", "far ahead"]),
        "kind": st.sampled_from(["batches", "batches", "loader", "threads"]),
        "seen_by": st.integers(0, 7),
    }
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    # Explaining a failure takes longer than a test may.
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(size=st.sampled_from(SIZES), tail=st.sampled_from(get_args(Tail)), legs=st.lists(LEG, min_size=3, max_size=6))
def test_chains(paths: dict[int, Path], size: int, tail: str, legs: list[dict[str, Any]]) -> None:
    model, state = Model(paths[size], size, tail), None
    for leg in legs:
        state = run_leg(paths[size], model, tail, state, **leg)
    event(f"ended in epoch {min(model.epoch, 3)}")


def run_leg(
    path: Path,
    model: Model,
    tail: str,
    state: dict[str, str] | None,
    batch_size: int,
    world: int,
    steps: int,
    how: str,
    kind: str,
    seen_by: int,
) -> dict[str, str] | None:
    """Resumes, trains some steps of one epoch on one rank, and checks them; returns the state, taken in some way."""
    rank, global_batch = seen_by % world, batch_size * world
    # What was to be carried over is again the end of its epoch: there it may be a whole smaller batch.
    model.epoch, model.cursor = model.place()
    if tail in ("drop", "carry") and global_batch > model.num_samples:
        with pytest.raises(ValueError, match="do not fill one global batch"):
            Run(path, kind, tail, batch_size, world, rank)
        return state
    run = Run(path, kind, tail, batch_size, world, rank)
    if state is not None:
        run.order.load_state_dict(state)
    model.normalise(global_batch)
    assert run.order.remaining == model.left(global_batch) > 0
    done = len(run.order) - run.order.remaining
    steps = min(steps, run.order.remaining)
    ahead = {"at the place": 0, "one ahead": 1, "far ahead": 5}[how]
    given = 0
    if steps:
        for given, batch in enumerate(run, 1):
            if given <= steps:
                assert batch == model.take(batch_size, world)[rank]
            if given == steps + ahead:
                break
    if not steps or (how == "at the place" and given == steps):
        after = run.order.state_dict()
    else:
        after = run.order.state_at(done + steps)
    model.normalise(global_batch)
    assert place(after) == model.place()
    # Any other rank, and one that only plans, has the same state.
    other = Run(path, "loader", tail, batch_size, world, None)
    if state is not None:
        other.order.load_state_dict(state)
    assert place(other.order.state_at(done + steps)) == place(after)
    result: dict[str, str] = json.loads(json.dumps(after))
    return result


def place(state: dict[str, str]) -> tuple[int, int]:
    content = json.loads(state["shardload"])
    return content["epoch"], content["position"]


@pytest.mark.parametrize("tail", get_args(Tail))
def test_the_model_itself(paths: dict[int, Path], tail: str) -> None:
    """Each sample once an epoch, but for what the tail says."""
    model, seen = Model(paths[97], 97, tail), []
    for _ in range(40):
        model.normalise(12)
        seen += [pair for ranks in model.take(4, 3) for pair in ranks]
    first = [i for epoch, i in seen if epoch == 0]
    numbers = {"drop": 96, "short": 97, "pad": 99, "mask": 97, "carry": 97}
    assert len(first) == numbers[tail] and len(set(first)) == min(97, numbers[tail])
