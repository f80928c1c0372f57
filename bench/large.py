"""Cases of datasets with a thousand million samples and more: their order, and how soon a loop begins or goes on."""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import sys
import time
import timeit
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import shardload
from bench.case import NONE, Arm, Case, Line
from shardload.format import layout
from shardload.order import RECIPE, Permutation

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from forge import Forge

BLOCK = 65_536
"""Positions that are asked for at a time."""
BATCH_SIZE = 256
SHARD_SAMPLES = 4096 * layout.PAGE_BYTES


def order_peak(num_samples: int) -> float:
    """Returns the most bytes held while the order is made and asked for blocks all over the epoch, ids and positions too."""
    tracemalloc.start()
    try:
        order = Permutation(num_samples, seed=1, epoch=2)
        for start in range(0, num_samples - BLOCK, num_samples // 16):
            ids = order.sample_ids(np.arange(start, start + BLOCK))
            assert ids.min() >= 0 and ids.max() < num_samples
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(np.unique(ids)) == BLOCK
    return float(peak)


class Seeds:
    """A seed of its own for each run."""

    def __init__(self) -> None:
        self._last = 1000

    def next(self) -> int:
        """Returns the next one."""
        self._last += 1
        return self._last


def whole_epoch(num_samples: int, seeds: Seeds) -> float:
    """Returns the seconds an id of a whole epoch's order, made block by block; checks that each id comes once."""
    order, seconds = Permutation(num_samples, seed=seeds.next(), epoch=0), 0.0
    seen = np.zeros(num_samples, dtype=bool)
    for begin in range(0, num_samples, BLOCK):
        start = time.perf_counter()
        ids = order.sample_ids(np.arange(begin, min(begin + BLOCK, num_samples)))
        seconds += time.perf_counter() - start
        seen[ids] = True
    assert seen.all()
    return seconds / num_samples


def stored_epoch(num_samples: int, seeds: Seeds) -> float:
    """Returns the seconds an id of numpy's permutation, which is stored."""
    rng, start = np.random.default_rng(seeds.next()), time.perf_counter()
    ids = rng.permutation(num_samples)
    seconds = time.perf_counter() - start
    assert len(ids) == num_samples
    return seconds / num_samples


def requests(num_samples: int, size: int, seeds: Seeds) -> float:
    """Returns the seconds an id in requests of so many, all over the epoch."""
    order, count = Permutation(num_samples, seed=seeds.next(), epoch=0), max(16, 2**21 // size)
    starts = np.linspace(0, num_samples - size, count).astype(np.int64).tolist()
    seconds = 0.0
    for begin in starts:
        start = time.perf_counter()
        ids = order.sample_ids(np.arange(begin, begin + size))
        seconds += time.perf_counter() - start
        assert 0 <= int(ids[0]) < num_samples
    return seconds / (count * size)


def p12(folder: Path, scale: float) -> Iterator[Line]:
    del folder
    facts: dict[str, Any] = {"order": f"recipe {RECIPE}", "block": BLOCK, "threads": 1, "cache": "no files"}
    order_peak(10**9)
    for name, count in (("memory at 10^9", 10**9), ("memory at 10^10", 10**10)):
        held: dict[str, Arm] = {"held": functools.partial(order_peak, count)}
        yield Line(name, held, True, (8e6, 1e6), "MB", facts=facts | {"samples": count})
    both: dict[str, Arm] = {name: functools.partial(order_peak, n) for name, n in (("10^10", 10**10), ("10^9", 10**9))}
    yield Line("memory, 10^10 to 10^9", both, True, (1.05, 1.0), "MB", facts=facts)
    seeds = Seeds()
    for exponent in (7, 8):
        count = int(10**exponent * scale)
        arms: dict[str, Arm] = {
            "Permutation": functools.partial(whole_epoch, count, seeds),
            "Generator": functools.partial(stored_epoch, count, seeds),
        }
        yield Line(f"time, 10^{exponent}", arms, True, (1.0, 0.5), "ns", facts=facts | {"samples": count})
    sizes: dict[str, Arm] = {str(n): functools.partial(requests, 10**9, n, seeds) for n in (256, BLOCK)}
    yield Line("time, 256 to 65,536 ids", sizes, True, NONE, "ns", facts=facts | {"samples": 10**9})
    larger: dict[str, Arm] = {
        name: functools.partial(requests, 10**n, BLOCK, seeds) for name, n in (("10^10", 10), ("10^9", 9))
    }
    yield Line("time, 10^10 to 10^9", larger, True, NONE, "ns", facts=facts)


def write(path: Path, num_samples: int) -> None:
    """Writes a dataset of so many samples of one byte, the low byte of the number, with all its digests right.

    Each page of the row table then has the same bytes, and the digests cost one.
    """
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


class FirstBatches:
    """Time to the first batch of one dataset, of a fresh loader or one that goes on at 99 % of the epoch."""

    def __init__(self, path: Path, num_samples: int, seeds: Seeds, runs: int = 9) -> None:
        self._path, self._num_samples, self._seeds, self._runs = path, num_samples, seeds, runs

    def fresh(self) -> float:
        """Returns the seconds from the making of a loader to its first batch."""
        return statistics.median(self._once(False, False) for _ in range(self._runs))

    def resumed(self) -> float:
        """Returns the same with a state loaded."""
        return statistics.median(self._once(True, False) for _ in range(self._runs))

    def opened_fresh(self) -> float:
        """Returns the seconds from `open`: files are opened and their heads read anew."""
        return statistics.median(self._once(False, True) for _ in range(self._runs))

    def opened_resumed(self) -> float:
        """Returns the same with a state loaded."""
        return statistics.median(self._once(True, True) for _ in range(self._runs))

    def _once(self, resumed: bool, opened: bool) -> float:
        seed, dataset = self._seeds.next(), shardload.open(self._path)
        # A read before the clock runs, so that files are mapped and heads are checked.
        dataset.__getitems__(list(range(0, self._num_samples, self._num_samples // 64)))
        planned = shardload.ShardLoader(dataset, BATCH_SIZE, shuffle=True, seed=seed)
        state, position = planned.state_at(len(planned) * 99 // 100), len(planned) * 99 // 100 * BATCH_SIZE
        start = time.perf_counter()
        if opened:
            dataset = shardload.open(self._path)
        loader = shardload.ShardLoader(dataset, BATCH_SIZE, shuffle=True, seed=seed, with_ids=True)
        if resumed:
            loader.load_state_dict(state)
        # Kept until the clock has stopped: what ends with it, threads that read ahead, is not the first batch.
        batches = iter(loader)
        batch = next(batches)
        seconds = time.perf_counter() - start
        loader.close()
        self._check(batch, seed, position if resumed else 0)
        return seconds

    def _check(self, batch: dict[str, Any], seed: int, position: int) -> None:
        order = Permutation(self._num_samples, seed=seed, epoch=0)
        ids = order.sample_ids(np.arange(position, position + BATCH_SIZE))
        assert batch["_sample_id"].tolist() == ids.tolist()
        assert batch["low_byte"].tolist() == (ids % 256).tolist()


def state_seconds(path: Path) -> float:
    """Returns the seconds of a state_dict() in mid-epoch, best of 5 runs of 1,000."""
    loader = shardload.ShardLoader(shardload.open(path), BATCH_SIZE, shuffle=True, seed=2**64 - 1)
    loader.load_state_dict(loader.state_at(len(loader) * 99 // 100))
    next(iter(loader))
    best = min(timeit.repeat(loader.state_dict, number=1000, repeat=5)) / 1000
    assert len(json.dumps(loader.state_dict())) < 1000
    loader.close()
    return best


def p14(folder: Path, scale: float) -> Iterator[Line]:
    counts = {"10^9": int(10**9 * scale), "10^6": int(10**6 * scale)}
    seeds, made = Seeds(), {}
    for name, count in counts.items():
        write(folder / name, count)
        made[name] = FirstBatches(folder / name, count, seeds)
    big, small = made.values()
    facts: dict[str, Any] = {"order": "shuffled", "samples": counts["10^9"], "batch": BATCH_SIZE, "verify": "auto"}
    facts |= {"threads": "the loader's choice", "figure": "median of 9 first batches, a seed of its own each"}
    # What is yielded runs once before it counts, so that code and pages are where they stay.
    for arm in (big.fresh, small.fresh, big.resumed, big.opened_fresh, small.opened_fresh, big.opened_resumed):
        arm()
    size: dict[str, Arm] = {"10^9": big.fresh, "10^6": small.fresh}
    yield Line("fresh, 10^9 to 10^6", size, True, (1.5, 1.1), "ms", facts=facts)
    size = {"10^9": big.opened_fresh, "10^6": small.opened_fresh}
    yield Line("opened, 10^9 to 10^6", size, True, (1.5, 1.1), "ms", facts=facts)
    place: dict[str, Arm] = {"resumed": big.resumed, "fresh": big.fresh}
    yield Line("resumed to fresh", place, True, (1.2, 1.05), "ms", facts=facts)
    place = {"resumed": big.opened_resumed, "fresh": big.opened_fresh}
    yield Line("opened, resumed to fresh", place, True, (1.2, 1.05), "ms", facts=facts)
    state: dict[str, Arm] = {"state_dict()": functools.partial(state_seconds, folder / "10^9")}
    yield Line("state_dict()", state, True, NONE, "us", facts=facts)


CASES = (
    Case("P12", "the order: memory, and time an id / Generator.permutation", False, 1.0, 0.5, p12),
    Case("P14", "time to the first batch: by samples, and resumed at 99 % / fresh", False, 1.5, 1.1, p14),
)
