"""Cases beside a training loop: how long it waits, and how fast its own Python runs meanwhile.

A loop at a load of x of the loader's own capacity is one that spends on each batch, between two calls of `next`, what a
batch takes at capacity divided by x: were it never to wait, it would take x of the batches a second that the loader gives to
a loop that does nothing. The capacity is measured just before, with the same loader, on the same cores.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

import shardload
from bench.case import NONE, Case, Line, Seen, facts_of, loader_of
from bench.limits import gather, rest
from bench.workloads import Workload, images, text, tokens

WORKLOADS: dict[str, Callable[[Path, float], Workload]] = {
    "tokens": lambda folder, scale: tokens(folder, int(100_000 * scale)),
    "text": lambda folder, scale: text(folder, int(100_000 * scale)),
    "zstd text": lambda folder, scale: text(folder, int(100_000 * scale), "zstd:3"),
    "jpeg": lambda folder, scale: images(folder, int(10_000 * scale)),
}


@dataclass(frozen=True)
class Loop:
    """What a loop over one epoch took, the first batch left out."""

    num_batches: int
    wall_seconds: float
    stall_seconds: float
    """Time in `next`."""

    @property
    def own_seconds(self) -> float:
        """All other time: the steps, and what was taken from the loop when it had taken a batch."""
        return self.wall_seconds - self.stall_seconds


def run_loop(work: Workload, loader: shardload.ShardLoader, step: Callable[[], object]) -> Loop:
    """Runs an epoch with a step after each batch, and checks that all samples came once."""
    seen, stall, batches = Seen(work), 0.0, iter(loader)
    seen.add(next(batches))
    num_batches, start = 0, time.perf_counter()
    while True:
        before = time.perf_counter()
        step()
        asked = time.perf_counter()
        batch = next(batches, None)
        now = time.perf_counter()
        if batch is None:
            wall = before - start
            break
        stall += now - asked
        num_batches += 1
        seen.add(batch)
        del batch
    seen.check()
    return Loop(num_batches, wall, stall)


def batch_seconds(work: Workload, loader: shardload.ShardLoader) -> float:
    """Returns the seconds a batch of a loop that does nothing."""
    loop = run_loop(work, loader, lambda: None)
    return loop.wall_seconds / loop.num_batches


def p10(folder: Path, scale: float) -> Iterator[Line]:
    for name in ("tokens", "zstd text", "jpeg"):
        work = WORKLOADS[name](folder, scale)
        loader = loader_of(work)
        for _ in range(2):
            batch_seconds(work, loader)
        for load, limits in ((0.5, (0.01, 0.001)), (0.9, (0.05, 0.01))):
            also: dict[str, list[float]] = {"load": [], "samples/s": []}

            def stalled(work: Any = work, loader: Any = loader, load: float = load, also: Any = also) -> float:
                capacity = batch_seconds(work, loader)
                loop = run_loop(work, loader, functools.partial(rest, capacity / load))
                also["load"].append(loop.num_batches * capacity / loop.wall_seconds)
                also["samples/s"].append(loop.num_batches * work.batch_size / loop.wall_seconds)
                return loop.stall_seconds / loop.wall_seconds

            facts = facts_of(work, epoch="later", step="waits without the lock", load=load)
            yield Line(f"{name} at {load:.0%}", {"stalled": stalled}, True, limits, "%", also, facts)
        loader.close()


def spin(iterations: int) -> int:
    """Plain Python that keeps the interpreter lock: what a busy training loop is made of."""
    value = 1
    for i in range(iterations):
        value = (value * 31 + i) & 0xFFFFF
    return value


SLICE = 20_000


def spin_seconds() -> float:
    """Returns the seconds an iteration of `spin` takes alone, best of a few."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        spin(SLICE)
        best = min(best, time.perf_counter() - start)
    return best / SLICE


class Spinning:
    """A loop whose step is so many iterations of `spin`, at half the loader's capacity."""

    def __init__(self, work: Workload, loader: shardload.ShardLoader) -> None:
        self.also: dict[str, list[float]] = {"load": [], "samples/s": [], "stalled": []}
        self._work, self._loader = work, loader
        self._capacity, self._iterations = 0.0, 0
        self._order = np.random.default_rng(6).permutation(len(work))

    def beside_loader(self) -> float:
        """Returns the seconds of an epoch outside `next`, by iteration."""
        self._capacity = batch_seconds(self._work, self._loader)
        self._iterations = max(1, int(self._capacity / 0.5 / spin_seconds()))
        loop = run_loop(self._work, self._loader, functools.partial(spin, self._iterations))
        self.also["load"].append(loop.num_batches * self._capacity / loop.wall_seconds)
        self.also["samples/s"].append(loop.num_batches * self._work.batch_size / loop.wall_seconds)
        self.also["stalled"].append(loop.stall_seconds / loop.wall_seconds)
        return loop.own_seconds / (loop.num_batches * self._iterations)

    def alone(self) -> float:
        """Returns the same for as many steps with nothing beside them."""
        num_steps, start = -(-len(self._work) // self._work.batch_size), time.perf_counter()
        for _ in range(num_steps):
            spin(self._iterations)
        return (time.perf_counter() - start) / (num_steps * self._iterations)

    def beside_c(self) -> float:
        """Returns the same beside a thread that gathers a batch in C, without the lock, as often as half load wants one."""
        done = Event()
        thread = Thread(target=self._gather_until, args=(done,))
        thread.start()
        try:
            return self.alone()
        finally:
            done.set()
            thread.join()

    def _gather_until(self, done: Event) -> None:
        work = self._work
        source = np.memmap(work.raw, dtype=np.uint8, mode="r")
        out = np.ones(int(np.sort(work.lengths)[-work.batch_size :].sum()), dtype=np.uint8)
        while not done.is_set():
            for first in range(0, len(self._order), work.batch_size):
                before = time.perf_counter()
                ids = self._order[first : first + work.batch_size]
                gather(source, work.offsets[ids], work.lengths[ids], out)
                if done.is_set():
                    return
                rest(max(0.0, self._capacity / 0.5 - (time.perf_counter() - before)))


def p20(folder: Path, scale: float) -> Iterator[Line]:
    for name, make in WORKLOADS.items():
        work = make(folder, scale)
        loader = loader_of(work)
        for _ in range(2):
            batch_seconds(work, loader)
        spinning = Spinning(work, loader)
        facts = facts_of(work, epoch="later", step="pure Python that keeps the lock", load=0.5)
        arms = {"beside loader": spinning.beside_loader, "alone": spinning.alone}
        yield Line(name, arms, False, unit="ns", also=spinning.also, facts=facts)
        # What is lost to memory and cores that are shared is lost beside any copy: this says how much.
        bare = {"beside C gather": spinning.beside_c, "alone": spinning.alone}
        yield Line(f"{name}, bare gather", bare, False, NONE, "ns", facts=facts | {"threads": 1, "verify": "off"})
        loader.close()


CASES = (
    Case("P10", "time a loop waits, at a part of the loader's own capacity", False, 0.01, 0.001, p10),
    Case("P20", "speed that busy Python keeps beside a loader at half load", False, 0.85, 0.97, p20),
)
