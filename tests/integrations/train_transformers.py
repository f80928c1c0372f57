"""A training script with the Trainer of transformers; every rank records the ids of its steps."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments

import shardload
from shardload.integrations.transformers import ShardTrainer

parser = argparse.ArgumentParser()
parser.add_argument("dataset")
parser.add_argument("folder", type=Path)
parser.add_argument("--name", default="run")
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--epochs", type=float, default=2)
parser.add_argument("--max-steps", type=int, default=-1)
parser.add_argument("--save-at", type=int, default=0, help="save at this step, and end")
parser.add_argument("--loader-batch-size", type=int)
parser.add_argument("--resume")
options = parser.parse_args()
record = (options.folder / f"{options.name}-{os.environ.get('RANK', 0)}.jsonl").open("w")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, number):
        facts = {"kind": "train", "epoch": int(trainer.state.epoch or 0), "step": trainer.state.global_step}
        record.write(json.dumps({**facts, "ids": number.tolist()}) + "\n")
        return {"loss": self.layer(number.float()[:, None]).mean()}


class End(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == options.save_at:
            control.should_save = control.should_training_stop = True


arguments = TrainingArguments(
    output_dir=str(options.folder / options.name),
    per_device_train_batch_size=options.batch_size,
    gradient_accumulation_steps=4,
    num_train_epochs=options.epochs,
    max_steps=options.max_steps,
    learning_rate=1e-9,
    save_strategy="no",
    logging_strategy="no",
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
)
batch_size = options.loader_batch_size or options.batch_size
loader = shardload.ShardLoader(shardload.open(options.dataset), batch_size, shuffle=True, seed=5, tail="short")
trainer = ShardTrainer(Model(), arguments, train_loader=loader, callbacks=[End()])
checkpoint = options.resume and str(next(Path(options.resume).glob("checkpoint-*")))
trainer.train(resume_from_checkpoint=checkpoint)
facts = {"kind": "end", "epoch": 0, "step": trainer.state.global_step, "ids": []}
record.write(json.dumps({**facts, "at": trainer.state.epoch, "max_steps": trainer.state.max_steps}) + "\n")
record.close()
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
