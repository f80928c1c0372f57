"""Cases of inference: an ordered scan beside a plain sequential read, and with its results written back.

Scans are long, and so are these: a second and more at the usual scale, from shards of the usual size. Of a scan of 0.2 s some 20 to
30 ms come before the first batch, and where results are written back 60 to 80 ms after the last one. Both are printed beside the
ratio, so that a small scale is not taken for a slow scan.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shardload
from bench.case import NONE, Arm, Case, Line, facts_of, numbers_in
from bench.cold import cold
from bench.workloads import Workload, images, tokens
from shardload.inference.pieces import default_piece_samples

READ_BYTES = 1 << 20
SHARD_BYTES = 256 << 20
"""What a writer makes unless told otherwise."""
EMBEDDING = 256
PIECE_SAMPLES = 8192
"""Of a job of eight million samples: no run here has so many, and a smaller job has smaller pieces, each with a file of its own, a
line in the journal and a flush of both."""


def numbers_of(work: Workload, batch: dict[str, Any]) -> np.ndarray:
    """Returns which samples a batch holds: int64 of shape (batch,). What every arm with a scan does with a batch."""
    values = batch[work.field]
    if isinstance(values, torch.Tensor):
        # Not by torch: that gives the interpreter lock away, and who does so twice a batch measures how it comes back.
        return values.numpy()[:, 0].astype(np.int64)
    return np.array(numbers_in([value[:8] for value in values]))


def scanned(work: Workload, num_replicas: int, rank: int) -> tuple[float, float]:
    """Returns the seconds of a rank's part of a scan of a dataset just opened, and those to its first batch; checks what came."""
    start, found = time.perf_counter(), []
    with shardload.scan(shardload.open(work.dataset), work.batch_size, num_replicas, rank) as scan:
        for batch in scan:
            if not found:
                first_seconds = time.perf_counter() - start
            found.append(numbers_of(work, batch))
        seconds = time.perf_counter() - start
        del batch
    first, stop = (len(work) * number // num_replicas for number in (rank, rank + 1))
    assert (np.concatenate(found) == np.arange(first, stop)).all()
    return seconds, first_seconds


def read_plainly(work: Workload, num_replicas: int, rank: int) -> tuple[float, float]:
    """Returns the seconds in which a rank's part of the shards' bytes is read, one after the other, a MiB at a time.

    And those in which the first of them were.
    """
    sizes = [path.stat().st_size for path in work.files[1:]]
    first, stop = (sum(sizes) * number // num_replicas for number in (rank, rank + 1))
    buffer = memoryview(bytearray(READ_BYTES))
    start, before, num_read, first_seconds = time.perf_counter(), 0, 0, 0.0
    for path, size in zip(work.files[1:], sizes, strict=True):
        begin, end = max(0, first - before), min(size, stop - before)
        before += size
        if begin >= end:
            continue
        with open(path, "rb", buffering=0) as file:
            file.seek(begin)
            while begin < end and (count := file.readinto(buffer[: end - begin])):
                begin, num_read = begin + count, num_read + count
                first_seconds = first_seconds or time.perf_counter() - start
    seconds = time.perf_counter() - start
    assert num_read == stop - first
    return seconds, first_seconds


def serve(pipe: Connection) -> None:
    """Runs in a process of its own: does what it is asked for and tells the seconds."""
    torch.set_num_threads(1)
    while (asked := pipe.recv()) is not None:
        work, *facts = asked
        found = work(*facts)
        # What is still mapped could not be dropped before the next run.
        gc.collect()
        pipe.send(found)


class Ranks:
    """Processes that read at the same time."""

    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        for _ in range(number):
            here, there = context.Pipe()
            context.Process(target=serve, args=(there,), daemon=True).start()
            self._pipes.append(here)

    def seconds(self, read: Any, work: Workload, firsts: list[float]) -> float:
        """Returns the seconds a sample until the last of them has done its part; notes the milliseconds in which each had begun."""
        for rank, pipe in enumerate(self._pipes):
            pipe.send((read, work, len(self._pipes), rank))
        seconds, first = (max(column) for column in zip(*(pipe.recv() for pipe in self._pipes), strict=True))
        firsts.append(first * 1e3)
        return seconds / len(work)

    def close(self) -> None:
        """Ends them."""
        for pipe in self._pipes:
            pipe.send(None)


def p27(folder: Path, scale: float) -> Iterator[Line]:
    groups = [Ranks(number) for number in (1, 2)]
    for name, make, count in (("tokens", tokens, 300_000), ("jpeg", images, 12_000)):
        work = make(folder, int(count * scale), shard_size=SHARD_BYTES)
        for number, ranks in enumerate(groups, 1):
            also: dict[str, list[float]] = {"first batch ms": [], "first MiB ms": []}

            def arm(read: Any, firsts: list[float], ranks: Ranks = ranks, work: Workload = work) -> Arm:
                return lambda: cold(work, lambda: ranks.seconds(read, work, firsts))

            arms = {
                "scan": arm(scanned, also["first batch ms"]),
                "plain read": arm(read_plainly, also["first MiB ms"]),
            }
            facts = facts_of(work, order="that of the dataset", limit=f"read() of {READ_BYTES} bytes", ranks=number)
            yield Line(f"{name}, {number} rank{'s' * (number > 1)}", arms, False, also=also, facts=facts)
        shutil.rmtree(work.dataset)
        work.raw.unlink()
    for ranks in groups:
        ranks.close()


class WriteBack:
    """A scan whose results are numbers of each sample's own, written back or not."""

    def __init__(self, work: Workload, folder: Path, also: dict[str, list[float]]) -> None:
        self._work = work
        self._also = also
        self._targets = (folder / "results" / str(number) for number in itertools.count())
        self._rows = np.random.default_rng(5).random((work.batch_size, EMBEDDING), dtype=np.float32)
        self._schema = {"number": "int64", "embedding": f"float32[{EMBEDDING}]"}

    def both(self, piece_samples: int | None = PIECE_SAMPLES) -> float:
        """Returns the seconds a sample of the job, from the opening of the dataset to the commit.

        Args:
            piece_samples: as for `ScanWriter`.
        """
        work, target = self._work, next(self._targets)
        start = time.perf_counter()
        scan = shardload.scan(shardload.open(work.dataset), work.batch_size, 1, 0)
        with shardload.ScanWriter(target, self._schema, scan, piece_samples=piece_samples) as job:
            for batch in job:
                numbers = numbers_of(work, batch)
                job.write({"number": numbers, "embedding": self._rows[: len(numbers)]})
            written = time.perf_counter()
        stop = time.perf_counter()
        self._also.setdefault("commit ms", []).append((stop - written) * 1e3)
        return self._checked(target, stop - start)

    def alone(self) -> float:
        """Returns the seconds a sample of the slower one: the scan, or `ShardWriter.write_batch` with the same results."""
        work, target = self._work, next(self._targets)
        reading = scanned(work, 1, 0)[0] / len(work)
        start = time.perf_counter()
        with shardload.ShardWriter(target, self._schema) as writer:
            for first in range(0, len(work), work.batch_size):
                numbers = np.arange(first, min(first + work.batch_size, len(work)))
                writer.write_batch({"number": numbers, "embedding": self._rows[: len(numbers)]})
            written = time.perf_counter()
        stop = time.perf_counter()
        writing = self._checked(target, stop - start)
        told = {
            "scan alone us": reading * 1e6,
            "write alone us": writing * 1e6,
            "its commit ms": (stop - written) * 1e3,
        }
        for name, figure in told.items():
            self._also.setdefault(name, []).append(figure)
        return max(reading, writing)

    def _checked(self, target: Path, seconds: float) -> float:
        assert (shardload.open(target).column("number") == np.arange(len(self._work))).all()
        shutil.rmtree(target)
        # What the run before has left to be written is not this one's.
        os.sync()
        return seconds / len(self._work)


def p28(folder: Path, scale: float) -> Iterator[Line]:
    for name, make, count in (("tokens", tokens, 300_000), ("jpeg", images, 16_000)):
        work = make(folder, int(count * scale), shard_size=SHARD_BYTES)
        facts = facts_of(work, order="that of the dataset", results=f"int64, float32[{EMBEDDING}]", ranks=1)
        # What a job of this size has by itself, too: as it is cut off and shared more finely, without a limit.
        for line, pieces, limits in ((name, PIECE_SAMPLES, None), (f"{name}, small pieces", None, NONE)):
            also: dict[str, list[float]] = {}
            job = WriteBack(work, folder, also)
            arms: dict[str, Arm] = {
                "scan with write": lambda job=job, pieces=pieces: job.both(pieces),
                "slower alone": job.alone,
            }
            for run in arms.values():
                run()
            also.clear()
            size = pieces or default_piece_samples(len(work), work.batch_size)
            yield Line(line, arms, False, limits, also=also, facts=facts | {"piece": size})
            shutil.rmtree(folder / "results")


CASES = (
    Case("P27", "ordered scan from the disk / sequential read of the same files", True, 0.8, 0.95, p27),
    Case("P28", "scan with its results written back / the slower of scan and write alone", False, 0.8, 0.95, p28),
)
