"""A training script with Lightning; every rank records the ids of the samples its steps were trained on."""

from __future__ import annotations

import argparse
import contextlib
import json
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

import shardload
from shardload.integrations.lightning import ShardCallback

parser = argparse.ArgumentParser()
parser.add_argument("dataset")
parser.add_argument("folder", type=Path)
parser.add_argument("--name", default="run")
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--world", type=int, default=1)
parser.add_argument("--save-at", type=int, default=0, help="save after so many batches, and raise")
parser.add_argument("--raise-in", type=int, default=0, help="raise in this batch's step, and save then")
parser.add_argument("--resume")
parser.add_argument("--tail", default="short")
parser.add_argument("--steps", type=int, default=-1)
parser.add_argument("--limit", type=int, default=None)
parser.add_argument("--sampler", action="store_true", help="a DataLoader over the batch sampler")
parser.add_argument("--replace", action="store_true", help="let Lightning replace the sampler")
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--unsized", action="store_true", help="beside a loader without a length: Lightning looks ahead")
parser.add_argument("--no-callback", action="store_true")
options = parser.parse_args()
warnings.filterwarnings("error", module="shardload")


class Unsized:
    def __iter__(self):
        while True:
            yield torch.zeros(1)


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.steps = 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)

    def training_step(self, batch):
        batch = batch["data"] if options.unsized else batch
        self.steps += 1
        if self.steps == options.raise_in:
            raise KeyboardInterrupt
        record("train", batch["number"].tolist())
        return self.layer(batch["number"].float()[:, None]).mean()

    def validation_step(self, batch):
        record("validate", batch["number"].tolist())


def record(kind, ids):
    with (options.folder / f"{options.name}-{trainer.global_rank}.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, "epoch": trainer.current_epoch, "ids": ids}) + "\n")


class Save(Callback):
    """Saves in the middle of an epoch and ends the run, as a job's end would; and when a step was cut off."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == options.save_at:
            trainer.save_checkpoint(options.folder / f"{options.name}.ckpt")
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    def on_exception(self, trainer, module, exception):
        if isinstance(exception, KeyboardInterrupt):
            trainer.save_checkpoint(options.folder / f"{options.name}.ckpt")


dataset = shardload.open(options.dataset)
if options.sampler:
    batches = shardload.ShardSampler(dataset, seed=5).batch_sampler(options.batch_size, tail=options.tail)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=shardload.collate, num_workers=options.workers)
else:
    loader = shardload.ShardLoader(dataset, options.batch_size, shuffle=True, seed=5, tail=options.tail)
trainer = Trainer(
    accelerator="cpu",
    devices=options.world,
    strategy="ddp" if options.world > 1 else "auto",
    max_epochs=options.epochs,
    max_steps=options.steps,
    limit_train_batches=options.limit,
    limit_val_batches=2,
    num_sanity_val_steps=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    use_distributed_sampler=options.replace or not options.sampler,
    callbacks=[Save()] if options.no_callback else [Save(), ShardCallback()],
)
validation = shardload.ShardLoader(dataset, 8, shuffle=False, tail="short")
train = CombinedLoader({"data": loader, "other": Unsized()}, "min_size") if options.unsized else loader
# Lightning turns an interrupt into an exit.
with contextlib.suppress(KeyboardInterrupt, SystemExit):
    trainer.fit(Model(), train, validation, ckpt_path=options.resume)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
