"""What packing fills and costs: log-normal lengths, packed into sequences, in batches within a budget, and padded as they come.

Run: python -m bench.packed_sequences [--json] [--samples 65536] [--length 2048] [--repeats 5]

`fill` is the part of the delivered places that hold a token; `us a sample` the time of an epoch, median over the repeats with
the arms one after the other in each, `spread` (max - min) / median. `arrange` is what one rank pays for each sample of all
ranks: the lengths and the packing alone. Everything is in memory; an epoch is checked to have each token once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import shardload


def write(path: Path, num_samples: int, length: int) -> int:
    """Writes documents whose tokens tell their document; returns the number of tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(length / 5), 1, num_samples).astype(np.int64).clip(1, length)
    with shardload.ShardWriter(path, {"tokens": "int32[*]"}) as writer:
        for i, size in enumerate(lengths.tolist()):
            writer.write({"tokens": np.full(size, i, dtype=np.int32)})
    return int(lengths.sum())


def epoch(loader: shardload.ShardLoader, num_tokens: int, real: Callable[[dict[str, Any]], tuple[int, int]]) -> float:
    """Returns seconds a sample of an epoch, its fill in `fills`; checks that all tokens came."""
    start, tokens, places = time.perf_counter(), 0, 0
    for batch in loader:
        mine = real(batch)
        tokens, places = tokens + mine[0], places + mine[1]
    seconds = time.perf_counter() - start
    assert tokens == num_tokens
    fills[id(loader)] = tokens / places
    return seconds


fills: dict[int, float] = {}


def in_rows(batch: dict[str, Any]) -> tuple[int, int]:
    """Returns the tokens of a packed batch and its places."""
    return int(batch["lengths"].sum()), batch["tokens"].numel()


def padded(batch: dict[str, Any]) -> tuple[int, int]:
    """Pads a ragged batch, and returns its tokens and its places."""
    values, lengths = shardload.padded(batch["tokens"])
    return int(lengths.sum()), values.numel()


def main() -> None:
    """Times the arms in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1 << 16)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        num_tokens = write(Path(folder) / "dataset", options.samples, options.length)
        dataset = shardload.open(Path(folder) / "dataset")
        sequences = shardload.PackedSequences(dataset, "tokens", options.length)
        budget, mean = 8 * options.length, num_tokens / options.samples
        settings: dict[str, Any] = {"shuffle": True, "tail": "short", "num_replicas": 1, "rank": 0}
        loaders = {
            "packed": (shardload.ShardLoader(sequences, 8, **settings), in_rows),
            "batch_tokens, padded": (shardload.ShardLoader(dataset, batch_tokens=budget, **settings), padded),
            "as they come, padded": (shardload.ShardLoader(dataset, round(budget / mean), **settings), padded),
        }
        seconds: dict[str, list[float]] = {name: [] for name in (*loaders, "arrange")}
        for repeat in range(options.repeats):
            for name, (loader, real) in loaders.items():
                seconds[name].append(epoch(loader, num_tokens, real))
            start = time.perf_counter()
            fills[0] = sequences.report(epoch=repeat).fill
            seconds["arrange"].append(time.perf_counter() - start)
    found = {}
    for name, times in seconds.items():
        middle = statistics.median(times)
        fill = fills[0 if name == "arrange" else id(loaders[name][0])]
        spread = (max(times) - min(times)) / middle
        found[name] = {"fill": fill, "us a sample": middle / options.samples * 1e6, "spread": spread}
    if options.json:
        print(json.dumps({"samples": options.samples, "length": options.length, "tokens": num_tokens, "arms": found}))
        return
    for name, facts in found.items():
        print(
            f"{name:22} fill {facts['fill']:.4f}  {facts['us a sample']:8.2f} us a sample  spread {facts['spread']:.0%}"
        )


if __name__ == "__main__":
    main()
