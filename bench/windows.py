"""Windows of tokens from memory: beside a bare gather of the same bytes in C, and beside what is written by hand for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shardload
from bench.case import NONE, Arm, Case, Line, c_gather, facts_of, mapped, one_core, timed
from bench.workloads import Workload

LENGTH, BATCH_WINDOWS = 2048, 32


def token_stream(folder: Path, num_windows: int) -> Workload:
    """Documents of uint16 tokens (log-normal, mean 1,300) whose stream has at each window's start the number of the window."""
    assert num_windows < 1 << 16
    rng, path, raw = np.random.default_rng(4), folder / "stream", folder / "stream.bin"
    stream = rng.integers(0, 50_000, num_windows * LENGTH + 1, dtype=np.uint16)
    stream[::LENGTH] = np.arange(num_windows + 1)
    ends = np.cumsum(1 + rng.lognormal(6.5, 1.2, len(stream) // 1000).astype(np.int64))
    with shardload.ShardWriter(path, {"tokens": "uint16[*]"}, shard_size="64MiB") as writer:
        for tokens in np.split(stream, ends[ends < len(stream)]):
            writer.write({"tokens": tokens})
    stream.tofile(raw)
    offsets = np.arange(num_windows, dtype=np.int64) * LENGTH * 2
    return Workload(path, raw, offsets, np.full(num_windows, 2 * (LENGTH + 1), np.int64), "input_ids", BATCH_WINDOWS)


def loader_of(work: Workload, verify: Any, documents: bool = False) -> shardload.ShardLoader:
    windows = shardload.TokenWindows(shardload.open(work.dataset, verify=verify), "tokens", LENGTH, documents=documents)
    return shardload.ShardLoader(windows, work.batch_size, shuffle=True, drop_last=False)


def by_hand(work: Workload, stream: np.ndarray, order: np.ndarray) -> Iterator[dict[str, torch.Tensor]]:
    """Yields batches as training scripts make them of np.memmap: one slice and one widening a window, then a stack."""
    for first in range(0, len(order), work.batch_size):
        starts = (order[first : first + work.batch_size] * LENGTH).tolist()
        inputs, labels = (
            torch.stack([torch.from_numpy(stream[start + skip :][:LENGTH].astype(np.int64)) for start in starts])
            for skip in (0, 1)
        )
        yield {"input_ids": inputs, "labels": labels}


def p30(folder: Path, scale: float) -> Iterator[Line]:
    work = token_stream(folder, int(30_000 * scale))
    order, source = np.random.default_rng(5).permutation(len(work)), mapped(work)
    stream = np.memmap(work.raw, dtype=np.uint16, mode="r")

    def on_one_core(make: Any) -> Arm:
        def arm() -> float:
            with one_core():
                return float(make())

        return arm

    def arm_of(verify: str, documents: bool = False) -> Arm:
        with one_core():
            loader = loader_of(work, verify, documents)
        return on_one_core(lambda: timed(work, loader))

    limit = {"C gather": on_one_core(lambda: c_gather(work, order, source))}
    later, off, parts = arm_of("once"), arm_of("off"), arm_of("once", documents=True)
    hand = on_one_core(lambda: timed(work, by_hand(work, stream, order)))
    for arm in [later, off, parts, hand, *limit.values()] * 2:
        arm()
    once = facts_of(work, verify="once", cores=1, delivered="int64, inputs and labels: 8 times the bytes")
    yield Line("later epochs", {"loader": later} | limit, True, NONE, facts=once)
    yield Line("verify off", {"loader": off} | limit, True, NONE, facts=once | {"verify": "off"})
    first = on_one_core(lambda: timed(work, loader_of(work, "once")))
    anew = {"C gather": on_one_core(lambda: c_gather(work, order))}
    yield Line("first epoch", {"loader": first} | anew, True, NONE, facts=once)
    yield Line("documents", {"with": parts, "without": later}, True, NONE, facts=once)
    yield Line("beside by hand", {"loader": later, "np.memmap": hand}, False, facts=once)


CASES = (
    Case(
        "P30", "windows of 2,048 uint16 tokens from memory, one core: loader / by hand, samples/s", False, 1.0, 2.0, p30
    ),
)
