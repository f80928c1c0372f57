"""Loading speed of 4 KiB samples from memory against what a user would write by hand.

Run: python bench/loader_speed.py [--samples N] [--repeats N] [--json]

Arms, interleaved in each repeat, one epoch each in a new random order, batch 256, one process:
  loader      ShardLoader
  dataloader  torch's DataLoader over shardload.open with our batch sampler, no workers
  gather      torch's DataLoader over np.memmap with __getitems__: one np.take a batch, written by hand
  map-style   torch's DataLoader over np.memmap, one copy a sample, default collation: the usual dataset
The files are in the page cache (each arm runs once before it counts). A figure is microseconds a sample, median over the
repeats with the spread (max - min) / median; above 15 % it is no claim.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

import shardload

BATCH_SIZE = 256


class MapStyle:
    """One copy a sample."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index].copy()


class Gather(MapStyle):
    """One gather a batch."""

    def __getitems__(self, indices: list[int]) -> np.ndarray:
        return np.take(self.rows, indices, axis=0)


def write(folder: Path, num_samples: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = np.memmap(folder / "rows.bin", dtype=np.int32, mode="w+", shape=(num_samples, 1024))
    with shardload.ShardWriter(
        folder / "dataset", {"number": "int64", "tokens": "int32[1024]"}, shard_size="64MiB"
    ) as writer:
        for i in range(num_samples):
            rows[i] = rng.integers(0, 50_000, 1024, dtype=np.int32)
            rows[i, 0] = i
            writer.write({"number": i, "tokens": rows[i]})
    return rows


def arms(folder: Path, rows: np.ndarray, verify: str) -> dict[str, Callable[[], Iterable[torch.Tensor]]]:
    dataset = shardload.open(folder / "dataset", fields=["tokens"], verify=verify)
    loader = shardload.ShardLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=False)
    sampler = shardload.ShardSampler(dataset).batch_sampler(BATCH_SIZE)
    ours = DataLoader(dataset, batch_sampler=sampler, collate_fn=shardload.collate)
    return {
        "loader": lambda: (batch["tokens"] for batch in loader),
        "dataloader": lambda: (batch["tokens"] for batch in ours),
        "gather": lambda: DataLoader(Gather(rows), BATCH_SIZE, shuffle=True, collate_fn=torch.from_numpy),
        "map-style": lambda: DataLoader(MapStyle(rows), BATCH_SIZE, shuffle=True),
    }


def epoch(batches: Iterable[torch.Tensor], num_samples: int) -> float:
    """Returns microseconds a sample of one epoch, and checks that it held every sample once."""
    seen = torch.zeros(num_samples, dtype=torch.int64)
    start = time.perf_counter()
    for batch in batches:
        seen[batch[:, 0].long()] += 1
    seconds = time.perf_counter() - start
    assert bool((seen == 1).all())
    return seconds / num_samples * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--verify", default="auto", choices=("auto", "always", "off"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = write(Path(name), options.samples)
        cases = arms(Path(name), rows, options.verify)
        times: dict[str, list[float]] = {arm: [] for arm in cases}
        for repeat in range(options.repeats + 1):
            for arm, batches in cases.items():
                microseconds = epoch(batches(), options.samples)
                if repeat:
                    times[arm].append(microseconds)
    versions = f"python {platform.python_version()}, torch {version('torch')}, numpy {version('numpy')}"
    medians = {arm: statistics.median(runs) for arm, runs in times.items()}
    table = [
        {"arm": arm, "microseconds": round(medians[arm], 3), "spread": round((max(runs) - min(runs)) / medians[arm], 3)}
        | {"ratio_to_gather": round(medians[arm] / medians["gather"], 2)}
        for arm, runs in times.items()
    ]
    if options.json:
        print(json.dumps({"versions": versions, "verify": options.verify, "arms": table}, indent=1))
        return
    facts = f"{options.samples} samples, batch {BATCH_SIZE}, warm, verify {options.verify}, {options.repeats} repeats"
    print(f"{versions}; {facts}")
    for row in table:
        figures = f"{row['microseconds']:7.2f} us/sample  spread {row['spread']:.0%}"
        print(f"{row['arm']:11s} {figures}  {row['ratio_to_gather']:.2f} x gather")


if __name__ == "__main__":
    main()
