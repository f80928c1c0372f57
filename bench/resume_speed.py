"""Time and size of a state, and time to the first batch of a resume against a fresh start, at a thousand million samples.

Run: python bench/resume_speed.py [--samples 1000000000] [--repeats 41] [--directory DIR] [--json]

The dataset is a real one on disk, in the format as it is: one uint8 field, so that a packed row is one byte, whose value is the
sample id modulo 256 (each page of the row table then has the same bytes, and the digests cost one). It takes one byte a sample
of free space and is removed afterwards.

Arms, interleaved in each repeat, with a seed of its own each time, batch 256, in one process:
  fresh     a ShardLoader, from its construction to the first batch
  resumed   the same with load_state_dict of a state at 99 % of the epoch before the first batch
  opened    both again with shardload.open in the time: the dataset's files are opened and their heads read anew
The files are in the page cache as far as the arms have brought them there; every sample of each first batch is compared with
what the order says. Then, of a loader in mid-epoch: state_dict() in microseconds (best of runs of 1,000) and bytes.
A figure is the median over the repeats with the spread (max - min) / median; above 15 % it is no claim. A ratio is the median of
the repeats' own ratios, with the range of their middle half. Each seed reads 256 other pages, which differ in how many of them
are known already.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import tempfile
import time
import timeit
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import shardload
from shardload.format import layout
from shardload.order import Permutation

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from forge import Forge

BATCH_SIZE = 256
SHARD_SAMPLES = 4096 * layout.PAGE_BYTES


def write(path: Path, num_samples: int) -> None:
    """Writes a dataset of so many samples of one byte, with all its digests right."""
    with shardload.ShardWriter(path, {"low_byte": "uint8"}) as writer:
        for i in range(layout.PAGE_BYTES):
            writer.write({"low_byte": i % 256})
    forge = Forge(path)
    template, entry = forge.shards[0], forge.entries[0]
    num_shards = -(-num_samples // SHARD_SAMPLES)
    forge.shards, forge.names = [], []
    # The shards share what they can: the rows of all but the last one are the same.
    rows = bytearray(np.tile(np.arange(256, dtype=np.uint8), SHARD_SAMPLES // 256).tobytes())
    for part in range(num_shards):
        count = min(SHARD_SAMPLES, num_samples - part * SHARD_SAMPLES)
        sections = [dataclasses.replace(section) for section in template.sections]
        footer = list(template.footer)
        footer[6] = layout.FOOTER_FLAG_LAST if part == num_shards - 1 else 0
        shard = dataclasses.replace(template, identity=(1, 0, part), sections=sections, footer=footer)
        shard.section(layout.SECTION_ROWS).data = rows if count == SHARD_SAMPLES else rows[:count]
        header = list(layout.HEADER.unpack_from(template.header))
        header[6] = part
        shard.header = bytearray(layout.HEADER.pack(*header)).ljust(layout.HEADER_BYTES, b"\0")
        forge.shards.append(shard)
        forge.names.append(layout.shard_name(1, 0, part))
    forge.entries = np.repeat(entry[np.newaxis], num_shards)
    forge.entries["part"] = np.arange(num_shards)
    forge.save()


def first_batch(dataset: shardload.ShardDataset, seed: int, state: dict[str, str] | None) -> tuple[float, Any]:
    """Returns the seconds from the construction of a loader to its first batch, and the batch."""
    start = time.perf_counter()
    loader = shardload.ShardLoader(dataset, BATCH_SIZE, shuffle=True, seed=seed, with_ids=True)
    if state is not None:
        loader.load_state_dict(state)
    batch = next(iter(loader))
    seconds = time.perf_counter() - start
    loader.close()
    return seconds, batch


def state_of(dataset: shardload.ShardDataset, seed: int) -> tuple[dict[str, str], int]:
    """Returns a state at 99 % of an epoch, and its position."""
    loader = shardload.ShardLoader(dataset, BATCH_SIZE, shuffle=True, seed=seed)
    state = loader.state_at(len(loader) * 99 // 100)
    return state, len(loader) * 99 // 100 * BATCH_SIZE


def check(batch: dict[str, Any], num_samples: int, seed: int, position: int) -> None:
    """Compares ids with the order, and every value with its id."""
    ids = Permutation(num_samples, seed=seed, epoch=0).sample_ids(np.arange(position, position + BATCH_SIZE))
    assert batch["_sample_id"].tolist() == ids.tolist()
    assert batch["low_byte"].tolist() == (ids % 256).tolist()


def run(path: Path, num_samples: int, repeats: int) -> dict[str, list[float]]:
    """Returns the milliseconds to the first batch, by arm."""
    times: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        seed = 1000 + repeat
        state, position = state_of(shardload.open(path), seed)
        for opened in (False, True):
            # Who is first changes, since the second finds the seed's code and the files a little warmer.
            for arm in ("fresh", "resumed") if repeat % 2 else ("resumed", "fresh"):
                dataset = shardload.open(path)
                if not opened:
                    # A read before the clock runs, so that files are mapped and heads are checked.
                    dataset.__getitems__(list(range(0, num_samples, num_samples // 64)))
                start = time.perf_counter()
                if opened:
                    dataset = shardload.open(path)
                before = time.perf_counter() - start
                seconds, batch = first_batch(dataset, seed, state if arm == "resumed" else None)
                check(batch, num_samples, seed, position if arm == "resumed" else 0)
                if repeat:
                    name = f"{arm}, opened anew" if opened else arm
                    times.setdefault(name, []).append((before + seconds) * 1e3)
    return times


def state_cost(path: Path) -> tuple[float, int]:
    """Returns the microseconds of a state_dict() in mid-epoch, and its bytes as JSON."""
    loader = shardload.ShardLoader(shardload.open(path), BATCH_SIZE, shuffle=True, seed=2**64 - 1)
    loader.load_state_dict(loader.state_at(len(loader) * 99 // 100))
    next(iter(loader))
    best = min(timeit.repeat(loader.state_dict, number=1000, repeat=5)) / 1000
    loader.close()
    return best * 1e6, len(json.dumps(loader.state_dict()))


def ratios(runs: list[float], fresh: list[float]) -> list[float]:
    """Returns the quartiles of the ratios of runs that were neighbours."""
    return statistics.quantiles([one / other for one, other in zip(runs, fresh, strict=True)], n=4, method="inclusive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--repeats", type=int, default=41)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        path = Path(name) / "dataset"
        write(path, options.samples)
        times = run(path, options.samples, options.repeats)
        microseconds, num_bytes = state_cost(path)
    medians = {arm: statistics.median(runs) for arm, runs in times.items()}
    table = [
        {
            "arm": arm,
            "milliseconds": round(medians[arm], 3),
            "spread": round((max(runs) - min(runs)) / medians[arm], 3),
            "ratio_to_fresh": [round(ratio, 3) for ratio in ratios(runs, times[arm.replace("resumed", "fresh")])],
        }
        for arm, runs in times.items()
    ]
    versions = f"python {platform.python_version()}, torch {version('torch')}, numpy {version('numpy')}"
    about = {"versions": versions, "samples": options.samples, "batch": BATCH_SIZE, "repeats": options.repeats}
    about |= {"dataset": f"real, one byte a sample, shards of {SHARD_SAMPLES:,}", "cache": "warm", "verify": "auto"}
    state = {"microseconds": round(microseconds, 1), "bytes": num_bytes}
    if options.json:
        print(json.dumps({"about": about, "arms": sorted(table, key=lambda row: row["arm"]), "state": state}, indent=1))
        return
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for row in sorted(table, key=lambda row: row["arm"]):
        figures = f"{row['milliseconds']:8.2f} ms  spread {row['spread']:.0%}"
        low, ratio, high = row["ratio_to_fresh"]
        print(f"{row['arm']:22s} {figures}  {ratio:.2f} x fresh ({low:.2f} to {high:.2f})")
    print(f"state_dict()           {microseconds:8.1f} us  {num_bytes} bytes")


if __name__ == "__main__":
    main()
