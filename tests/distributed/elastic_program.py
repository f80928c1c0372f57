"""A training script under torchrun: a state every few steps, a line a step, and a rank that dies once at a given step."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import shardload

SAVE_STEPS = 4


def put(path: Path, text: str) -> None:
    """Replaces a file as a whole."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def main(dataset: str, directory: Path, batch_size: int, die_at: list[int]) -> None:
    rank, world, restart = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    run = os.environ["RUN_NAME"]
    # A store for each attempt: in that of torchrun's agent, gloo finds addresses of processes that are dead.
    store = f"file://{directory / f'store-{run}-{restart}'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    loader = shardload.ShardLoader(
        shardload.open(dataset), batch_size, shuffle=True, seed=3, tail="short", with_ids=True
    )
    saved = directory / "state"
    start = json.loads(saved.read_text()) if saved.exists() else {"state": loader.state_dict(), "step": 0, "epoch": 0}
    loader.load_state_dict(start["state"])
    loader.check_ranks()
    step = start["step"]
    with open(directory / f"record-{run}-{restart}-{rank}", "a", buffering=1) as record:
        for _ in range(start["epoch"], 2):
            for batch in loader:
                dist.all_reduce(torch.tensor([step]))
                step += 1
                rows = [step, start["step"], batch["_epoch"].tolist(), batch["number"].tolist()]
                record.write(json.dumps(rows) + "\n")
                if step % SAVE_STEPS == 0:
                    dist.barrier()
                    if rank == 0:
                        epoch = json.loads(loader.state_dict()["shardload"])["epoch"]
                        put(saved, json.dumps({"state": loader.state_dict(), "step": step, "epoch": epoch}))
                    dist.barrier()
                if restart < len(die_at) and step == die_at[restart] and rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
            loader.audit()
    put(directory / f"done-{rank}", str(step))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
