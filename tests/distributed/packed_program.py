"""What each of two real processes does in `test_packed_ranks.py`. Prints one JSON line a fact."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist

import shardload


def ids_of(batch: dict[str, Any]) -> list[int]:
    found = batch["_sample_id"]
    return [int(i) for part in found for i in part.tolist()] if isinstance(found, list) else found.tolist()


def run(name: str, loader: shardload.ShardLoader, resumed: shardload.ShardLoader) -> None:
    loader.check_ranks()
    seen: list[int] = []
    for count, batch in enumerate(loader, 1):
        # Stands for a training step: a rank that has no batch lets the other wait for ever.
        dist.all_reduce(torch.ones(1))
        seen += ids_of(batch)
        if count == 3:
            break
    loader.audit()
    resumed.load_state_dict(loader.state_dict())
    resumed.check_ranks()
    for batch in resumed:
        dist.all_reduce(torch.ones(1))
        seen += ids_of(batch)
    resumed.audit()
    print(json.dumps({"name": name, "rank": dist.get_rank(), "seen": seen, "length": len(resumed)}), flush=True)


def main(path: str) -> None:
    dist.init_process_group("gloo")
    dataset = shardload.open(path)
    packed = shardload.PackedSequences(dataset, ["tokens", "weight"], 96, 50)
    settings: dict[str, Any] = {"shuffle": True, "seed": 4, "tail": "short", "with_ids": True}
    run("packed", *(shardload.ShardLoader(packed, 3, **settings) for _ in range(2)))
    budget = {"batch_tokens": ("tokens", 300), "lookahead": 60, "fields": ["tokens"]} | settings
    run("budget", *(shardload.ShardLoader(dataset, **budget) for _ in range(2)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
