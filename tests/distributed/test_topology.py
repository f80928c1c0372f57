"""Meshes of data-, tensor- and pipeline-parallel processes: equal within a replica, disjoint across them, in any shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

import shardload

PROGRAM = Path(__file__).parent / "mesh_program.py"
NUM_SAMPLES, BATCH_SIZE = 97, 5


def in_rank(rank: int, world: int, work: Any) -> Any:
    """Runs `work` as one process of a world that is not there: enough for all that needs no other one."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        return work()
    finally:
        torch.distributed.destroy_process_group()


SHAPES: list[tuple[tuple[int, ...], tuple[str, ...], Any, int]] = [
    ((2, 2, 2), ("dp", "tp", "pp"), "dp", 2),
    ((2, 2, 2), ("pp", "dp", "tp"), "dp", 2),
    ((2, 3, 2), ("dp_replicate", "dp_shard", "tp"), ("dp_replicate", "dp_shard"), 6),
    ((2, 2, 3), ("dp_shard", "cp", "dp_replicate"), ("dp_replicate", "dp_shard"), 6),
    ((4,), ("dp",), None, 4),
]
"""Sizes, names, which are data-parallel, and how many replicas that makes."""


@pytest.mark.parametrize(("sizes", "names", "dims", "num_replicas"), SHAPES)
def test_each_replica_has_its_own_and_its_copies_the_same(
    small: Path, sizes: tuple[int, ...], names: tuple[str, ...], dims: Any, num_replicas: int
) -> None:
    world = 1
    for size in sizes:
        world *= size

    def work() -> tuple[tuple[int, ...], list[list[int]]]:
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
        options: dict[str, Any] = {"shuffle": True, "tail": "short", "mesh": mesh, "mesh_dims": dims}
        loader = shardload.ShardLoader(shardload.open(small), BATCH_SIZE, prefetch_batches=0, **options)
        chosen = (dims,) if isinstance(dims, str) else dims or names
        place = tuple(mesh.get_local_rank(name) for name in names if name in chosen)
        return place, [batch["number"].tolist() for batch in loader]

    by_replica: dict[tuple[int, ...], list[list[list[int]]]] = {}
    for rank in range(world):
        place, seen = in_rank(rank, world, work)
        by_replica.setdefault(place, []).append(seen)
    assert len(by_replica) == num_replicas
    assert all(len(copies) == world // num_replicas for copies in by_replica.values())
    assert all(seen == copies[0] for copies in by_replica.values() for seen in copies)
    numbers = [number for copies in by_replica.values() for batch in copies[0] for number in batch]
    assert sorted(numbers) == list(range(NUM_SAMPLES))
    # Row by row as the mesh counts: the order of one process, dealt out.
    alone = shardload.ShardLoader(shardload.open(small), BATCH_SIZE * num_replicas, shuffle=True, tail="short")
    for step, batch in enumerate(alone):
        shares = [by_replica[place][0][step] for place in sorted(by_replica)]
        assert shares == [batch["number"].tolist()[rank::num_replicas] for rank in range(num_replicas)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_eight_processes(small: Path, tmp_path: Path) -> None:
    """dp 2 x tp 2 x pp 2, then the rest of the epoch from its checkpoint as dp_replicate 2 x dp_shard 2 x tp 2."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(small), str(tmp_path / "store"), str(tmp_path), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(8)
    ]
    facts: list[dict[str, Any]] = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
            facts += [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    finally:
        for process in processes:
            process.kill()
    of: dict[str, list[dict[str, Any]]] = {}
    for fact in facts:
        of.setdefault(fact["what"], []).append(fact)
    first = {fact["place"][0]: fact["seen"] for fact in of["cube"]}
    assert sorted(fact["place"] for fact in of["cube"]) == [[d, t, p] for d in (0, 1) for t in (0, 1) for p in (0, 1)]
    assert all(fact["seen"] == first[fact["place"][0]] for fact in of["cube"])
    assert [fact["seen"] for fact in of["sampler"]] == [fact["seen"] for fact in of["cube"]]
    rest = {fact["ranks"][0]: fact["seen"] for fact in of["hybrid"]}
    assert sorted((*fact["ranks"], fact["tp"]) for fact in of["hybrid"]) == [
        (r, 4, t) for r in range(4) for t in (0, 1)
    ]
    assert all(fact["seen"] == rest[fact["ranks"][0]] for fact in of["hybrid"])
    numbers = [number for part in (first, rest) for seen in part.values() for batch in seen for number in batch]
    assert sorted(numbers) == list(range(NUM_SAMPLES))
    planted: dict[str, set[str]] = {}
    for fact in of["planted"]:
        planted.setdefault(fact["name"], set()).add(fact["error"])
    assert all(len(errors) == 1 for errors in planted.values())
    messages = {name: errors.pop() for name, errors in planted.items()}
    assert "disagree on seed" in messages["seed of one tensor-parallel rank"]
    assert "rank 0 of 2 is there 3 times instead of 4" in messages["one rank split along another dimension"]
    assert "2 replicas, but the group has 8 processes" in messages["ranks of the dimension without the mesh"]
