"""A process that runs steps, seen from the one that packs: killed and replaced where a sample makes it hang or die."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection

from shardload.errors import PackError
from shardload.preparation.host import INDEX, PAGE_BYTES, STARTED_NS, STEP, UNCHANGED
from shardload.preparation.steps import Refusal, Result, Step, Values

_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[4]); from shardload.preparation.host import serve; "
    "serve(*map(int, sys.argv[1:4]))"
)
START_SECONDS = 120.0
"""Time to import all functions, beside the time for a sample, where that is limited."""
_END_SECONDS = 5.0
_LOOK_SECONDS = 1.0
"""How often the time is looked at, at least."""


class _Lost(Exception):
    """The process is gone, and with it a sample."""

    def __init__(self, results: list[Result | None], index: int, reason: str) -> None:
        super().__init__(reason)
        self.results = results
        """What it had told before."""
        self.index = index
        """Number of the sample in what was sent last; below 0 where it was at none."""
        self.reason = reason


class StepProcess:
    """A process that runs steps. One batch at a time: `send`, then `collect` to its end. Used by one thread."""

    def __init__(self, steps: Sequence[Step], timeout_seconds: float | None) -> None:
        """Starts the process and imports all functions in it.

        Args:
            steps: what it does to each sample.
            timeout_seconds: longest time for a sample; None for any.

        Raises:
            PackError: it cannot be started, or a function cannot be imported.
        """
        self._cpu_gone = self._cpu_now = 0.0
        self._steps = tuple(steps)
        self._timeout_seconds = timeout_seconds
        self._batch: Sequence[Values] = ()
        self._first = 0
        self.digests: Mapping[str, str] = {}
        """SHA-256 of the source of each function's module, by the function's name."""
        self._start()

    @property
    def cpu_seconds(self) -> float:
        """CPU time of this process, and of those that it has replaced."""
        return self._cpu_gone + self._cpu_now

    def send(self, batch: Sequence[Values]) -> None:
        """Hands a batch over. Whatever came before has been collected."""
        self._batch = batch
        self._submit(0, len(batch))

    def collect(self) -> Iterator[Result]:
        """Yields what becomes of each sample of the batch, in order.

        Raises:
            PackError: a process in the place of one that was lost cannot be started.
        """
        done, refused = 0, dict[int, Refusal]()
        while done < len(self._batch):
            if done in refused:
                yield [refused.pop(done)]
                done += 1
                self._submit(done, min(refused, default=len(self._batch)))
                continue
            try:
                results = self._receive()
            except _Lost as lost:
                results = lost.results
                # One that died before it was at a sample has died of what it was given.
                at = max(self._first + lost.index, done + len(results))
                refused[at] = Refusal(lost.reason)
                self._end()
                self._start()
                self._submit(done + len(results), at)
            for result in results:
                yield [self._batch[done]] if result is None else result
                done += 1
        self._batch = ()

    def close(self) -> None:
        """Ends the process."""
        self._end()

    def _start(self) -> None:
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        mine, theirs = socket.socketpair()
        page = os.memfd_create("shardload-steps")
        try:
            os.ftruncate(page, PAGE_BYTES)
            self._page = memoryview(mmap.mmap(page, PAGE_BYTES)).cast("q")
            self._page[INDEX] = -1
            arguments = [str(theirs.fileno()), str(page), str(os.getpid()), json.dumps(_search_path())]
            with _interrupts_blocked():
                self._process = subprocess.Popen(
                    [sys.executable, *flags, "-c", _SERVE, *arguments],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), page),
                )
        except OSError as error:
            mine.close()
            raise PackError(f"the process for {self._steps[0].label} cannot be started: {error}") from error
        finally:
            theirs.close()
            os.close(page)
        self._pipe = Connection(mine.detach())
        try:
            self._shake_hands()
        except BaseException:
            self._end()
            raise

    def _shake_hands(self) -> None:
        limit = None if self._timeout_seconds is None else START_SECONDS + self._timeout_seconds
        labels = ", ".join(step.label for step in self._steps)
        try:
            self._pipe.send_bytes(pickle.dumps(self._steps))
            if not self._pipe.poll(limit):
                raise PackError(f"{labels}: the import took longer than {limit:g} s")
            facts = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.wait()
            raise PackError(f"{labels}: the process {_cause(self._process.returncode)} before it was ready") from None
        if "failed" in facts:
            raise PackError(facts["failed"])
        self.digests = facts["digests"]

    def _submit(self, start: int, stop: int) -> None:
        if start < stop:
            self._first = start
            # A death shows when the results are asked for.
            with contextlib.suppress(OSError):
                self._pipe.send_bytes(pickle.dumps(list(self._batch[start:stop]), 5))

    def _receive(self) -> list[Result | None]:
        """Waits for results; None stands for a sample that stays as it was.

        Raises:
            _Lost: the process has died, or was killed since it took too long.
        """
        while True:
            overdue = self._overdue_seconds()
            if overdue is not None and overdue >= 0:
                self._process.kill()
                reason = f"took longer than {self._timeout_seconds:g} s (--map-timeout) and was ended"
                raise self._lost(reason, " ")
            wait = None if overdue is None else min(-overdue, _LOOK_SECONDS)
            try:
                if self._pipe.poll(wait):
                    return self._take()
            except (EOFError, OSError):
                self._process.wait()
                raise self._lost(f"its process {_cause(self._process.returncode)}", ": ") from None

    def _take(self) -> list[Result | None]:
        self._cpu_now, packed = pickle.loads(self._pipe.recv_bytes())
        return [_unpacked(one, self._steps) for one in packed]

    def _overdue_seconds(self) -> float | None:
        """Returns by how much the sample at hand is over its time; below 0 if it is not, None where there is no limit."""
        if self._timeout_seconds is None:
            return None
        index, started_ns = self._page[INDEX], self._page[STARTED_NS]
        if index < 0:
            return -_LOOK_SECONDS
        return (time.monotonic_ns() - started_ns) / 1e9 - self._timeout_seconds

    def _lost(self, reason: str, joint: str) -> _Lost:
        """Describes a loss: what was told before the end is not lost."""
        self._process.wait()
        results: list[Result | None] = []
        with contextlib.suppress(EOFError, OSError):
            while self._pipe.poll(0):
                results += self._take()
        step = self._steps[min(self._page[STEP], len(self._steps) - 1)]
        return _Lost(results, self._page[INDEX], f"{step.label}{joint}{reason}")

    def _end(self) -> None:
        self._cpu_gone, self._cpu_now = self.cpu_seconds, 0.0
        self._pipe.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)


def _unpacked(packed: bytes, steps: Sequence[Step]) -> Result | None:
    if packed == UNCHANGED:
        return None
    try:
        return pickle.loads(packed)  # type: ignore[no-any-return]
    except Exception as error:
        return [Refusal(f"{steps[-1].label} gave values that no other process can read: {error!s:.200}")]


def _cause(status: int) -> str:
    """Says how a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def _search_path() -> list[str]:
    """Returns where modules are found: as here, and last where the command was given."""
    here = os.getcwd()
    return sys.path if here in sys.path else [*sys.path, here]


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Blocks Ctrl-C for processes started meanwhile; they inherit the mask and lift it when they are ready."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
