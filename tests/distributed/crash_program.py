"""A training script under torchrun that is killed anywhere in a step: all it did is on the disk, and a state every few steps."""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import shardload

EPOCHS, SAVE_STEPS = 2, 3


def main(dataset: str, directory: Path, run: str, batch_size: int, tail: str, crashes: list[list[Any]]) -> None:
    rank, world, restart = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    # A store for each attempt: in that of torchrun's agent, gloo finds addresses of processes that are dead.
    store = f"file://{directory / f'store-{run}-{restart}'}"
    waiting = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=waiting)
    loader = shardload.ShardLoader(
        shardload.open(dataset), batch_size, shuffle=True, seed=3, tail=tail, epochs=EPOCHS, with_ids=True
    )
    saved = directory / "state"
    start = json.loads(saved.read_text()) if saved.exists() else {"state": loader.state_dict(), "step": 0}
    loader.load_state_dict(start["state"])
    loader.check_ranks()
    step = start["step"]

    def crash_at(phase: str) -> None:
        if restart < len(crashes) and crashes[restart] == [step, phase, rank]:
            os.kill(os.getpid(), signal.SIGKILL)

    record = os.open(directory / f"record-{run}-{restart}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        try:
            batches = iter(loader)
        except shardload.LoaderClosedError:
            break
        for batch in batches:
            step += 1
            crash_at("batch taken")
            dist.all_reduce(torch.tensor([step]))
            crash_at("trained")
            row = {"step": step, "start": start["step"], "rank": rank}
            row |= {"epochs": batch["_epoch"].tolist(), "ids": batch["number"].tolist()}
            os.write(record, (json.dumps(row) + "\n").encode())
            os.fsync(record)
            crash_at("recorded")
            if step % SAVE_STEPS == 0:
                # The state counts only what all ranks have on the disk.
                dist.barrier()
                if rank == 0:
                    new = directory / "state.new"
                    new.write_text(json.dumps({"state": loader.state_dict(), "step": step}))
                    crash_at("state written")
                    new.replace(saved)
                crash_at("state saved")
        loader.audit()
    (directory / f"done-{run}-{rank}").write_text(str(step))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5], json.loads(sys.argv[6]))
