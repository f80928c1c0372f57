"""Steps done to a stream of samples by several processes, in order and with a bound on what is under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from shardload.preparation.process import StepProcess
from shardload.preparation.steps import Result, Step, Values

Tag = TypeVar("Tag")
Entry = tuple[Tag, Values | None]

BATCH_SAMPLES = 256
"""Samples that are handed to a process together at most, ..."""
BATCH_BYTES = 4 << 20
"""... and their bytes, about, unless a single one has more."""


class StepPool:
    """Processes that run steps; they start when they are first needed. A pickled copy has none yet. Used by one thread."""

    def __init__(self, steps: Sequence[Step], num_processes: int, timeout_seconds: float | None) -> None:
        """Describes the processes.

        Args:
            steps: what they do to each sample.
            num_processes: how many there are.
            timeout_seconds: longest time for a sample; None for any.
        """
        self.steps = tuple(steps)
        self.num_processes = num_processes
        self.timeout_seconds = timeout_seconds
        self._processes: list[StepProcess] = []
        self._owner = os.getpid()
        self._cpu_seconds = 0.0

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all processes so far."""
        return self._cpu_seconds + sum(process.cpu_seconds for process in self._processes)

    @property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of the source of each function's module, by the function's name.

        Raises:
            PackError: a function cannot be imported.
        """
        return self._process(0).digests

    def run(self, entries: Iterable[Entry[Tag]]) -> Generator[tuple[Tag, Result | None], None, None]:
        """Yields for each sample what becomes of it, in order.

        As many batches are under way as there are processes: who does not take results gets no further ones read.

        Args:
            entries: what goes with a sample and stays here, and the sample; None in the place of one, which comes out as
                it is.
        """
        batches = _batches(entries)
        free = deque(range(self.num_processes))
        under_way: deque[tuple[StepProcess, int, list[Entry[Tag]]]] = deque()
        try:
            while True:
                while free and (batch := next(batches, None)):
                    number = free.popleft()
                    process = self._process(number)
                    under_way.append((process, number, batch))
                    process.send([values for _, values in batch if values is not None])
                if not under_way:
                    return
                process, number, batch = under_way[0]
                results = process.collect()
                for place, (tag, values) in enumerate(batch, 1):
                    result = None if values is None else next(results)
                    if place == len(batch):
                        # Before the last one goes out: who wants no more then has left nothing under way.
                        assert next(results, None) is None
                        under_way.popleft()
                        free.append(number)
                    yield tag, result
        finally:
            if under_way:
                # Nobody wants the rest: what is still told of it must not be taken for something else.
                self.close()

    def start(self) -> None:
        """Starts all processes that are not there yet.

        Raises:
            PackError: a function cannot be imported.
        """
        for number in range(self.num_processes):
            self._process(number)

    def close(self) -> None:
        """Ends the processes; they start again when they are needed."""
        processes, self._processes = self._processes, []
        # A child that was forked meanwhile unwinds through here too: the processes are its parent's.
        if os.getpid() == self._owner:
            for process in processes:
                process.close()
                self._cpu_seconds += process.cpu_seconds

    def __getstate__(self) -> dict[str, Any]:
        return {"steps": self.steps, "num_processes": self.num_processes, "timeout_seconds": self.timeout_seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _process(self, number: int) -> StepProcess:
        while len(self._processes) <= number:
            self._owner = os.getpid()
            self._processes.append(StepProcess(self.steps, self.timeout_seconds))
        return self._processes[number]


def _batches(entries: Iterable[Entry[Tag]]) -> Iterator[list[Entry[Tag]]]:
    batch: list[Entry[Tag]] = []
    num_bytes = 0
    for tag, values in entries:
        batch.append((tag, values))
        num_bytes += 0 if values is None else _weight(values)
        if len(batch) >= BATCH_SAMPLES or num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _weight(values: Values) -> int:
    """Returns about how many bytes a sample has."""
    return sum(
        value.nbytes if hasattr(value, "nbytes") else len(value) if isinstance(value, str | bytes | list) else 8
        for value in values.values()
    )
