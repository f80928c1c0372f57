"""Checkpoints beside a training loop: how fast one writer writes, and what part of the time the loop waits for it.

The state is that of a model of float32 and AdamW: 12 bytes a parameter, of one writer. The interval between two checkpoints is
such that a plain sequential write of as many bytes, fsync included, would take 5 % of it: storage that was sized by the
rule, and no more. The loop takes batches of 4 KiB rows at half of the loader's capacity.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shardload
from bench.case import NONE, Case, Line, facts_of, loader_of
from bench.limits import rest
from bench.loop import batch_seconds
from bench.workloads import Workload, tokens

SHARE = 0.05
_LAYERS, _WIDTH = 16, 1024
_WRITE_BYTES = 8 << 20


class Training:
    """A model with its optimizer, and what it takes to save it."""

    def __init__(self, folder: Path, work: Workload, scale: float) -> None:
        self._folder, self._work = folder, work
        self._layers = max(1, int(_LAYERS * scale))
        self.model = self._make_model()
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.model(torch.ones(2, _WIDTH)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loader = loader_of(work)
        self.num_bytes = 0
        self.also: dict[str, list[float]] = {"GB/s of the writer": [], "loader stalled": [], "share": []}
        self._batch_seconds = 0.0
        self._steps = 0

    def _make_model(self) -> nn.Module:
        return nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(self._layers)))

    def checkpointer(self, **options: Any) -> shardload.Checkpointer:
        """Returns one that saves to an empty directory."""
        shutil.rmtree(self._folder / "checkpoints", ignore_errors=True)
        objects: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "loader": self.loader, "keep": 1}
        return shardload.Checkpointer(self._folder / "checkpoints", **objects | options)

    def save(self) -> float:
        """Returns the seconds a GB that a save takes, and checks that it restores to the same."""
        checkpointer = self.checkpointer()
        start = time.perf_counter()
        checkpointer.save(1)
        seconds = time.perf_counter() - start
        self.num_bytes = checkpointer.stats().num_bytes
        self.restore()
        return seconds / (self.num_bytes / 1e9)

    def restore(self, verify: bool = True) -> float:
        """Returns the seconds a GB that a restore takes, and checks that it gives what was saved."""
        model = self._make_model()
        optimizer = torch.optim.AdamW(model.parameters())
        checkpointer = shardload.Checkpointer(self._folder / "checkpoints", model=model, optimizer=optimizer)
        start = time.perf_counter()
        assert checkpointer.restore(verify=verify) == 1
        seconds = time.perf_counter() - start
        for mine, theirs in zip(model.parameters(), self.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
            assert torch.equal(optimizer.state[mine]["exp_avg_sq"], self.optimizer.state[theirs]["exp_avg_sq"])
        return seconds / (self.num_bytes / 1e9)

    def plain_write(self) -> float:
        """Returns the seconds a GB of a sequential write of as many bytes, until they are on the device."""
        data = memoryview(torch.full((_WRITE_BYTES,), 7, dtype=torch.uint8).numpy())
        path = self._folder / "plain"
        start = time.perf_counter()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        done = 0
        while done < self.num_bytes:
            done += os.write(descriptor, data[: self.num_bytes - done])
        os.fsync(descriptor)
        os.close(descriptor)
        seconds = time.perf_counter() - start
        path.unlink()
        return seconds / (done / 1e9)

    def plain_read(self) -> float:
        """Returns the seconds a GB of reading the checkpoint's files once."""
        buffer, done = bytearray(_WRITE_BYTES), 0
        start = time.perf_counter()
        for path in sorted((self._folder / "checkpoints/step-1").iterdir()):
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    done += count
        return (time.perf_counter() - start) / (done / 1e9)

    def loop(self, asynchronous: bool | None) -> float:
        """Returns the seconds a step of a loop over two intervals, with a save in the midst of each; None for no saves."""
        if not asynchronous:
            self._batch_seconds = batch_seconds(self._work, self.loader)
            interval = self.plain_write() * self.num_bytes / 1e9 / SHARE
            self._steps = max(20, int(interval / (2 * self._batch_seconds)))
        checkpointer = self.checkpointer(asynchronous=bool(asynchronous))
        before, batches, blocked = self.loader.stats(), self._batches(), 0.0
        next(batches)
        start = time.perf_counter()
        for step in range(1, 2 * self._steps + 1):
            rest(2 * self._batch_seconds)
            if asynchronous is not None and step % self._steps == self._steps // 2:
                asked = time.perf_counter()
                checkpointer.save(step)
                blocked += time.perf_counter() - asked
            next(batches)
        asked = time.perf_counter()
        # What is still written when the loop ends would be waited for by the next save at the latest.
        checkpointer.close()
        blocked += time.perf_counter() - asked
        seconds = time.perf_counter() - start
        stalled = self.loader.stats().stall_seconds - before.stall_seconds
        stats = checkpointer.stats()
        assert stats.num_saved == (0 if asynchronous is None else 2)
        if asynchronous is not None:
            self.also["GB/s of the writer"].append(stats.writer_gb_per_second)
            self.also["loader stalled"].append(stalled / seconds)
            self.also["share"].append(blocked / seconds)
        return seconds / (2 * self._steps)

    def share(self, asynchronous: bool) -> float:
        """Returns the part of the time that a loop waits for its checkpoints."""
        if asynchronous:
            self.loop(None)
        self.loop(asynchronous)
        return self.also["share"][-1]

    def _batches(self) -> Iterator[Any]:
        while True:
            yield from self.loader


def p30(folder: Path, scale: float) -> Iterator[Line]:
    work = tokens(folder, max(20_000, int(100_000 * scale)))
    training = Training(folder, work, scale)
    training.save()
    facts = {"bytes": training.num_bytes, "writers": 1, "fsync": "included", "cores": os.cpu_count()}
    arms = {"save": training.save, "plain write": training.plain_write}
    yield Line("save", arms, False, unit="s/GB", facts=facts)
    arms = {"restore": training.restore, "plain read": training.plain_read}
    yield Line("restore, sums compared", arms, False, NONE, unit="s/GB", facts=facts)
    facts = facts_of(work, step="waits without the lock", load=0.5, interval="20 plain writes") | {
        "state": training.num_bytes
    }
    for name, asynchronous, limits in (("asynchronous", True, (SHARE, 0.01)), ("synchronous", False, NONE)):
        share = functools.partial(training.share, asynchronous)
        yield Line(f"share, {name}", {"share": share}, True, limits, "%", training.also, facts)
    arms = {"saving": functools.partial(training.loop, True), "without": functools.partial(training.loop, None)}
    yield Line("steps beside saves", arms, True, (1.05, 1.01), "us", training.also, facts)
    training.loader.close()


CASES = (Case("P30", "checkpoints: a plain sequential write / a save; their share of the time", False, 0.5, 0.9, p30),)
