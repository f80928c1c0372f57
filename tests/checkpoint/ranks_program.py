"""What several ranks do with checkpoints in `test_ranks.py`. Each rank prints one JSON line a fact."""

from __future__ import annotations

import datetime
import errno
import json
import os
import random
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # DDP loads it, which takes a second
import torch.distributed as dist
from faults import FailAt, KillAt, injected
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from train_program import LIMIT_SECONDS, fork_ranks

import shardload
import shardload.checkpoint
import shardload.loader
from shardload.storage import Operations


def make(kind: str, dataset: str, directory: Path, **options: Any) -> tuple[nn.Module, Any, Any, Any]:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(
        nn.Linear(1, 64),
        nn.BatchNorm1d(64),
        nn.Linear(64, 128),
        nn.Linear(128, 128),
        nn.Linear(128, 128),
        nn.Linear(128, 3),
    )
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        model = fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = shardload.ShardLoader(shardload.open(dataset), 4, shuffle=True, seed=3, tail="carry")
    options = {"loader": loader, "timeout_seconds": LIMIT_SECONDS, "optimizer": optimizer} | options
    return model, optimizer, loader, shardload.Checkpointer(directory, model=model, **options)


def train(model: nn.Module, optimizer: Any, batches: Any, count: int) -> list[list[int]]:
    ids = []
    for _ in range(count):
        batch = next(batches)
        ids.append(batch["number"].tolist())
        model(batch["number"].float()[:, None] / 100).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return ids


def whole(model: nn.Module, optimizer: Any) -> list[str]:
    """Returns the sums of all parameters and their moments, wherever their shards are."""
    values = [*model.parameters(), *(state["exp_avg"] for state in optimizer.state.values())]
    full = [value.full_tensor() if hasattr(value, "full_tensor") else value for value in values]
    return [value.detach().double().sum().item().hex() for value in full]


def drawn() -> list[Any]:
    return [random.random(), float(np.random.rand()), torch.rand(1).item()]


def saved(tell: Any, kind: str, dataset: str, base: Path) -> None:
    rank = dist.get_rank()
    model, optimizer, loader, checkpointer = make(kind, dataset, base / kind, asynchronous=kind == "fsdp")
    train(model, optimizer, iter(loader), 5)
    random.seed(4), np.random.seed(rank), torch.manual_seed(rank)
    checkpointer.save(5)
    tell("saved", kind=kind, weights=whole(model, optimizer), draws=drawn())
    checkpointer.wait()
    tell("stats", kind=kind, num_bytes=checkpointer.stats().num_bytes)
    checkpointer.close()
    loader.close()


def restored(tell: Any, kind: str, dataset: str, base: Path) -> None:
    model, optimizer, loader, checkpointer = make(kind, dataset, base / ("ddp" if kind == "plain" else kind))
    step = checkpointer.restore()
    draws = drawn()
    weights = whole(model, optimizer)
    ids = train(model, optimizer, iter(loader), 3)
    checkpointer.close()
    loader.close()
    tell("restored", kind=kind, step=step, weights=weights, draws=draws, ids=ids)


def failures(tell: Any, dataset: str, base: Path) -> None:
    """What goes wrong on one rank is told to all, and leaves nothing behind."""
    rank = dist.get_rank()
    for name in ("step", "place", "disk", "none"):
        model, optimizer, loader, checkpointer = make("ddp", dataset, base / "failing", asynchronous=name == "disk")
        checkpointer.restore()
        batches = iter(loader)
        train(model, optimizer, batches, 1)
        if name == "place" and rank == 1:
            next(batches)
        number = 1 if name == "disk" and rank == 1 else 0
        error = ""
        with injected(FailAt(number, errno.ENOSPC, names=("write",), lasting=True)):
            try:
                checkpointer.save(7 + (name == "step" and rank == 1))
                checkpointer.wait()
            except (shardload.StateMismatchError, shardload.StorageError) as found:
                error = str(found)
        dist.barrier()
        tell(
            "failure",
            name=name,
            error=error,
            left=sorted(os.listdir(base / "failing")) if (base / "failing").exists() else [],
        )
        dist.barrier()
        checkpointer.close()
        loader.close()


def damaged(tell: Any, dataset: str, base: Path) -> None:
    """Each rank looks at a part of the files, and all take the one before."""
    model, optimizer, loader, checkpointer = make("ddp", dataset, base / "damaged")
    batches = iter(loader)
    for step in (1, 2):
        train(model, optimizer, batches, 1)
        checkpointer.save(step)
    loader.close()
    dist.barrier()
    for name in ("__0_0.distcp", "__1_0.distcp"):
        if dist.get_rank() == 0:
            shutil.copytree(base / "damaged/step-2", base / "whole", dirs_exist_ok=True)
            data = bytearray((base / "damaged/step-2" / name).read_bytes())
            data[len(data) // 3] ^= 4
            (base / "damaged/step-2" / name).write_bytes(data)
        dist.barrier()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step = checkpointer.restore()
        tell("damaged", name=name, step=step, told=[str(one.message) for one in told])
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.copytree(base / "whole", base / "damaged/step-2", dirs_exist_ok=True)
        dist.barrier()
    checkpointer.close()


def other(tell: Any, dataset: str, base: Path) -> None:
    """One rank has another model: none of them restores."""
    _model, _, loader, checkpointer = make("ddp", dataset, base / "ddp")
    if dist.get_rank() == 1:
        checkpointer = shardload.Checkpointer(base / "ddp", model=nn.Linear(1, 2), timeout_seconds=LIMIT_SECONDS)
    place = loader.state_dict()
    error = ""
    try:
        checkpointer.restore()
    except shardload.StateMismatchError as found:
        error = str(found)
    tell("other", error=error, moved=loader.state_dict() != place)
    checkpointer.close()
    loader.close()


def left(tell: Any, dataset: str, base: Path) -> None:
    """Ends with a save under way, as a program does at its end: nothing hangs, and what can be written is."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model, optimizer, loader, checkpointer = make("ddp", dataset, base / f"left-{world}", asynchronous=True)
    train(model, optimizer, iter(loader), 1)
    if rank == 1:
        # The other rank waits for one that is no more.
        with injected(KillAt(1, "half", inner=Operations())):
            checkpointer.save(1)
            checkpointer.wait()
    checkpointer.save(1)
    sys.exit(0)


def work(rank: int, world: int, dataset: str, base: Path, works: list[str]) -> None:
    status = 1
    try:
        torch.set_num_threads(1)
        warnings.simplefilter("error")
        # Of torch itself, about FSDP on this machine's processors.
        warnings.filterwarnings("ignore", category=FutureWarning)
        store = f"file://{base / f'store-{world}-{works[-1]}'}"
        waiting = datetime.timedelta(seconds=LIMIT_SECONDS)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=waiting)

        def tell(what: str, **facts: Any) -> None:
            line = {"what": what, "rank": rank, "world": world, **facts}
            os.write(1, (json.dumps(line) + "\n").encode())

        for one in works:
            name, _, kind = one.partition(" ")
            globals()[name](*([tell, kind] if kind else [tell]), dataset, base)
        dist.destroy_process_group()
        status = 0
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def main(dataset: str, base: Path, runs: list[tuple[int, list[str]]]) -> None:
    for world, works in runs:
        statuses = fork_ranks(world, lambda rank, world=world, works=works: work(rank, world, dataset, base, works))
        print(json.dumps({"what": "statuses", "works": works, "statuses": statuses}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
