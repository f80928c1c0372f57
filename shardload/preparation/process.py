"""A process that runs steps, seen from the one that packs: killed and replaced where a sample makes it hang or die."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
_NEWS_WEIGHT = 0.3
"""Of what was told last in the mean time of a sample."""
_MAX_SHORT = 0x7FFFFFFF
"""Bytes of a message with a short head."""


@dataclass(slots=True)
class _Entry:
    """A sample that was given, and what has become of it."""

    values: Values
    result: Result | None = None


class StepProcess:
    """A process that runs steps on samples, in the order in which it is given them. Used by one thread.

    Nothing here waits but `exchange`, which does so for several at once.
    """

    def __init__(self, steps: Sequence[Step], timeout_seconds: float | None) -> None:
        """Starts the process, which imports all functions meanwhile.

        Args:
            steps: what it does to each sample.
            timeout_seconds: longest time for a sample; None for any.

        Raises:
            PackError: it cannot be started.
        """
        self._cpu_gone = self._cpu_now = 0.0
        self._steps = tuple(steps)
        self._timeout_seconds = timeout_seconds
        self._entries: deque[_Entry] = deque()
        """All that was given and whose result nobody has taken."""
        self._untold: deque[_Entry] = deque()
        """What the process was given and has told nothing of."""
        self._batch_samples = 0
        """Samples that were given together last."""
        self.sample_seconds = 0.0
        """Time that a sample has taken lately."""
        self._start()

    @property
    def cpu_seconds(self) -> float:
        """CPU time of this process, and of those that it has replaced."""
        return self._cpu_gone + self._cpu_now

    @property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of the source of each function's module, by the function's name.

        Raises:
            PackError: a function cannot be imported.
        """
        while self._digests is None:
            exchange([self])
        return self._digests

    @property
    def num_untold(self) -> int:
        """Samples that it was given and has told nothing of."""
        return len(self._untold)

    @property
    def wants_more(self) -> bool:
        """Whether it is at the last of what it was given: with another batch behind that one it need not wait for it."""
        return len(self._untold) <= self._batch_samples

    def send(self, batch: Sequence[Values]) -> None:
        """Hands samples over."""
        entries = [_Entry(values) for values in batch]
        self._entries += entries
        self._batch_samples = len(batch)
        self._submit(entries)

    @property
    def has_result(self) -> bool:
        """Whether it is known what has become of the first sample whose result was not taken."""
        return self._entries[0].result is not None

    def take(self) -> Result:
        """Returns what has become of that sample."""
        result = self._entries.popleft().result
        assert result is not None
        return result

    @property
    def seconds_to_go(self) -> float:
        """About how long it takes over what it was given."""
        return len(self._untold) * self.sample_seconds

    def drop(self) -> None:
        """Forgets all results that nobody has taken: those still to come are nobody's."""
        self._entries.clear()

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
        self._started = time.monotonic()
        self._socket, self._pipe = mine, Connection(os.dup(mine.fileno()))
        self._digests: Mapping[str, str] | None = None
        self._num_told = 0
        self._outgoing: deque[memoryview] = deque()
        self._put(pickle.dumps(self._steps))

    def _put(self, message: bytes) -> None:
        """Sends as much as there is room for; the rest waits."""
        # As a Connection reads it.
        size = len(message)
        head = struct.pack("!i", size) if size <= _MAX_SHORT else struct.pack("!iQ", -1, size)
        self._outgoing += (memoryview(head), memoryview(message))
        self._flush()

    def _flush(self) -> None:
        waiting = self._outgoing
        while waiting:
            try:
                num_sent = self._socket.send(waiting[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                # A death shows when results are asked for.
                waiting.clear()
                return
            waiting[0] = waiting[0][num_sent:]
            if not waiting[0]:
                waiting.popleft()

    def _submit(self, entries: Sequence[_Entry]) -> None:
        if entries:
            self._untold += entries
            self._put(pickle.dumps([entry.values for entry in entries], 5))

    def _attend(self, events: int) -> None:
        """Does what can be done without waiting.

        Raises:
            PackError: a function cannot be imported, or not in time, or a process cannot be started.
        """
        if events & select.POLLOUT:
            self._flush()
        if events & ~select.POLLOUT:
            try:
                self._receive()
            except (EOFError, OSError):
                self._process.wait()
                self._replace(f": its process {_cause(self._process.returncode)}")
            return
        seconds_left = self._seconds_left()
        if seconds_left is None or seconds_left > 0:
            return
        if self._digests is None:
            raise self._failed(f"the import took longer than {self._start_seconds:g} s")
        self._process.kill()
        self._process.wait()
        self._replace(f" took longer than {self._timeout_seconds:g} s (--map-timeout) and was ended")

    def _receive(self) -> None:
        """Takes one message, which is there."""
        message = pickle.loads(self._pipe.recv_bytes())
        if self._digests is None:
            if "failed" in message:
                self._end()
                raise PackError(message["failed"])
            self._digests = message["digests"]
            return
        self._cpu_now, seconds, packed = message
        mean, before = seconds / len(packed), self.sample_seconds
        self.sample_seconds = before + (mean - before) * _NEWS_WEIGHT if before else mean
        self._num_told += len(packed)
        for one in packed:
            entry = self._untold.popleft()
            result = _unpacked(one, self._steps)
            entry.result = [entry.values] if result is None else result

    @property
    def _start_seconds(self) -> float:
        """Time for the import."""
        return START_SECONDS + (self._timeout_seconds or 0.0)

    def _seconds_left(self) -> float | None:
        """Returns in what time it is to be looked at, 0 or below where it has had its time; None where there is no limit."""
        if self._timeout_seconds is None:
            return None
        if self._digests is None:
            return self._start_seconds - (time.monotonic() - self._started)
        index, started_ns = self._page[INDEX], self._page[STARTED_NS]
        if index < 0:
            return _LOOK_SECONDS
        return self._timeout_seconds - (time.monotonic_ns() - started_ns) / 1e9

    def _replace(self, reason: str) -> None:
        """Starts another process in the place of one that has ended, and with it the sample that it was at."""
        if self._digests is None:
            raise self._failed(f"the process {_cause(self._process.returncode)} before it was ready")
        # What it told before the end is not lost.
        with contextlib.suppress(EOFError, OSError):
            while self._pipe.poll(0):
                self._receive()
        untold = list(self._untold)
        if untold:
            # One that died before it was at a sample has died of what it was given.
            at = min(max(self._page[INDEX] - self._num_told, 0), len(untold) - 1)
            step = self._steps[min(self._page[STEP], len(self._steps) - 1)]
            untold.pop(at).result = [Refusal(f"{step.label}{reason}")]
        self._end()
        self._untold.clear()
        self._start()
        self._submit(untold)

    def _failed(self, reason: str) -> PackError:
        self._end()
        return PackError(f"{', '.join(step.label for step in self._steps)}: {reason}")

    def _end(self) -> None:
        self._cpu_gone, self._cpu_now = self.cpu_seconds, 0.0
        self._pipe.close()
        self._socket.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)


def exchange(processes: Sequence[StepProcess]) -> float:
    """Waits until one of some processes has told something, or has had its time; gives them what waits for them.

    Returns:
        The seconds that it has waited.

    Raises:
        PackError: a function cannot be imported, or not in time, or a process cannot be started.
    """
    poll, limits = select.poll(), [_LOOK_SECONDS]
    for process in processes:
        poll.register(process._pipe.fileno(), select.POLLIN | (select.POLLOUT if process._outgoing else 0))
        seconds_left = process._seconds_left()
        if seconds_left is not None:
            limits.append(max(0.0, seconds_left))
    started = time.perf_counter()
    events = dict(poll.poll(math.ceil(min(limits) * 1000)))
    waited = time.perf_counter() - started
    for process, found in [(process, events.get(process._pipe.fileno(), 0)) for process in processes]:
        process._attend(found)
    return waited


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
