"""Units packed by worker processes.

Each worker has a pipe of its own: units go down, progress and results come up. So a worker that dies is known at once
and with its unit, nothing is shared that it could leave locked, and it ends when this process does. (The executor of
the standard library tells of a death without naming the work, and its workers outlive a killed parent.)
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Self

from shardload.errors import PackError, ShardloadError
from shardload.importers import preparing
from shardload.packing.progress import REPORT_SECONDS, Count
from shardload.packing.signals import signals_held
from shardload.packing.unit import Job, Step, Task, pack_unit

Take = Callable[[int, Step | Count], None]
"""Called with the number of a unit and what its worker tells of it."""

# A worker that was killed has nothing to wait for but the end of its current system call.
_END_SECONDS = 1.0


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    task: Task | None = None
    """What it is packing."""


class Workers:
    """Processes that pack units. They are started first, and load all they need while this one still prepares the work.

    Used by one thread.
    """

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._parent = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends all processes."""
        _stop(self._workers, self._parent)

    def __len__(self) -> int:
        return len(self._workers)

    def start(self, num_workers: int) -> None:
        """Starts processes.

        Raises:
            PackError: one cannot be started.
        """
        context = multiprocessing.get_context("spawn")
        if num_workers:
            # The first start of a process would start it, and that lifts the mask which the process is to inherit.
            resource_tracker.ensure_running()
        for number in range(num_workers):
            # A signal half-way through would leave a worker that nobody knows of.
            with signals_held():
                try:
                    mine, theirs = context.Pipe()
                    process = context.Process(
                        target=_work, args=(theirs,), name=f"shardload-pack-{number}", daemon=True
                    )
                    with _signals_blocked(), _without_main():
                        process.start()
                except OSError as error:
                    raise PackError(
                        f"worker process {number + 1} of {num_workers} cannot be started: {error}"
                    ) from error
                theirs.close()
                self._workers.append(_Worker(process, mine))

    def pack(self, job: Job, tasks: Sequence[Task], take: Take, tick: Callable[[], None]) -> None:
        """Packs units.

        Args:
            job: what the units are a part of.
            tasks: the units.
            take: called in this process with each step of a unit, in order, and now and then with its count.
            tick: called in this process about ten times a second.

        Raises:
            PackError: that of the first unit that failed, or a worker died.
        """
        waiting = list(reversed(tasks))
        for reader in preparing(job.reader):
            # Each worker has processes of its own; those of this one have done their part.
            reader.share(len(self._workers))
        for worker in self._workers:
            _send(worker, job)
            _hand_out(worker, waiting)
        workers = {worker.pipe: worker for worker in self._workers}
        while busy := [pipe for pipe, worker in workers.items() if worker.task is not None]:
            for pipe in wait(busy, timeout=REPORT_SECONDS):
                worker = workers[pipe]  # type: ignore[index]
                _receive(worker, take)
                if worker.task is None and waiting:
                    _hand_out(worker, waiting)
            tick()


def _stop(workers: list[_Worker], parent: int) -> None:
    """Kills all workers. Idle ones hold nothing; what the others left unfinished is removed by whoever claimed the target."""
    if os.getpid() != parent:
        # A child that a callback forked unwinds through here too: the workers are its parent's.
        return
    with signals_held():
        for worker in workers:
            worker.process.kill()
            worker.pipe.close()
        for worker in workers:
            worker.process.join(_END_SECONDS)


def _hand_out(worker: _Worker, waiting: list[Task]) -> None:
    if waiting:
        worker.task = waiting.pop()
        _send(worker, worker.task)


def _send(worker: _Worker, message: Job | Task) -> None:
    try:
        worker.pipe.send(message)
    except OSError:
        raise _death(worker) from None


def _receive(worker: _Worker, take: Take) -> None:
    """Takes one message of a worker."""
    try:
        message = worker.pipe.recv()
    except (EOFError, OSError):
        raise _death(worker) from None
    assert worker.task is not None
    if isinstance(message, BaseException):
        raise message
    take(worker.task.unit.number, message)
    if isinstance(message, Step) and message.finished:
        worker.task = None


def _death(worker: _Worker) -> PackError:
    worker.process.join(_END_SECONDS)
    code = worker.process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        cause = f"was killed by {name}" + (" (perhaps for want of memory)" if name == "SIGKILL" else "")
    else:
        cause = f"ended with status {code}"
    unit = worker.task.unit if worker.task is not None else "no unit"
    return PackError(f"{unit}: the worker process {cause}; nothing was published")


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks signals for processes started meanwhile; they inherit the mask and lift it when they are ready."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keeps processes started meanwhile from running the user's script again.

    A worker needs nothing of it. Without this a script that calls `pack` outside of `if __name__ == "__main__"` would
    fail, one from standard input too, and a training script would load torch in every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(pipe: Connection) -> None:
    """Packs units as they come after what they are a part of, until the pipe is closed."""
    # Ctrl-C on a terminal reaches every process: this one is ended by its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        job: Job = pipe.recv()
        while True:
            task: Task = pipe.recv()
            try:
                pack_unit(job, task, pipe.send)
            except (ShardloadError, OSError, ValueError) as error:
                pipe.send(error)


def _end_with_parent() -> None:
    """Ends this process when its parent is gone, also in the middle of a long sample or a slow write."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
