"""Steps done to a stream of samples by several processes, in order and with a bound on what is under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from shardload.preparation.process import StepProcess, exchange
from shardload.preparation.steps import Result, Step, Values

Tag = TypeVar("Tag")
Entry = tuple[Tag, Values | None]

BATCH_SAMPLES = 256
"""Samples that are handed to a process together at most, ..."""
FIRST_SAMPLES = 4
"""... as long as nothing is known of their time, ..."""
BATCH_SECONDS = 0.05
"""... then as many as take this time, so that processes end about at once, ..."""
BATCH_BYTES = 1 << 20
"""... and their bytes, about, unless a single one has more."""
_DROPPED_SECONDS = 0.5
"""Work that nobody wants any more is let go to its end if it takes this: a new process would have to import everything."""
BATCHES_A_PROCESS = 3
"""Batches under way: one that a process is at, one behind it, and one whose results are taken, for each process."""


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
        self.waited_seconds = 0.0
        """Time that this process has waited for them so far."""

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

        Three batches a process are under way at most: who does not take results gets no further ones read.

        Args:
            entries: what goes with a sample and stays here, and the sample; None in the place of one, which comes out as
                it is. What they raise comes after the results of all before it.
        """
        batches = _Batches(entries)
        under_way: deque[tuple[StepProcess, list[Entry[Tag]]]] = deque()
        try:
            while True:
                self._hand_out(batches, under_way)
                if not under_way:
                    if batches.ended:
                        batches.check()
                        return
                    # All are at work that an earlier run has left.
                    self.waited_seconds += exchange(self._processes)
                    continue
                process, batch = under_way[0]
                for place, (tag, values) in enumerate(batch, 1):
                    result = None
                    if values is not None:
                        while not process.has_result:
                            self._hand_out(batches, under_way)
                            self.waited_seconds += exchange(self._processes)
                        result = process.take()
                    if place == len(batch):
                        # Before the last one goes out: who wants no more then has left nothing under way.
                        under_way.popleft()
                    yield tag, result
        finally:
            if under_way:
                self._drop()

    def _hand_out(self, batches: _Batches[Tag], under_way: deque[tuple[StepProcess, list[Entry[Tag]]]]) -> None:
        """Gives each process as much as keeps it busy."""
        while len(under_way) < BATCHES_A_PROCESS * self.num_processes:
            process = min(self._processes, key=_num_untold, default=None)
            another = process is None or (process.num_untold > 0 and len(self._processes) < self.num_processes)
            if process is not None and not another and not process.wants_more:
                return
            batch = batches.next(_batch_samples(0.0 if process is None else process.sample_seconds))
            if not batch:
                return
            if process is None or another:
                process = self._process(len(self._processes))
            under_way.append((process, batch))
            if samples := [values for _, values in batch if values is not None]:
                process.send(samples)

    def _drop(self) -> None:
        """Sees to it that nothing that is still told is taken for something else."""
        if sum(process.seconds_to_go for process in self._processes) > _DROPPED_SECONDS * len(self._processes):
            self.close()
        for process in self._processes:
            process.drop()

    def start(self) -> None:
        """Starts all processes that are not there yet.

        Raises:
            PackError: a function cannot be imported.
        """
        for process in [self._process(number) for number in range(self.num_processes)]:
            assert process.digests is not None

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


class _Batches(Generic[Tag]):
    """Entries a few at a time."""

    def __init__(self, entries: Iterable[Entry[Tag]]) -> None:
        self._entries = iter(entries)
        self._error: Exception | None = None
        self.ended = False
        """Whether there are no more."""

    def next(self, max_samples: int) -> list[Entry[Tag]]:
        """Returns the next few; nothing after the last."""
        batch: list[Entry[Tag]] = []
        num_bytes = 0
        try:
            while self._error is None and len(batch) < max_samples and num_bytes < BATCH_BYTES:
                tag, values = next(self._entries)
                batch.append((tag, values))
                num_bytes += 0 if values is None else _weight(values)
        except StopIteration:
            self.ended = True
        except Exception as error:
            self._error, self.ended = error, True
        return batch

    def check(self) -> None:
        """Raises what has ended the entries before their end."""
        if self._error is not None:
            raise self._error


def _batch_samples(sample_seconds: float) -> int:
    """Returns how many samples to hand out together, from the time that one takes, if that is known."""
    return min(BATCH_SAMPLES, max(1, int(BATCH_SECONDS / sample_seconds)) if sample_seconds else FIRST_SAMPLES)


def _num_untold(process: StepProcess) -> int:
    return process.num_untold


def _weight(values: Values) -> int:
    """Returns about how many bytes a sample has."""
    return sum(
        value.nbytes if hasattr(value, "nbytes") else len(value) if isinstance(value, str | bytes | list) else 8
        for value in values.values()
    )
