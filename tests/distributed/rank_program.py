"""What each of several real processes does in `test_processes.py`. Prints one JSON line a fact."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh

import shardload
from shardload.errors import StateMismatchError

BATCH_SIZE = 5


def make(path: str, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"shuffle": True, "seed": 9, "with_ids": True}
    return shardload.ShardLoader(shardload.open(path), BATCH_SIZE, **settings | options)


def tell(what: str, **facts: Any) -> None:
    print(json.dumps({"what": what, "rank": dist.get_rank(), **facts}), flush=True)


def rows(batch: dict[str, Any]) -> list[tuple[int, int]]:
    valid = batch["_sample_id"] >= 0
    return list(zip(batch["_epoch"][valid].tolist(), batch["number"][valid].tolist(), strict=True))


def step(loader: shardload.ShardLoader, batch: dict[str, Any]) -> None:
    """Stands for a training step: a rank that does not take part lets the others wait for ever."""
    total = torch.tensor([len(batch["number"])])
    dist.all_reduce(total)


def every_tail(path: str) -> None:
    for tail in ("drop", "short", "pad", "mask", "carry"):
        loader = make(path, tail=tail)
        loader.check_ranks()
        seen, lengths = [], []
        for _ in range(3):
            count = 0
            for batch in loader:
                step(loader, batch)
                seen += rows(batch)
                count += 1
            lengths.append([count, len(loader)])
            loader.audit()
        tell("tail", tail=tail, seen=seen, lengths=lengths, state=loader.state_dict())
        loader.close()


def mesh(path: str) -> None:
    two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    loader = make(path, tail="short", mesh=two, mesh_dims="dp")
    loader.check_ranks()
    loader.check_ranks(two["dp"].get_group())
    seen = []
    for batch in loader:
        step(loader, batch)
        seen += rows(batch)
    loader.audit()
    loader.audit(two["dp"].get_group())
    tell("mesh", seen=seen, coordinate=[two["dp"].get_local_rank(), two["tp"].get_local_rank()])
    hybrid = make(path, tail="short", mesh=two, mesh_dims=("dp", "tp"))
    tell("hybrid", ranks=[hybrid.rank, hybrid.num_replicas])


def planted(path: str) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()

    def refused(name: str, work: Callable[[], None]) -> None:
        try:
            work()
            tell("planted", name=name, error="")
        except StateMismatchError as error:
            tell("planted", name=name, error=str(error))

    refused("seeds", make(path, seed=rank).check_ranks)
    refused("local rank", make(path, num_replicas=2, rank=rank % 2).check_ranks)
    refused("rank twice", make(path, num_replicas=world, rank=rank // 2).check_ranks)
    loader = make(path, tail="short")
    ids = [batch["_sample_id"] for batch in loader]
    refused("nothing", lambda: loader.audit(sample_ids=ids))
    refused("split twice", lambda: loader.audit(sample_ids=ids[rank::world]))
    refused("not split", lambda: loader.audit(sample_ids=[torch.arange(97)]))
    refused("one short", lambda: loader.audit(sample_ids=ids[: len(ids) - (rank == 2)]))


def metrics(path: str) -> None:
    loader = make(path, shuffle=False, tail="mask")
    hits, valid = [], []
    for batch in loader:
        hits.append(batch["number"] % 7 == 3)
        valid.append(batch["_valid"])
    tell("metrics", mean=shardload.masked_mean(hits, valid, dist.group.WORLD).item())


def save(path: str, directory: str) -> None:
    loader = make(path, tail="short")
    dcp.save({"loader": loader.state_dict()}, checkpoint_id=f"{directory}/fresh")
    seen = []
    batches = iter(loader)
    for _ in range(3):
        seen += rows(next(batches))
    dcp.save({"loader": loader.state_dict()}, checkpoint_id=f"{directory}/middle")
    tell("save", seen=seen)
    loader.close()


def load(path: str, directory: str) -> None:
    for name in ("fresh", "middle"):
        loader = make(path, tail="short")
        state = {"loader": loader.state_dict()}
        dcp.load(state, checkpoint_id=f"{directory}/{name}")
        loader.load_state_dict(state["loader"])
        loader.check_ranks()
        seen = []
        for batch in loader:
            step(loader, batch)
            seen += rows(batch)
        tell("load", name=name, seen=seen)


def main(path: str, store: str, directory: str, rank: int, world: int, works: str) -> None:
    waiting = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=waiting)
    for work in works.split(","):
        {"save": save, "load": load}[work](path, directory) if work in ("save", "load") else globals()[work](path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
