"""One rank of `test_located_ranks.py`: trains some steps, notes what it was given, and leaves a state behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import shardload

dataset, folder, name, batch_size, num_steps, resumed = sys.argv[1:]
dist.init_process_group("gloo")
loader = shardload.ShardLoader(
    shardload.open(dataset), int(batch_size), shuffle=shardload.BlockShuffle(10, 5), seed=6, tail="carry", with_ids=True
)
loader.log_to(Path(folder) / "run.jsonl")
if resumed != "none":
    loader.load_state_dict(json.loads(Path(folder, f"{resumed}.json").read_text()))
rank, given = dist.get_rank(), []
while len(given) < int(num_steps):
    for batch in loader:
        dist.all_reduce(torch.ones(1))
        given.append([batch[key].tolist() for key in ("_epoch", "_position", "_sample_id")])
        if len(given) == int(num_steps):
            break
Path(folder, f"{name}-{rank}.json").write_text(json.dumps(given))
if rank == dist.get_world_size() - 1:
    Path(folder, f"{name}.json").write_text(json.dumps(loader.state_dict()))
loader.close()
dist.destroy_process_group()
