"""Trains a small byte-level model on a packed corpus: a whole training script, as short as it can be.

With --state it saves its state every 30 steps and goes on from there when it is started again, on exactly the next
samples. --loader chooses where batches come from: shardload's own loader, torch's DataLoader over the packed dataset, or
torch's DataLoader over the source files, as such a script looks before shardload.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import shardload

CONTEXT = 128


def window(sample, rng):
    """Returns a random piece of a sample's text, the same for the same (seed, epoch, sample) wherever it is cut."""
    text = np.frombuffer(sample["text"], dtype=np.uint8)
    start = int(rng.integers(0, max(1, len(text) - CONTEXT)))
    piece = text[start : start + CONTEXT + 1].astype(np.int64)
    return {"piece": np.pad(piece, (0, CONTEXT + 1 - len(piece)))}


class ByteModel(nn.Module):
    """A small causal transformer over bytes."""

    def __init__(self, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.place = nn.Parameter(torch.zeros(CONTEXT, width))
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits of shape (batch, CONTEXT, 256)."""
        return self.head(self.blocks(self.embed(tokens) + self.place, mask=self.mask, is_causal=True))


def save(path: Path, **parts) -> None:
    """Saves atomically: a kill leaves the file before or the file after."""
    torch.save(parts, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


class FileDataset(torch.utils.data.Dataset):
    """The usual dataset: one file a sample."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(path for path in Path(folder).rglob("*.py") if "site-packages" not in path.parts)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        """Returns a random piece of a file."""
        return window({"text": self.paths[index].read_bytes()}, np.random.default_rng())


def make_batches(options):
    """Returns the batches; from `files` to `dataloader` two lines change."""
    if options.loader == "files":
        dataset = FileDataset(options.dataset)
        return DataLoader(dataset, batch_size=options.batch_size, shuffle=True, drop_last=True)
    if options.loader == "dataloader":
        dataset = shardload.open(options.dataset, transform=window)
        sampler = shardload.ShardSampler(dataset, seed=1, drop_last=True)
        return DataLoader(dataset, batch_sampler=sampler.batch_sampler(options.batch_size))
    dataset = shardload.open(options.dataset, transform=window)
    return shardload.ShardLoader(dataset, options.batch_size, shuffle=True, seed=1, with_ids=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--loader", choices=("shardload", "dataloader", "files"), default="shardload")
    parser.add_argument("--state", type=Path, help="file to save to and go on from")
    parser.add_argument("--record", type=Path, help="file that gets the sample ids of every step, one JSON line each")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = ByteModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = make_batches(options)
    step, waited, losses = 0, 0.0, []
    if options.state and options.state.exists():
        saved = torch.load(options.state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]
        print(f"  going on after step {step}", flush=True)
    record = options.record.open("a") if options.record else None
    first = step
    start = asked = time.perf_counter()
    while step < options.steps:
        for batch in loader:
            if step > first:
                waited += time.perf_counter() - asked
            else:
                start = time.perf_counter()
            piece = batch["piece"]
            loss = nn.functional.cross_entropy(model(piece[:, :-1]).flatten(0, 1), piece[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(loss.item())
            if record:
                record.write(json.dumps({"step": step, "ids": batch["_sample_id"].tolist()}) + "\n")
                record.flush()
            if options.state and step % 30 == 0:
                loader_state = loader.state_dict()
                save(
                    options.state,
                    step=step,
                    model=model.state_dict(),
                    optimizer=optimizer.state_dict(),
                    loader=loader_state,
                )
            if step % 50 == 0 or step == options.steps:
                seconds = time.perf_counter() - start
                rate = (step - first) * options.batch_size / seconds
                print(
                    f"  step {step:4d}  loss {np.mean(losses[-50:]):.3f}  {rate:6.0f} samples/s  "
                    f"stall {waited / seconds:.2%}",
                    flush=True,
                )
            if step == options.steps:
                break
            asked = time.perf_counter()


if __name__ == "__main__":
    main()
