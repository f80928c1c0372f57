"""What a case is, and what several of them share: loaders that are checked as they are timed, and the limit in C."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

import shardload
from bench.limits import gather
from bench.workloads import Workload

Arm = Callable[[], float]
"""Runs once, checks what came, and returns a figure: seconds a sample unless the line has another unit."""


class ArmError(Exception):
    """An arm cannot be measured; the text says why. A line goes on without it, unless it is the line's first."""


NONE = (float("nan"), float("nan"))
"""The limits of a line that is only there for comparison."""


class Line(NamedTuple):
    """One line of the table: two arms and their ratio, or one arm and its figure."""

    name: str
    arms: dict[str, Arm]
    less_is_better: bool
    """Of two arms: whether the ratio is the first over the last and must stay below its limit, or the last over the
    first and must reach it. A single figure must stay below it."""
    limits: tuple[float, float] | None = None
    """At least and aim, where less is better at most and aim; None for those of the case."""
    unit: str = "us"
    """One of `UNITS`."""
    also: dict[str, list[float]] = {}  # noqa: RUF012 - a NamedTuple's default, which nobody changes
    """Further figures that arms note as they run."""
    facts: dict[str, Any] = {}  # noqa: RUF012
    """What the figures hold for: order, samples, batch, threads, verify. `missing` are arms that could not be measured and
    why, `by_arm` what holds for one arm only."""
    best_of: tuple[str, ...] | None = None
    """Of these the arm with the least median is what the first is compared with, instead of the second; without any the
    limits do not count."""


UNITS = {"us": 1e6, "ms": 1e3, "%": 100.0, "MB": 1e-6, "s/GB": 1.0, "ns": 1e9, "B": 1.0}
"""What a figure of an arm is multiplied with."""


@dataclass(frozen=True)
class Case:
    """Lines about one thing."""

    name: str
    what: str
    cold: bool
    at_least: float
    aim: float
    make: Callable[..., Iterable[tuple[Any, ...]]]
    """(folder, scale), and with `peers` their Pythons -> its lines, each a `Line` or the values of its first fields."""
    peers: bool = False
    """Whether it compares with other loaders, which have Pythons of their own."""


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


def loader_of(work: Workload, **options: Any) -> shardload.ShardLoader:
    dataset = shardload.open(work.dataset, **options)
    return shardload.ShardLoader(dataset, work.batch_size, shuffle=True, drop_last=False)


def numbers_in(values: Any) -> list[int]:
    """Returns the numbers that the beginnings of samples tell, whatever their workload."""
    if isinstance(values, np.ndarray):
        return values.tolist()
    if isinstance(values[0], str):
        return [int(text[:8]) for text in values]
    return [int.from_bytes(data[:8], "little") for data in values]


class Seen:
    """Which samples came. Keeps little, so that it costs the timed loop little."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._kept: list[Any] = []

    def add(self, batch: dict[str, Any]) -> None:
        """Keeps what tells the samples of a batch."""
        values = batch[self._work.field]
        if isinstance(values, torch.Tensor):
            # Not torch's clone: that gives the interpreter lock away, and the loop would wait here to have it back.
            self._kept.append(values.numpy()[:, 0].copy())
        else:
            self._kept.append([value[:8] for value in values])

    def check(self, whole: bool = True) -> int:
        """Returns how many came; all different, and with `whole` all that there are."""
        found = [number for values in self._kept for number in numbers_in(values)]
        assert len(set(found)) == len(found)
        assert not whole or sorted(found) == list(range(len(self._work)))
        return len(found)


def timed(work: Workload, batches: Iterable[dict[str, Any]]) -> float:
    """Returns seconds a sample of an epoch, and checks that all samples came once."""
    seen = Seen(work)
    start = time.perf_counter()
    for batch in batches:
        seen.add(batch)
    seconds = time.perf_counter() - start
    return seconds / seen.check()


def timed_tokens(batches: Iterable[torch.Tensor], expected: int) -> float:
    """Returns seconds a sample, and checks that so many different samples came."""
    seen: list[torch.Tensor] = []
    start = time.perf_counter()
    for batch in batches:
        seen.append(batch[:, 0].clone())
    seconds = time.perf_counter() - start
    assert len(torch.cat(seen).unique()) == expected == sum(map(len, seen))
    return seconds / expected


def mapped(work: Workload) -> np.ndarray:
    """Returns the raw file mapped: uint8 of shape (bytes,)."""
    return np.memmap(work.raw, dtype=np.uint8, mode="r")


def c_gather(work: Workload, order: np.ndarray, source: np.ndarray | None = None) -> float:
    """Copies the samples of batches from the mapped file into one buffer that is used again; returns seconds a sample.

    Args:
        work: whose samples.
        order: their numbers.
        source: the file as of `mapped`, used before, as a loader's is in later epochs; None to map it anew, as for a first one.
    """
    source = mapped(work) if source is None else source
    out = np.ones(int(np.sort(work.lengths)[-work.batch_size :].sum()), dtype=np.uint8)
    start = time.perf_counter()
    for first in range(0, len(order), work.batch_size):
        ids = order[first : first + work.batch_size]
        gather(source, work.offsets[ids], work.lengths[ids], out)
    return (time.perf_counter() - start) / len(order)


def facts_of(work: Workload, **more: Any) -> dict[str, Any]:
    """Returns what a figure of a loader holds for. Threads and read-ahead are the loader's own choice."""
    found = {"order": "shuffled", "samples": len(work), "bytes": int(work.lengths.sum()), "batch": work.batch_size}
    return found | {"threads": "the loader's choice", "verify": "auto", "copied": "into pooled buffers"} | more
