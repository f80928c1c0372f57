"""A dataset that several files read."""

from __future__ import annotations

from pathlib import Path

import pytest

import shardload

NUM_SAMPLES = 97


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety-seven samples, which no number of ranks and no batch size divides. Read only."""
    path = tmp_path_factory.mktemp("small") / "dataset"
    with shardload.ShardWriter(path, {"number": "int64"}, shard_size="4KiB") as writer:
        for i in range(NUM_SAMPLES):
            writer.write({"number": i})
    return path
