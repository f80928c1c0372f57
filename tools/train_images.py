"""Trains an image classifier on any number of ranks, saves checkpoints, and goes on from the newest one.

    torchrun --nproc-per-node 2 tools/train_images.py letters/ --checkpoints checkpoints/

The dataset has a jpeg field `image` and a field `label`, as `shardload pack` makes of a folder of folders. Kill it, all of it,
whenever you like, and start it again, with more ranks or fewer: it goes on with exactly the next samples.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import time
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import shardload

PIXELS = 32


def make_model(num_classes: int) -> nn.Module:
    """Returns a small convolutional network for images of 3 x PIXELS x PIXELS."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (PIXELS // 8) ** 2, num_classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64, help="images a step, over all ranks")
    parser.add_argument("--every", type=int, default=25, help="steps between two checkpoints")
    parser.add_argument("--record", type=Path, help="folder in which each rank writes which samples it was given")
    options = parser.parse_args()
    logging.basicConfig(format="  %(message)s", level=logging.WARNING)

    # Ranks that miss each other at a restart would wait for half an hour; torchrun starts those anew that give up.
    distributed.init_process_group("gloo", timeout=datetime.timedelta(minutes=2))
    rank, num_ranks = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    dataset = shardload.open(options.dataset, fields=["image", "label"])
    # With crop="random" and flip= each sample has its own draws in each epoch, whatever the number of ranks.
    decode = {"image": shardload.ImageDecode(PIXELS, crop="center")}
    batch_size = options.batch_size // num_ranks
    loader = shardload.ShardLoader(dataset, batch_size, shuffle=True, seed=1, decode=decode, with_ids=True)
    model = DistributedDataParallel(make_model(len(dataset.metadata["classes"])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    saver = shardload.Checkpointer(options.checkpoints, model=model, optimizer=optimizer, loader=loader)
    step = saver.restore() or 0
    if rank == 0 and step:
        print(f"  going on after step {step} on {num_ranks} ranks", flush=True)
    loader.check_ranks()

    record = options.record / f"rank-{rank}.jsonl" if options.record else None
    start, right, seen = time.perf_counter(), 0, 0
    while step < options.steps:
        for batch in loader:
            images, labels = batch["image"].float() / 128 - 1, batch["label"]
            scores = model(images)
            optimizer.zero_grad()
            nn.functional.cross_entropy(scores, labels).backward()
            optimizer.step()
            step += 1
            right, seen = right + int((scores.argmax(1) == labels).sum()), seen + len(labels)
            if record is not None:
                ids = batch["_sample_id"].tolist()
                with record.open("a") as file:
                    file.write(json.dumps({"step": step, "ranks": num_ranks, "rank": rank, "ids": ids}) + "\n")
            if step % options.every == 0 or step == options.steps:
                saver.save(step)
                if rank == 0:
                    stall = loader.stats().stall_fraction
                    print(
                        f"  step {step:4d}  right {right / seen:.1%}  {step_rate(start, seen, num_ranks):6.0f} images/s  "
                        f"stall {stall:.2%}  checkpoints {saver.stats().share:.2%} of the time",
                        flush=True,
                    )
                right = seen = 0
                start = time.perf_counter()
            if step == options.steps:
                break
    saver.close()
    loader.close()
    distributed.destroy_process_group()


def step_rate(start: float, seen: int, num_ranks: int) -> float:
    """Returns images a second over all ranks."""
    return seen * num_ranks / (time.perf_counter() - start)


if __name__ == "__main__":
    # Each rank sees one core here, and none starts its threads anew.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
