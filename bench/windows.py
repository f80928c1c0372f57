"""Windows of tokens from memory: beside a bare gather of the same bytes in C, and beside what is written by hand for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shardload
from bench.case import NONE, Arm, Case, Line, c_gather, facts_of, mapped, one_core, timed
from bench.case import loader_of as row_loader
from bench.limits import gather
from bench.workloads import Workload, tokens
from shardload.format.schema import Field

LENGTH, BATCH_WINDOWS = 2048, 32
KEPT_BATCHES = 24
"""About as many as a loader has memory for: 8 that are read together and 16 that wait."""


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


def floor(work: Workload, order: np.ndarray, source: np.ndarray, num_kept: int) -> float:
    """Gathers the windows of batches in C and widens them to inputs and labels, and no more; returns seconds a window.

    Args:
        work: the stream.
        order: numbers of windows.
        source: the file as of `mapped`.
        num_kept: so many batches there are memory for, which is used in turn.
    """
    shape, size = (num_kept, 2, work.batch_size, LENGTH), LENGTH + 1
    kept, narrow = torch.ones(shape, dtype=torch.int64), np.ones(work.batch_size * size, dtype=np.uint16)
    start = time.perf_counter()
    for number, first in enumerate(range(0, len(order), work.batch_size)):
        ids = order[first : first + work.batch_size]
        gather(source, work.offsets[ids], work.lengths[ids], narrow.view(np.uint8))
        items = torch.from_numpy(narrow)[: len(ids) * size].view(len(ids), size)
        for values, skip in zip(kept[number % num_kept], (0, 1), strict=True):
            values[: len(ids)].copy_(items[:, skip : skip + LENGTH])
    return (time.perf_counter() - start) / len(order)


def on_one_core(make: Callable[[], float]) -> Arm:
    def arm() -> float:
        with one_core():
            return float(make())

    return arm


def beside_rows(work: Workload, rows: Workload, batch_size: int) -> Iterator[Line]:
    """A window beside what the loader needs for a row of 4 KiB, which it only gathers: in batches of equally many."""
    work, rows = replace(work, batch_size=batch_size), replace(rows, batch_size=batch_size)
    with one_core():
        ours, theirs = loader_of(work, "once"), row_loader(rows, verify="once")
    facts = facts_of(
        work, verify="once", cores=1, delivered="windows as int64 inputs and labels, 32 KiB; rows as stored, 4 KiB"
    )
    later = {"windows": on_one_core(lambda: timed(work, ours)), "rows": on_one_core(lambda: timed(rows, theirs))}
    for arm in [*later.values()] * 2:
        arm()
    yield Line(f"rows, later, {batch_size}", later, True, NONE, facts=facts)
    first = {
        "windows": on_one_core(lambda: timed(work, loader_of(work, "once"))),
        "rows": on_one_core(lambda: timed(rows, row_loader(rows, verify="once"))),
    }
    yield Line(f"rows, first, {batch_size}", first, True, NONE, facts=facts)


def reading(source: Any, fields: Sequence[Field], batch_size: int) -> float:
    """Reads every sample once, in random order and into memory that is used again, with no loader; returns seconds a sample."""
    ids = np.random.default_rng(6).permutation(len(source))
    made = {field.name: np.ones((batch_size, *field.shape), field.dtype) for field in fields}
    start = time.perf_counter()
    for first in range(0, len(ids), batch_size):
        some = ids[first : first + batch_size]
        source.read_batches([some], [{name: values[: len(some)] for name, values in made.items()}], fields)
        assert (made[fields[0].name][: len(some), 0] == some).all()
    return (time.perf_counter() - start) / len(ids)


def read_beside_rows(work: Workload, rows: Workload, batch_size: int) -> Iterator[Line]:
    """What it takes to read a window beside a row of 4 KiB: as both are stored, which is how windows go to a device."""
    narrow = [Field("input_ids", "uint16", (LENGTH,))]
    facts = facts_of(work, verify="once", cores=1, batch=batch_size, delivered="as stored, by read_batches, no loader")

    def windows(later: bool) -> float:
        windows = shardload.TokenWindows(shardload.open(work.dataset, verify="once"), "tokens", LENGTH)
        return [reading(windows, narrow, batch_size) for _ in range(1 + later)][-1]

    def stored_rows(later: bool) -> float:
        dataset = shardload.open(rows.dataset, verify="once")
        return [reading(dataset, [dataset.schema[rows.field]], batch_size) for _ in range(1 + later)][-1]

    for epoch in ("later", "first"):
        arms = {
            name: on_one_core(partial(arm, epoch == "later"))
            for name, arm in (("windows", windows), ("rows", stored_rows))
        }
        yield Line(f"read, {epoch}, {batch_size}", arms, True, NONE, facts=facts)


def p31(folder: Path, scale: float) -> Iterator[Line]:
    work = token_stream(folder, int(30_000 * scale))
    order, source = np.random.default_rng(5).permutation(len(work)), mapped(work)
    stream = np.memmap(work.raw, dtype=np.uint16, mode="r")

    def arm_of(verify: str, documents: bool = False) -> Arm:
        with one_core():
            loader = loader_of(work, verify, documents)
        return on_one_core(lambda: timed(work, loader))

    limit = {"C gather": on_one_core(lambda: c_gather(work, order, source))}
    least = {
        "gather and widen": on_one_core(lambda: floor(work, order, source, 1)),
        f"into {KEPT_BATCHES} batches": on_one_core(lambda: floor(work, order, source, KEPT_BATCHES)),
    }
    later, off, parts = arm_of("once"), arm_of("off"), arm_of("once", documents=True)
    hand = on_one_core(lambda: timed(work, by_hand(work, stream, order)))
    for arm in [later, off, parts, hand, *limit.values(), *least.values()] * 2:
        arm()
    once = facts_of(work, verify="once", cores=1, delivered="int64, inputs and labels: 8 times the bytes")
    yield Line("later epochs", {"loader": later} | limit, True, NONE, facts=once)
    yield Line("beside the least", {"loader": later} | least, True, NONE, facts=once)
    yield Line("verify off", {"loader": off} | limit, True, NONE, facts=once | {"verify": "off"})
    first = on_one_core(lambda: timed(work, loader_of(work, "once")))
    anew = {"C gather": on_one_core(lambda: c_gather(work, order))}
    yield Line("first epoch", {"loader": first} | anew, True, NONE, facts=once)
    yield Line("documents", {"with": parts, "without": later}, True, NONE, facts=once)
    yield Line("beside by hand", {"loader": later, "np.memmap": hand}, False, facts=once)
    rows = tokens(folder, len(work))
    for batch_size in (BATCH_WINDOWS, rows.batch_size):
        yield from beside_rows(work, rows, batch_size)
        yield from read_beside_rows(work, rows, batch_size)


CASES = (
    Case(
        "P31", "windows of 2,048 uint16 tokens from memory, one core: loader / by hand, samples/s", False, 1.0, 2.0, p31
    ),
)
