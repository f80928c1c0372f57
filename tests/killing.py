"""File operations that end the process, or its whole process group, at the nth of them; picklable, for workers too."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

from shardload.storage import Operations

NAMES = [name for name in vars(Operations) if not name.startswith("_")]


class Counted(Operations):
    """Counts operations and calls `reached` at the nth, which half of a write goes before."""

    def __init__(self, number: int = -1) -> None:
        self.number = number
        self.count = 0

    def reached(self) -> None:
        """What happens at the nth operation."""


def _counted(name: str) -> Callable[..., Any]:
    def operation(self: Counted, *arguments: Any) -> Any:
        self.count += 1
        if self.count == self.number:
            if name == "write":
                os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
            self.reached()
        # A process that is killed loses nothing that it has written, on the device or not: that would be waiting only.
        return None if name == "fsync" else getattr(Operations, name)(self, *arguments)

    return operation


for _name in NAMES:
    setattr(Counted, _name, _counted(_name))


class KilledAt(Counted):
    """Kills the process group at the nth operation of any one process."""

    def reached(self) -> None:
        os.killpg(os.getpgid(0), signal.SIGKILL)


class FailsAt(Counted):
    """The nth operation fails with an error; those before and after it do not."""

    def __init__(self, number: int, error: int) -> None:
        super().__init__(number)
        self.error = error

    def reached(self) -> None:
        raise OSError(self.error, os.strerror(self.error))


def in_child(work: Callable[[], object]) -> int:
    """Runs something in a forked process with a group of its own; returns 0, 1 for an error, or -9 where it was killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        pid = os.fork()
    if pid == 0:
        os.setsid()
        status = 1
        try:
            work()
            status = 0
        except Exception as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
