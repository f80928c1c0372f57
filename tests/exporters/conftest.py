from __future__ import annotations

from pathlib import Path

import pytest
from samples import write_everything

import shardload


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> shardload.ShardDataset:
    """A dataset of one of everything, in two generations. Read only."""
    return shardload.open(write_everything(tmp_path_factory.mktemp("everything") / "dataset"))


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A dataset of 100 samples of a number and a text."""
    with shardload.ShardWriter(tmp_path / "numbers", {"number": "int64", "text": "str"}) as writer:
        for i in range(100):
            writer.write({"number": i, "text": f"text {i}" * (i % 7)})
    return tmp_path / "numbers"
