"""A dataset whose samples tell which they are."""

from __future__ import annotations

from pathlib import Path

import pytest

import shardload

NUM_SAMPLES = 1000


@pytest.fixture(scope="session")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 1,000 samples with their number and some more. Read only."""
    path = tmp_path_factory.mktemp("scanned") / "dataset"
    with shardload.ShardWriter(path, {"x": "int64", "row": "float32[30]"}, shard_size="16KiB") as writer:
        for i in range(NUM_SAMPLES):
            writer.write({"x": i, "row": [float(i)] * 30})
    return path
