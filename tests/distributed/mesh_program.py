"""What each of eight real processes of a mesh does in `test_topology.py`. Prints one JSON line a fact."""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh

import shardload
from shardload.errors import StateMismatchError

BATCH_SIZE = 5


def tell(what: str, **facts: Any) -> None:
    print(json.dumps({"what": what, "rank": dist.get_rank(), **facts}), flush=True)


def train(batches: Any, steps: int | None) -> list[list[int]]:
    seen = []
    for batch in batches:
        dist.all_reduce(torch.tensor([1]))
        seen.append(batch["number"].tolist())
        if len(seen) == steps:
            break
    return seen


def main(path: str, store: str, directory: str, rank: int) -> None:
    waiting = datetime.timedelta(seconds=90)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=8, timeout=waiting)
    dataset = shardload.open(path)
    options: dict[str, Any] = {"shuffle": True, "seed": 9, "tail": "short"}

    cube = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("pp", "dp", "tp"))
    loader = shardload.ShardLoader(dataset, BATCH_SIZE, mesh=cube, mesh_dims="dp", **options)
    loader.check_ranks()
    first = train(loader, 6)
    loader.audit()
    loader.audit(cube["dp"].get_group())
    tell("cube", seen=first, place=[cube[name].get_local_rank() for name in ("dp", "tp", "pp")])
    sampler = shardload.ShardSampler(dataset, seed=9, mesh=cube, mesh_dims="dp")
    tell("sampler", seen=[list(ids) for ids, _ in zip(sampler.batch_sampler(BATCH_SIZE, tail="short"), range(6))])
    dcp.save({"loader": loader.state_dict()}, checkpoint_id=f"{directory}/cube")
    loader.close()

    # The same run goes on in another shape: more replicas, hybrid sharding, and pipelines gone.
    hybrid = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("dp_replicate", "dp_shard", "tp"))
    rest = shardload.ShardLoader(dataset, BATCH_SIZE, mesh=hybrid, mesh_dims=("dp_replicate", "dp_shard"), **options)
    state = {"loader": rest.state_dict()}
    dcp.load(state, checkpoint_id=f"{directory}/cube")
    rest.load_state_dict(state["loader"])
    rest.check_ranks()
    seen = train(rest, None)
    rest.audit()
    tell("hybrid", seen=seen, ranks=[rest.rank, rest.num_replicas], tp=hybrid["tp"].get_local_rank())

    def refused(name: str, **faults: Any) -> None:
        wrong = shardload.ShardLoader(dataset, BATCH_SIZE, **options | faults)
        try:
            wrong.check_ranks()
            tell("planted", name=name, error="")
        except StateMismatchError as error:
            tell("planted", name=name, error=str(error))

    refused("seed of one tensor-parallel rank", mesh=cube, mesh_dims="dp", seed=9 + (rank == 5))
    refused("one rank split along another dimension", mesh=cube, mesh_dims="tp" if rank == 1 else "dp")
    refused("ranks of the dimension without the mesh", num_replicas=2, rank=cube["dp"].get_local_rank())
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
