"""The lock on a directory that one writer holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref

_num_forks = 0


def num_forks() -> int:
    """Returns how often this process is a child of a process that had this module: it differs from its parent's.

    Asking the kernel for the process id instead costs as much as writing a small sample does.
    """
    return _num_forks


def _count_fork() -> None:
    global _num_forks
    _num_forks += 1


os.register_at_fork(after_in_child=_count_fork)


class DirectoryLock:
    """An open directory and the lock on it, if its file system locks.

    It is released by `release`, when this object is dropped, and with the process. A forked child has a second
    descriptor of the same lock: there, letting go closes that one alone, and the parent keeps the lock.
    """

    def __init__(self, directory: str) -> None:
        self.process = os.getpid()
        """The process that may write."""
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        self._finalizer = weakref.finalize(self, _let_go, self._descriptor, self.process)
        # The end of the process releases the lock anyway.
        self._finalizer.atexit = False

    @property
    def released(self) -> bool:
        """Whether it has been let go."""
        return not self._finalizer.alive

    @property
    def is_mine(self) -> bool:
        """Whether this is the process that took it, not a forked child."""
        return os.getpid() == self.process

    def take(self) -> bool:
        """Takes the lock; tells whether the file system locks at all.

        Raises:
            BlockingIOError: another has it.
        """
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Lets go, once."""
        self._finalizer()


def _let_go(descriptor: int, process: int) -> None:
    if os.getpid() == process:
        # Closing alone would leave the lock to children that were forked meanwhile and have the descriptor too.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    with contextlib.suppress(OSError):
        os.close(descriptor)
