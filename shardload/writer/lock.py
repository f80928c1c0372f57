"""Locks: on a directory, for one writer or several of one dataset, and on numbers, for who among these writes what."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
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

    def is_at(self, path: str) -> bool:
        """Tells whether the directory is still the one at a path."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path))
        except FileNotFoundError:
            return False

    def take(self, shared: bool = False) -> bool:
        """Takes the lock, or changes its kind; tells whether the file system locks at all.

        Args:
            shared: whether others may have it too, shared as well. A lock that cannot be changed into this kind is lost.

        Raises:
            BlockingIOError: another has it.
        """
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Lets go, once."""
        self._finalizer()


class NumberLocks:
    """Locks on numbers, by way of a file that those who compete have in common: a byte for each number.

    They end by `release`, when this object is dropped, and with the process.
    """

    def __init__(self, path: str) -> None:
        """Opens the file, which is made if it is not there."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)
        self._finalizer.atexit = False

    def take(self, number: int) -> None:
        """Takes a number, where the file system locks at all.

        Raises:
            BlockingIOError: another has it.
        """
        try:
            self._set(fcntl.F_WRLCK, number)
        except (BlockingIOError, PermissionError) as error:
            raise BlockingIOError(error.errno, error.strerror) from None
        except OSError:
            return

    def release(self, number: int) -> None:
        """Lets a number go."""
        with contextlib.suppress(OSError):
            self._set(fcntl.F_UNLCK, number)

    def close(self) -> None:
        """Lets all go, once."""
        self._finalizer()

    def _set(self, kind: int, number: int) -> None:
        # Of the open file, not of the process: two writers in one process compete as well.
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, number, 1, 0)
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, lock)


def _let_go(descriptor: int, process: int) -> None:
    if os.getpid() == process:
        # Closing alone would leave the lock to children that were forked meanwhile and have the descriptor too.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    with contextlib.suppress(OSError):
        os.close(descriptor)
