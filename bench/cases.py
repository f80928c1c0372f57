"""The cases: what is measured against what, each arm an epoch that is checked as it is timed.

An arm returns seconds a sample. The ratio of a case is its last arm over its first (how many times faster the first is), or
the reverse for limits, where the first arm is what is measured and the last the limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import shardload
from bench.limits import drop, gather, resident_fraction
from bench.workloads import TOKENS, Workload, images, tokens

Arm = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    what: str
    cold: bool
    at_least: float
    aim: float
    make: Callable[[Path, float], Iterable[tuple[str, dict[str, Arm], bool]]]
    """(folder, scale) -> for each line its name, arms, and whether less is better: first arm / last, else last / first."""


class Rows:
    """np.memmap, one copy a sample."""

    def __init__(self, work: Workload) -> None:
        self.rows = np.memmap(work.raw, dtype=np.int32, mode="r").reshape(-1, TOKENS)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index].copy()


class GatheredRows(Rows):
    """np.memmap, one gather a batch, as written by hand."""

    def __getitems__(self, indices: list[int]) -> np.ndarray:
        return np.take(self.rows, indices, axis=0)


@contextmanager
def one_core() -> Iterator[None]:
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(before)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def timed_tokens(batches: Iterable[torch.Tensor], expected: int) -> float:
    """Returns seconds a sample, and checks that so many different samples came."""
    seen: list[torch.Tensor] = []
    start = time.perf_counter()
    for batch in batches:
        seen.append(batch[:, 0].clone())
    seconds = time.perf_counter() - start
    assert len(torch.cat(seen).unique()) == expected == sum(map(len, seen))
    return seconds / expected


def loader_of(work: Workload, **options: Any) -> shardload.ShardLoader:
    dataset = shardload.open(work.dataset, **options)
    return shardload.ShardLoader(dataset, work.batch_size, shuffle=True, drop_last=False)


def c_gather(work: Workload, order: np.ndarray) -> float:
    """Copies the samples of batches from the mapped file into one buffer that is used again."""
    source = np.memmap(work.raw, dtype=np.uint8, mode="r")
    out = np.ones(int(np.sort(work.lengths)[-work.batch_size :].sum()), dtype=np.uint8)
    start = time.perf_counter()
    for first in range(0, len(order), work.batch_size):
        ids = order[first : first + work.batch_size]
        gather(source, work.offsets[ids], work.lengths[ids], out)
    return (time.perf_counter() - start) / len(order)


def p1(folder: Path, scale: float) -> Iterator[tuple[str, dict[str, Arm], bool]]:
    work = tokens(folder, int(50_000 * scale))
    order = np.random.default_rng(2).permutation(len(work))
    with one_core():
        later, off = loader_of(work, verify="once"), loader_of(work, verify="off")

    def run(loader: shardload.ShardLoader | None = None) -> float:
        with one_core():
            batches = loader_of(work, verify="once") if loader is None else loader
            return timed_tokens((batch["tokens"] for batch in batches), len(work))

    def limit() -> float:
        with one_core():
            return c_gather(work, order)

    for _ in range(2):
        run(later), run(off), limit()
    yield "later epochs", {"loader": lambda: run(later), "C gather": limit}, True
    yield "verify off", {"loader": lambda: run(off), "C gather": limit}, True
    yield "first epoch", {"loader": run, "C gather": limit}, True


def p3(folder: Path, scale: float) -> Iterator[tuple[str, dict[str, Arm], bool]]:
    work = images(folder, int(3_000 * scale))
    order = np.random.default_rng(3).permutation(len(work))

    def run(loader: shardload.ShardLoader) -> float:
        seen, start = [], time.perf_counter()
        for batch in loader:
            seen += [int.from_bytes(data[:8], "little") for data in batch["image"]]
        seconds = time.perf_counter() - start
        assert sorted(seen) == list(range(len(work)))
        return seconds / len(work)

    later, off = loader_of(work, verify="once"), loader_of(work, verify="off")
    for _ in range(2):
        run(later), run(off), c_gather(work, order)
    limit = {"C memcpy": lambda: c_gather(work, order)}
    yield "later epochs", {"loader": lambda: run(later)} | limit, False
    yield "verify off", {"loader": lambda: run(off)} | limit, False
    yield "first epoch", {"loader": lambda: run(loader_of(work, verify="once"))} | limit, False


def hand_written(work: Workload, kind: type[Rows], order: np.ndarray | None = None) -> Iterable[torch.Tensor]:
    options: dict[str, Any] = {"shuffle": True} if order is None else {"sampler": order.tolist()}
    if kind is GatheredRows:
        options["collate_fn"] = torch.from_numpy
    return DataLoader(kind(work), work.batch_size, **options)


def p5(folder: Path, scale: float) -> Iterator[tuple[str, dict[str, Arm], bool]]:
    work = tokens(folder, int(50_000 * scale))
    loader = loader_of(work)
    dataset = shardload.open(work.dataset)
    sampler = shardload.ShardSampler(dataset).batch_sampler(work.batch_size)
    ours = DataLoader(dataset, batch_sampler=sampler, collate_fn=shardload.collate)
    gathered: dict[str, Arm] = {"gather": lambda: timed_tokens(hand_written(work, GatheredRows), len(work))}
    first: Arm = lambda: timed_tokens((batch["tokens"] for batch in loader), len(work))  # noqa: E731
    second: Arm = lambda: timed_tokens((batch["tokens"] for batch in ours), len(work))  # noqa: E731
    for arm in (first, second, gathered["gather"]):
        arm()
    yield "path 2", {"loader": first} | gathered, False
    yield "path 1", {"sampler": second} | gathered, False
    styled: Arm = lambda: timed_tokens(hand_written(work, Rows), len(work))  # noqa: E731
    yield "path 2 to map-style", {"loader": first, "map-style": styled}, False


def p7(folder: Path, scale: float) -> Iterator[tuple[str, dict[str, Arm], bool]]:
    work = tokens(folder, int(100_000 * scale))
    rng = np.random.default_rng(4)

    def cold(batches: Callable[[], Iterable[torch.Tensor]], expected: int) -> float:
        drop(work.files)
        seconds = timed_tokens(batches(), expected)
        assert resident_fraction(work.files) > 0.001
        return seconds

    def path_1() -> Iterable[torch.Tensor]:
        dataset = shardload.open(work.dataset)
        sampler = shardload.ShardSampler(dataset).batch_sampler(work.batch_size, read_ahead=16)
        return (b["tokens"] for b in DataLoader(dataset, batch_sampler=sampler, collate_fn=shardload.collate))

    # The plain way is so slow that it gets a part of the samples, at random over the whole file.
    part = max(work.batch_size, len(work) // 20)
    plain: dict[str, Arm] = {
        "map-style": lambda: cold(lambda: hand_written(work, Rows, rng.permutation(len(work))[:part]), part)
    }
    path_2: Arm = lambda: cold(lambda: (b["tokens"] for b in loader_of(work)), len(work))  # noqa: E731
    yield "path 2", {"loader": path_2} | plain, False
    yield "path 1", {"sampler": lambda: cold(path_1, len(work))} | plain, False


CASES = {
    case.name: case
    for case in (
        Case("P1", "tokens from memory, one core: loader / bare gather in C, time", False, 2.0, 1.3, p1),
        Case("P3", "large byte strings from memory: loader / memcpy in C, bandwidth", False, 0.7, 0.9, p3),
        Case(
            "P5", "tokens from memory: loader / hand-written gather under a DataLoader, samples/s", False, 1.0, 2.0, p5
        ),
        Case(
            "P7",
            "tokens from the disk, each touched once: loader / np.memmap + DataLoader, samples/s",
            True,
            8.0,
            30.0,
            p7,
        ),
    )
}
