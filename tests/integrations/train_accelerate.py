"""A training script with Accelerate; every rank records the ids of the samples its steps were trained on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

import shardload
from shardload.integrations.accelerate import prepare

parser = argparse.ArgumentParser()
parser.add_argument("dataset")
parser.add_argument("folder", type=Path)
parser.add_argument("--name", default="run")
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--save-at", type=int, default=0, help="save after so many batches, and end")
parser.add_argument("--resume")
parser.add_argument("--wrap", action="store_true", help="let Accelerate split a ShardBatchSampler once more")
options = parser.parse_args()

set_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
dataset = shardload.open(options.dataset)
record = (options.folder / f"{options.name}-{accelerator.process_index}.jsonl").open("w")


def write(**facts):
    record.write(json.dumps(facts) + "\n")
    record.flush()


if options.wrap:
    batches = shardload.ShardSampler(dataset, seed=5).batch_sampler(options.batch_size)
    wrapped = accelerator.prepare(torch.utils.data.DataLoader(dataset, batch_sampler=batches))
    for step, _ in enumerate(wrapped):
        write(kind="step", step=step)
    raise SystemExit("a second split went unnoticed")

loader = shardload.ShardLoader(dataset, options.batch_size, shuffle=True, seed=5, tail="short")
model = torch.nn.Linear(1, 1)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-9))
loader = prepare(accelerator, loader)
if options.resume:
    accelerator.load_state(options.resume)
    try:
        accelerator.skip_first_batches(loader, 3)
    except shardload.ShardloadError as error:
        write(kind="refusal", text=str(error))
steps = 0
first = json.loads(loader.state_dict()["shardload"])["epoch"]
for epoch in range(first, options.epochs):
    loader.set_epoch(epoch)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch["number"].float()[:, None]).mean())
            optimizer.step()
            optimizer.zero_grad()
        assert batch["number"].device.type == accelerator.device.type
        write(kind="train", epoch=epoch, ids=batch["number"].tolist(), stepped=accelerator.sync_gradients)
        steps += 1
        if steps == options.save_at:
            accelerator.save_state(options.folder / f"{options.name}.ckpt")
            raise SystemExit

# Scores for a metric, in each way that the end of an epoch can be told: in order, and each sample once.
for tail in ("short", "pad", "mask", "drop"):
    scores = []
    evaluation = prepare(accelerator, shardload.ShardLoader(dataset, 9, shuffle=False, tail=tail))
    for batch in evaluation:
        scores += evaluation.gather_for_metrics({"score": batch["number"] * 2})["score"].tolist()
    write(kind=tail, ids=[score // 2 for score in scores])
accelerator.end_training()
