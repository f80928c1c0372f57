"""What a training loop leaves behind for a test of resumes: which rank was given what, at which step, and its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader

import shardload

SCHEMA = {"number": "int64", "text": "str", "values": "float32[3]", "tokens": "uint16[*]"}
WORLD, BATCH_SIZE, SEED = 3, 4, 11


class Row(NamedTuple):
    """One batch of one rank."""

    epoch: int
    step: int
    """Of the epoch, from 0."""
    rank: int
    ids: tuple[int, ...]
    """Without fillers."""
    content: str
    """A digest of the values, without fillers."""


def write_content(path: Path, num_samples: int) -> Path:
    """Writes samples of which no two have the same values, in several shards."""
    with shardload.ShardWriter(path, SCHEMA, shard_size="8KiB") as writer:
        for i in range(num_samples):
            values = np.full(3, i / 3, dtype=np.float32)
            tokens = np.arange(i % 7, dtype=np.uint16) + i
            writer.write({"number": i, "text": f"sample {i}", "values": values, "tokens": tokens})
    return path


def digest(batch: dict[str, Any]) -> str:
    """A digest of a batch's values; the same for both paths."""
    valid = batch.get("_valid")
    chosen = range(len(batch["number"])) if valid is None else np.flatnonzero(valid.numpy())
    found = hashlib.sha256()
    for slot in chosen:
        for name in SCHEMA:
            value = batch[name][slot]
            found.update(value.encode() if isinstance(value, str) else np.asarray(value).tobytes())
    return found.hexdigest()[:16]


def row(batch: dict[str, Any], epoch: int, step: int, rank: int) -> Row:
    numbers = batch["number"] if "_valid" not in batch else batch["number"][batch["_valid"]]
    return Row(epoch, step, rank, tuple(numbers.tolist()), digest(batch))


class Loop:
    """One rank's training loop over a `ShardLoader` (path 2)."""

    def __init__(self, path: Path, rank: int, tail: str, world: int = WORLD, **options: Any) -> None:
        self.rank = rank
        settings: dict[str, Any] = {"shuffle": True, "seed": SEED, "num_replicas": world, "rank": rank, "tail": tail}
        self.order: Any = shardload.ShardLoader(shardload.open(path), BATCH_SIZE, **settings | options)
        self.batches: Any = self.order

    def state(self, done: int) -> dict[str, str]:
        """The state after so many batches of the current epoch, of which at least one was trained on."""
        return self.order.state_dict()

    def epoch(self, epoch: int, first: int) -> Iterator[Row]:
        """Trains on the rest of an epoch, which begins with the batch `first`."""
        for step, batch in enumerate(self.batches, first):
            yield row(batch, epoch, step, self.rank)


class TorchLoop(Loop):
    """The same with a torch `DataLoader` around the batch sampler (path 1), which is ahead of the loop."""

    def __init__(self, path: Path, rank: int, tail: str, world: int = WORLD, **options: Any) -> None:
        self.rank = rank
        dataset = shardload.open(path)
        sampler = shardload.ShardSampler(dataset, world, rank, seed=SEED)
        self.order = sampler.batch_sampler(BATCH_SIZE, read_ahead=2, tail=tail)
        self.batches = DataLoader(dataset, batch_sampler=self.order, collate_fn=shardload.collate, **options)

    def state(self, done: int) -> dict[str, str]:
        return self.order.state_at(done)


class SamplerLoop(Loop):
    """The same with a torch `DataLoader` around the plain sampler, which knows nothing of batches (path 1)."""

    def __init__(self, path: Path, rank: int, tail: str, world: int = WORLD, **options: Any) -> None:
        self.rank = rank
        dataset = shardload.open(path)
        self.order = shardload.ShardSampler(dataset, world, rank, seed=SEED, drop_last=tail == "drop")
        how: dict[str, Any] = {"sampler": self.order, "batch_size": BATCH_SIZE, "collate_fn": shardload.collate}
        self.batches = DataLoader(dataset, **how, **options)

    def state(self, done: int) -> dict[str, str]:
        return self.order.state_at(done, BATCH_SIZE)


def record(loop: Loop, epochs: int, place: tuple[int, int] = (0, 0)) -> list[Row]:
    """Trains from a place (epoch, batches done in it) to the end of so many epochs."""
    rows: list[Row] = []
    for epoch in range(place[0], epochs):
        rows += loop.epoch(epoch, place[1] if epoch == place[0] else 0)
    return rows
