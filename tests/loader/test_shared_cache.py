"""Two jobs of two ranks share one cache directory and are killed again and again: every start succeeds, and no byte is wrong."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
from programs import Program
from range_server import RangeServer

import shardload
from shardload.storage.slots import MIN_LIMIT_BYTES

NUM_ROUNDS = 50
NUM_ROWS = 4000
WAIT_SECONDS = 120.0

RANK = f"""
import sys
import shardload

url, directory, job, rank, num_batches = sys.argv[1:]
dataset = shardload.open(url, cache_dir=directory, cache_limit={MIN_LIMIT_BYTES})
loader = shardload.ShardLoader(
    dataset, 16, shuffle=True, seed=int(job), num_replicas=2, rank=int(rank), with_ids=True, helper_process=False
)
count = 0
while count < int(num_batches):
    for batch in loader:
        assert (batch["tokens"].numpy() == batch["_sample_id"].numpy()[:, None]).all()
        count += 1
        if count == 1:
            print("begun", flush=True)
stats = loader.stats()
assert stats.num_cache_hits > 0 and stats.cache_bytes > 0, stats
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with shardload.ShardWriter(tmp_path / "rows", {"tokens": "int32[1024]"}, shard_size="4MiB") as writer:
        for number in range(NUM_ROWS):
            writer.write({"tokens": np.full(1024, number, dtype=np.int32)})
    return tmp_path


def disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.glob("*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_rounds_of_kills(root: Path) -> None:
    rng, directory = random.Random(7), root / "cache"
    with RangeServer(root) as server:

        def start(num_batches: int) -> list[Program]:
            ranks = [(job, rank) for job in (1, 2) for rank in (0, 1)]
            return [Program(RANK, f"{server.url}/rows", directory, *one, num_batches, strict=True) for one in ranks]

        for number in range(NUM_ROUNDS):
            programs = start(1_000_000)
            if number % 5:
                # Most rounds come so far that all have begun: then each start has succeeded.
                assert [program.readline() for program in programs] == ["begun\n"] * 4
            # The moment of the kill, not a wait for something.
            time.sleep(rng.random() * (1.0 if number % 5 else 0.3))
            for program in programs:
                program.kill()
            for program in programs:
                program.communicate(WAIT_SECONDS)
                assert program.returncode == -9
            assert disk_bytes(directory) <= MIN_LIMIT_BYTES
        for program in start(125):
            assert program.readline() == "begun\n"
            assert program.communicate(WAIT_SECONDS)[1] == "" and program.returncode == 0
    names = [path.name for path in directory.iterdir() if path.suffix != ".tmp"]
    assert len(names) == 4
