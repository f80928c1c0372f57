"""MLPerf Storage emulated: record sizes, batch sizes, compute times and thresholds of its v2.0 for an H100, on fewer files.

As DLIO does it, a loop takes a batch and waits for the time that the accelerator would compute; the part of the time that is
computed is the utilisation, the first step left out. Unlike DLIO the order is a shuffle over all samples, and the samples
themselves are delivered. `a` accelerators that step together take `a` batches in the time of one computation: here a
batch is taken each a-th part of it, so that `a` need not be a whole number, and the waits for each other are left out.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import shardload
from bench.case import Case, Line, facts_of, loader_of
from bench.limits import gather, rest
from bench.loop import batch_seconds, run_loop
from bench.workloads import Workload, records


@dataclass(frozen=True)
class Emulated:
    """One workload of MLPerf Storage."""

    num_samples: int
    mean_bytes: float
    deviation_bytes: float
    batch_size: int
    compute_seconds: float
    """Of a batch, on an H100."""
    least: float
    """Utilisation that counts as held."""


EMULATED = {
    "unet3d": Emulated(35, 146_600_628, 49_000_000, 7, 0.323, 0.9),
    "resnet50": Emulated(10_008, 114_660, 0, 400, 0.224, 0.9),
    "cosmoflow": Emulated(512, 2_828_486, 71_311, 1, 0.0035, 0.7),
}


class Accelerators:
    """How many of them a loader keeps busy, and how many the bare copy could."""

    def __init__(self, kind: Emulated, work: Workload, loader: shardload.ShardLoader) -> None:
        self.also: dict[str, list[float]] = {"held": [], "ceiling": []}
        self._kind, self._work, self._loader = kind, work, loader
        self._ceiling = 0.0

    def held(self) -> float:
        """Returns the seconds a sample that the most accelerators ask for whose utilisation is held; 5 % apart."""
        kind = self._kind
        # At this number the loader never rests, and the utilisation would just be held if nothing were lost.
        number = kind.compute_seconds / kind.least / batch_seconds(self._work, self._loader)
        for _ in range(30):
            if self.utilisation(number) >= kind.least:
                break
            number *= 0.95
        self.also["held"].append(number)
        return self._seconds_a_sample(number)

    def ceiling(self) -> float:
        """Returns the same of copies in C, by as many threads as there are cores."""
        work, num_threads = self._work, os.cpu_count() or 1
        order = np.array_split(np.random.default_rng(8).permutation(len(work)), num_threads)
        source = np.memmap(work.raw, dtype=np.uint8, mode="r")
        outs = [np.ones(int(work.lengths.max()), dtype=np.uint8) for _ in order]

        def copy(ids: np.ndarray, out: np.ndarray) -> None:
            for number in ids.tolist():
                gather(source, work.offsets[[number]], work.lengths[[number]], out)

        with ThreadPoolExecutor(num_threads) as threads:
            start = time.perf_counter()
            list(threads.map(copy, order, outs))
            seconds = (time.perf_counter() - start) / len(work)
        self._ceiling = self._kind.compute_seconds / self._kind.least / self._kind.batch_size / seconds
        self.also["ceiling"].append(self._ceiling)
        return seconds

    def lost(self) -> float:
        """Returns the part of the time that is not computed with half as many accelerators as the ceiling."""
        self.ceiling()
        return 1 - self.utilisation(self._ceiling / 2)

    def utilisation(self, number: float) -> float:
        """Returns the part of the time that so many accelerators compute."""
        seconds = self._kind.compute_seconds / number
        loop = run_loop(self._work, self._loader, functools.partial(rest, seconds))
        return loop.num_batches * seconds / loop.wall_seconds

    def _seconds_a_sample(self, number: float) -> float:
        return self._kind.compute_seconds / self._kind.least / self._kind.batch_size / number


def p8(folder: Path, scale: float) -> Iterator[Line]:
    for name, kind in EMULATED.items():
        count = max(3 * kind.batch_size, int(kind.num_samples * scale))
        work = records(folder / name, count, kind.mean_bytes, kind.deviation_bytes, kind.batch_size)
        loader = loader_of(work)
        some = Accelerators(kind, work, loader)
        batch_seconds(work, loader), some.ceiling()
        facts = facts_of(work, epoch="later", delivered="the samples", accelerator="H100", utilisation=kind.least)
        arms = {"held": some.held, "ceiling": some.ceiling}
        yield Line(name, arms, False, also=some.also, facts=facts)
        yield Line(f"{name}, half of it", {"lost": some.lost}, True, (0.03, 0.005), "%", facts=facts)
        loader.close()
        for path in work.files:
            path.unlink()


CASES = (
    Case("P8", "MLPerf Storage emulated from memory: accelerators held / ceiling of copies", False, 0.7, 0.95, p8),
)
