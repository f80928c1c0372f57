"""100,000 samples with real content through every way of loading them: each id once, each content as in the source."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from torch.utils.data import DataLoader

import shardload

NUM_SAMPLES = 100_000
PADDING_AT_MOST = 8


def text_of(i: int) -> bytes:
    return hashlib.blake2b(str(i).encode(), digest_size=16 + i % 40).digest() * (1 + i % 5)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    path = tmp_path_factory.mktemp("big") / "dataset"
    with shardload.ShardWriter(
        path, {"number": "int64", "text": "bytes"}, compression="zstd:1", shard_size="1MiB"
    ) as writer:
        for i in range(NUM_SAMPLES):
            writer.write({"number": i, "text": text_of(i)})
    return shardload.open(path)


@pytest.fixture(scope="module")
def texts():
    return [text_of(i) for i in range(NUM_SAMPLES)]


def check(batches, texts) -> list[int]:
    ids = []
    for batch in batches:
        numbers = batch["number"].tolist()
        assert batch["text"] == [texts[i] for i in numbers]
        ids += numbers
    return ids


@pytest.mark.parametrize(
    "replicas", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(8, marks=pytest.mark.slow)]
)
def test_loader_and_dataloader(big, texts, replicas):
    assert len(big.table) > 5
    every = []
    for rank in range(replicas):
        options = {"num_replicas": replicas, "rank": rank, "seed": 11}
        with shardload.ShardLoader(big, 256, shuffle=True, drop_last=False, **options) as loader:
            ours = check(loader, texts)
        for workers in (0, 2) if rank == 0 else (2,):
            sampler = shardload.ShardSampler(big, **options).batch_sampler(256)
            torchs = DataLoader(
                big,
                batch_sampler=sampler,
                collate_fn=shardload.collate,
                num_workers=workers,
                timeout=60 * bool(workers),
            )
            assert check(torchs, texts) == ours
        every += ours
    counts = np.bincount(every, minlength=NUM_SAMPLES)
    assert counts.min() == 1
    assert counts.sum() - NUM_SAMPLES == -NUM_SAMPLES % replicas < PADDING_AT_MOST
