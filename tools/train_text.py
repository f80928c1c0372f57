"""Trains a small language model on two corpora of tokens in given shares, on any number of ranks, with checkpoints.

    torchrun --nproc-per-node 2 tools/train_text.py code=code/:3 prose=prose/:1 --checkpoints checkpoints/

Each corpus is a dataset with a field `tokens`, as `shardload pack --tokenizer` makes it, and has a share. Kill it, all of it,
whenever you like, and start it again, with more ranks or fewer: it goes on with exactly the next windows. With other shares it
goes on in those (`--reweigh`), and no window of a corpus comes again for it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import shardload

CONTEXT, WIDTH, LAYERS, NUM_TOKENS = 64, 64, 2, 256


class LanguageModel(nn.Module):
    """A small causal transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_TOKENS, WIDTH)
        self.place = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, NUM_TOKENS)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits of shape (batch, CONTEXT, NUM_TOKENS)."""
        return self.head(self.blocks(self.embed(tokens) + self.place, mask=self.mask, is_causal=True))


def make_mixture(corpora: list[str]) -> shardload.Mixture:
    """Returns the windows of all corpora, each given as name=dataset:share."""
    sources = {}
    for corpus in corpora:
        name, _, rest = corpus.partition("=")
        path, _, share = rest.rpartition(":")
        windows = shardload.TokenWindows(shardload.open(path), "tokens", CONTEXT, phase="epoch")
        sources[name] = windows, float(share)
    return shardload.Mixture(sources, stop="repeat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="+", metavar="NAME=DATASET:SHARE")
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=48, help="windows a step, over all ranks")
    parser.add_argument("--every", type=int, default=25, help="steps between two checkpoints")
    parser.add_argument("--reweigh", action="store_true", help="go on in these shares where the checkpoint has others")
    parser.add_argument("--record", type=Path, help="folder in which each rank writes which windows it was given")
    options = parser.parse_args()

    # Ranks that miss each other at a restart would wait for half an hour; torchrun starts those anew that give up.
    distributed.init_process_group("gloo", timeout=datetime.timedelta(minutes=2))
    rank, num_ranks = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    mixture = make_mixture(options.corpora)
    loader = shardload.ShardLoader(mixture, options.batch_size // num_ranks, shuffle=True, seed=1, with_ids=True)
    model = DistributedDataParallel(LanguageModel())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    saver = shardload.Checkpointer(options.checkpoints, model=model, optimizer=optimizer, loader=loader)
    step = saver.restore(reweigh=options.reweigh) or 0
    if rank == 0 and step:
        print(f"  going on after step {step} on {num_ranks} ranks", flush=True)
    loader.check_ranks()

    record = options.record / f"rank-{rank}.jsonl" if options.record else None
    start, seen, losses = time.perf_counter(), 0, []
    while step < options.steps:
        for batch in loader:
            scores = model(batch["input_ids"])
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), batch["labels"].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(loss.item())
            seen += batch["labels"].numel()
            if record is not None:
                ids = batch["_sample_id"].tolist()
                with record.open("a") as file:
                    file.write(json.dumps({"step": step, "ranks": num_ranks, "rank": rank, "ids": ids}) + "\n")
            if step % options.every == 0 or step == options.steps:
                saver.save(step)
                if rank == 0:
                    counts = loader.stats().num_source_samples
                    shares = " ".join(f"{name} {count / sum(counts.values()):.1%}" for name, count in counts.items())
                    rate = seen * num_ranks / (time.perf_counter() - start)
                    print(
                        f"  step {step:4d}  loss {sum(losses) / len(losses):.3f}  {rate:6.0f} tokens/s  {shares}  "
                        f"stall {loader.stats().stall_fraction:.2%}  checkpoints {saver.stats().share:.2%} of the time",
                        flush=True,
                    )
                start, seen, losses = time.perf_counter(), 0, []
            if step == options.steps:
                break
    saver.close()
    loader.close()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
