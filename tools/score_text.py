"""Scores all documents of a packed corpus with a language model, on any number of ranks, and writes the scores as a dataset.

    torchrun --nproc-per-node 2 tools/score_text.py code/ scores/

scores[i] belongs to document i. Kill it, all of it, whenever you like, and start it again, with more ranks or fewer: what was
finished stays, and nothing comes twice.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from train_text import CONTEXT, LanguageModel

import shardload


def scores_of(model: nn.Module, documents: list[torch.Tensor]) -> torch.Tensor:
    """Returns the mean loss of each document's first CONTEXT tokens: float32 of shape (documents,), 0 for one of a single token."""
    tokens, lengths = shardload.padded([document[: CONTEXT + 1] for document in documents])
    tokens = nn.functional.pad(tokens.long(), (0, CONTEXT + 1 - tokens.shape[1]))
    losses = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    counted = torch.arange(CONTEXT) < (lengths - 1)[:, None]
    return (losses.view(-1, CONTEXT) * counted).sum(1) / counted.sum(1).clamp(min=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("output", type=Path)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LanguageModel().eval()

    scan = shardload.scan(shardload.open(options.corpus, fields=["tokens"]), options.batch_size)
    start, done = time.perf_counter(), 0
    with (
        torch.inference_mode(),
        shardload.ScanWriter(
            options.output, {"score": "float32"}, scan, metadata={"model": "untrained, seed 0"}
        ) as job,
    ):
        for batch in job:
            scores = scores_of(model, batch["tokens"])
            job.write({"score": scores})
            done += len(scores)
            print(f"  step {done} documents of rank {os.environ.get('RANK', 0)}", flush=True)
    seconds = time.perf_counter() - start
    print(f"  {done} documents, {done / seconds:.0f} a second, stall {scan.stats().stall_fraction:.2%}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
