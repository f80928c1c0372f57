"""Datasets behind a URL whose store answers late: beside one range request a sample, one after the other; and what they ask for.

What a loop waits at half load is measured as for P10, with three differences. The capacity is that of the second of two epochs
in a row: one that follows a loop which rested begins with all that was fetched meanwhile, up to a window of 64 MiB, and would
tell of a capacity that the store does not have. For the same reason there are two epochs at half load: the first one follows
one at full speed, which has left nothing in store, and waits at its start for the window that begins it; it is printed beside
the second one. The second one, at half load like the one before it, is what a training is. And the datasets are several such
windows long, so that most of an epoch is neither its start nor its end: for block shuffle these are as much smaller than usual
as the datasets are (`--scale`), as one that is a single window stays in memory.
"""

from __future__ import annotations

import functools
import http.client
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

import shardload
from bench.case import NONE, Arm, Case, Line, facts_of, timed
from bench.limits import rest
from bench.loop import batch_seconds, run_loop
from bench.slow_server import slow_server
from bench.workloads import Workload, images, tokens
from shardload.order.blocks import WINDOW_BLOCKS, usual_blocks

LATENCY_SECONDS = 0.02
_ONE_BY_ONE = 60


def one_by_one(url: str, work: Workload) -> float:
    """Asks for samples in random order by one range each over one connection; returns seconds a sample. Nothing is checked."""
    address, raw = urlsplit(url).netloc, work.raw.name
    order = np.random.default_rng(7).permutation(len(work))[:_ONE_BY_ONE]
    connection = http.client.HTTPConnection(address, timeout=60)
    total, start = 0, time.perf_counter()
    for number in order.tolist():
        first, length = int(work.offsets[number]), int(work.lengths[number])
        connection.request("GET", f"/{raw}", headers={"Range": f"bytes={first}-{first + length - 1}"})
        data = connection.getresponse().read()
        assert len(data) == length
        total += len(data)
    seconds = time.perf_counter() - start
    connection.close()
    return seconds / len(order)


def asked(loader: shardload.ShardLoader, also: dict[str, list[float]]) -> dict[str, float]:
    """Returns what was asked for since the last time, by sample."""
    stats = loader.stats()
    now = {"requests": stats.num_requests, "bytes": stats.requested_bytes, "needed": stats.needed_bytes}
    before = also.setdefault("before", [0.0, 0.0, 0.0])
    new = {name: value - old for (name, value), old in zip(now.items(), before, strict=True)}
    before[:] = now.values()
    return new


def p32(folder: Path, scale: float) -> Iterator[Line]:
    made = {"tokens": tokens(folder, int(200_000 * scale)), "jpeg": images(folder, int(10_000 * scale))}
    with slow_server(folder, LATENCY_SECONDS) as url:
        for name, work in made.items():
            yield _first_epochs(name, work, folder, url)
            for window_blocks in (None, max(4, int(WINDOW_BLOCKS * scale))):
                yield from _lines(name, work, window_blocks, url)


def _first_epochs(name: str, work: Workload, folder: Path, url: str) -> Line:
    """First epochs of loaders on which nothing is left of others, without a cache and with an empty one that has room for all."""
    also: dict[str, list[float]] = {"requests a sample": [], "bytes read a byte needed": []}

    def epoch(cached: bool) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            options = (
                {"cache_dir": directory, "cache_limit": max(16 << 20, 2 * work.raw.stat().st_size)} if cached else {}
            )
            dataset = shardload.open(f"{url}/{work.dataset.name}", **options)
            with shardload.ShardLoader(dataset, work.batch_size, shuffle=True, drop_last=False) as loader:
                seconds = timed(work, loader)
                stats = loader.stats()
        if cached:
            also["requests a sample"].append(stats.num_requests / len(work))
            also["bytes read a byte needed"].append(stats.requested_bytes / stats.needed_bytes)
        return seconds

    arms: dict[str, Arm] = {"an empty cache": lambda: epoch(True), "none": lambda: epoch(False)}
    epoch(False)
    facts = facts_of(work, epoch="first", latency=f"{LATENCY_SECONDS * 1e3:.0f} ms added", store="HTTP on loopback")
    return Line(f"{name}, full shuffle: without a cache / with", arms, False, NONE, also=also, facts=facts)


def _lines(name: str, work: Workload, window_blocks: int | None, url: str) -> Iterator[Line]:
    dataset = shardload.open(f"{url}/{work.dataset.name}")
    blocks = usual_blocks(len(dataset), dataset.num_bytes).block_samples
    shuffle = True if window_blocks is None else shardload.BlockShuffle(blocks, window_blocks)
    loader = shardload.ShardLoader(dataset, work.batch_size, shuffle=shuffle, drop_last=False)
    label = f"{name}, {'full' if shuffle is True else 'block'} shuffle"
    facts = facts_of(
        work, verify="auto: every arrival", latency=f"{LATENCY_SECONDS * 1e3:.0f} ms added", store="HTTP on loopback"
    )
    counts: dict[str, list[float]] = {}
    also: dict[str, list[float]] = {"requests a sample": [], "bytes read a byte needed": []}

    def epoch() -> float:
        seconds = timed(work, loader)
        new = asked(loader, counts)
        also["requests a sample"].append(new["requests"] / len(work))
        also["bytes read a byte needed"].append(new["bytes"] / new["needed"])
        return seconds

    epoch()
    for values in also.values():
        values.clear()
    arms: dict[str, Arm] = {"loader": epoch, "a request a sample": lambda: one_by_one(url, work)}
    yield Line(label, arms, False, (10.0, 50.0), also=also, facts=facts)
    if shuffle is True and name == "jpeg":
        yield Line(
            f"{label}: bytes read", {"loader": lambda: also["bytes read a byte needed"][-1]}, True, (1.1, 1.05), "%"
        )
        yield Line(f"{label}: requests", {"loader": lambda: also["requests a sample"][-1]}, True, (1.0, 0.9), "%")

    after_full: list[float] = []

    def stalled() -> float:
        for _ in range(2):
            capacity = batch_seconds(work, loader)
        loops = [run_loop(work, loader, functools.partial(rest, capacity / 0.5)) for _ in range(2)]
        parts = [loop.stall_seconds / loop.wall_seconds for loop in loops]
        after_full.append(parts[0] * 100)
        return parts[1]

    limits = (0.02, 0.005) if name == "tokens" else NONE
    halved = facts | {"load": 0.5}
    told = {"the epoch before it, after one at full speed, %": after_full}
    yield Line(f"{label}: stalled at half load", {"loader": stalled}, True, limits, "%", also=told, facts=halved)
    loader.close()


CASES = (
    Case(
        "P32",
        "20 ms to each answer of a store: one range request a sample in order / loader, time",
        False,
        10.0,
        50.0,
        p32,
    ),
)
