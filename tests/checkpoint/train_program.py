"""A small model trained by several ranks over gloo, again and again: each attempt is killed somewhere, and the next goes on.

One process, which imports torch once and itself computes nothing, forks the ranks of each attempt into a process group.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # DDP loads it, which takes a second
import torch.distributed as dist
from faults import injected
from killing import KilledAt
from torch import nn

import shardload
import shardload.checkpoint
import shardload.loader

SAVE_STEPS, BATCH_SIZE, SEED = 3, 4, 5
LIMIT_SECONDS = 60


class KilledSaving(KilledAt):
    """Kills the process group at the nth operation of this process that changes something: all of them are of checkpoints."""

    def carry_out(self, name: str, *arguments: Any) -> Any:
        if not self.changes(name, arguments):
            return getattr(self.inner, name)(*arguments)
        return super().carry_out(name, *arguments)


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 24), nn.BatchNorm1d(24), nn.Dropout(0.2), nn.Linear(24, 1))


def train(dataset: str, directory: Path, attempt: dict[str, Any], rank: int, ticks: int) -> None:
    """Trains to the end of the epochs; writes a line a step, and a byte a step of rank 0 to `ticks`."""
    name, world = attempt["name"], attempt["world"]
    waiting = datetime.timedelta(seconds=LIMIT_SECONDS)
    store = f"file://{directory / f'store-{name}'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=waiting)
    model = nn.parallel.DistributedDataParallel(make_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.9)
    options: dict[str, Any] = {"tail": "carry", "epochs": attempt["epochs"], "with_ids": True}
    loader = shardload.ShardLoader(shardload.open(dataset), BATCH_SIZE, shuffle=True, seed=SEED, **options)
    torch.manual_seed(100 + rank), random.seed(7), np.random.seed(7 + rank)
    checkpointer = shardload.Checkpointer(
        directory / attempt["folder"],
        model=model,
        optimizer=optimizer,
        loader=loader,
        extra={"schedule": schedule},
        keep=2,
        asynchronous=attempt.get("asynchronous", False),
        timeout_seconds=LIMIT_SECONDS,
    )
    step = checkpointer.restore() or 0
    record = os.open(directory / f"record-{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(**facts: Any) -> None:
        os.write(record, (json.dumps(facts) + "\n").encode())

    tell(kind="start", step=step, world=world)
    while True:
        try:
            batches = iter(loader)
        except shardload.LoaderClosedError:
            break
        for batch in batches:
            values = torch.stack([batch["number"] / 100, batch["number"] % 7], dim=1).float()
            loss = (model(values) - values.sum(dim=1, keepdim=True)).square().mean() * (1 + 0.1 * random.random())
            loss = loss + float(np.random.rand()) * model.module[0].weight.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            facts = {name: batch[name].tolist() for name in ("_epoch", "_position", "number")}
            tell(kind="step", step=step, rank=rank, loss=loss.item().hex(), **facts)
            if step % SAVE_STEPS == 0:
                checkpointer.save(step)
                tell(kind="saved", step=step if not attempt.get("asynchronous") else 0)
            if rank == 0:
                os.write(ticks, b".")
    checkpointer.close()
    weights = torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])
    tell(kind="end", step=step, weights=weights.sum().item().hex())
    loader.close()
    dist.destroy_process_group()


def run_rank(dataset: str, directory: Path, attempt: dict[str, Any], rank: int, ticks: int) -> None:
    """Runs a rank and ends the process."""
    status = 1
    try:
        torch.set_num_threads(1)
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* was never finished, and is passed over")
        number = attempt.get("operation", -1) if attempt.get("by", 0) == rank else -1
        with injected(KilledSaving(number)):
            train(dataset, directory, attempt, rank, ticks)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def fork_ranks(world: int, work: Callable[[int], None], watch: Callable[[int], None] | None = None) -> list[int]:
    """Runs `work` with each rank in a forked process of one group, and returns how they ended.

    Args:
        world: number of ranks.
        work: never returns.
        watch: called with the process group when all are there.
    """
    leader, pids = 0, []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, leader)
            work(rank)
        leader = leader or pid
        # In both processes, as a shell does it: whichever comes first.
        with contextlib.suppress(OSError):
            os.setpgid(pid, leader)
        pids.append(pid)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(leader, signal.SIGKILL))
    signal.alarm(LIMIT_SECONDS)
    if watch is not None:
        watch(leader)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    signal.alarm(0)
    return statuses


def run_attempt(dataset: str, directory: Path, attempt: dict[str, Any]) -> list[int]:
    """Runs the ranks, and kills them all after so many steps if the attempt says so."""
    reading, writing = os.pipe()

    def watch(leader: int) -> None:
        os.close(writing)
        count = 0
        while os.read(reading, 1):
            count += 1
            if count == attempt.get("after"):
                os.killpg(leader, signal.SIGKILL)

    statuses = fork_ranks(attempt["world"], lambda rank: run_rank(dataset, directory, attempt, rank, writing), watch)
    os.close(reading)
    return statuses


def main(dataset: str, directory: Path, attempts: list[dict[str, Any]]) -> None:
    for attempt in attempts:
        print(json.dumps(run_attempt(dataset, directory, attempt)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
