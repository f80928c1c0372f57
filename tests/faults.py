"""Faults of the file system on demand: operations that fail, fall short, kill their process, or are kept as a trace.

Each instrument is a `shardload.storage.Operations` that stands before another one (`inner`), so that they can be put
together: `Recording(base, FailAt(3, errno.EIO, names=("fsync",)))`. All can be pickled, and then count anew in the
other process. Each counts what it did, since a run that "survived" a fault that never came proves nothing.
`power_loss` makes disks out of a `Recording`; `scenarios` says what is written and what may be there afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shardload.storage import OPERATIONS, Operations

READING = ("open_read", "stat", "preadv", "listdir")
MUTATING = ("open_new", "write", "fsync", "close", "link", "replace", "unlink", "mkdir", "rmdir")
TAKING_SPACE = ("open_new", "write", "fsync", "close", "link", "replace", "mkdir")
"""What a full disk or an exhausted quota makes fail. Removing and reading go on."""


class Instrument(Operations):
    """Operations that all pass through `carry_out`, which subclasses override."""

    def __init__(self, inner: Operations | None = None) -> None:
        self.inner = Operations() if inner is None else inner
        self.written: dict[int, str] = {}
        """Path of each descriptor that is open for writing, as it was opened."""

    def carry_out(self, name: str, *arguments: Any) -> Any:
        """Does one operation."""
        result = getattr(self.inner, name)(*arguments)
        if name == "open_new":
            self.written[result] = arguments[0]
        elif name == "close":
            self.written.pop(arguments[0], None)
        return result

    def changes(self, name: str, arguments: Sequence[Any]) -> bool:
        """Tells whether an operation changes what is on the disk, or could report that a change was lost."""
        return name in MUTATING and (name != "close" or arguments[0] in self.written)


def _through(name: str) -> Callable[..., Any]:
    def operation(self: Instrument, *arguments: Any) -> Any:
        return self.carry_out(name, *arguments)

    operation.__name__ = name
    return operation


for _name in (*READING, *MUTATING):
    setattr(Instrument, _name, _through(_name))


class NoDevice(Operations):
    """Leaves the device out: hundreds of runs would wait for it longer than they compute."""

    def fsync(self, descriptor: int) -> None:
        os.fstat(descriptor)


class NoLinks(NoDevice):
    """A file system without hard links."""

    def link(self, source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)


class Counting(Instrument):
    """Notes the name of each operation: all of them, and those that change something."""

    def __init__(self, inner: Operations | None = None) -> None:
        super().__init__(inner)
        self.all: list[str] = []
        self.changing: list[str] = []

    def carry_out(self, name: str, *arguments: Any) -> Any:
        self.all.append(name)
        if self.changes(name, arguments):
            self.changing.append(name)
        return super().carry_out(name, *arguments)


class FailAt(Instrument):
    """Makes the nth operation of some kinds raise an OSError, once or from then on."""

    def __init__(
        self,
        number: int,
        code: int,
        *,
        lasting: bool = False,
        names: Sequence[str] = (*READING, *MUTATING),
        inner: Operations | None = None,
    ) -> None:
        """Describes the fault.

        Args:
            number: which operation fails, from 1, counted over the kinds in `names`; 0 for none.
            code: number of the error, of `errno`.
            lasting: whether the operations after it fail too.
            names: kinds of operations that count and fail.
            inner: what carries the others out.
        """
        super().__init__(inner)
        self.number, self.code, self.lasting, self.names = number, code, lasting, tuple(names)
        self.calls = self.fired = 0
        self.first = ("", "")
        """Kind and path of the first operation that failed."""

    def carry_out(self, name: str, *arguments: Any) -> Any:
        if name not in self.names:
            return super().carry_out(name, *arguments)
        self.calls += 1
        if not self.number or not (self.calls == self.number or (self.lasting and self.calls > self.number)):
            return super().carry_out(name, *arguments)
        path = arguments[0] if isinstance(arguments[0], str) else self.written.get(arguments[0], "")
        if not self.fired:
            self.first = (name, path)
        self.fired += 1
        if name == "close":  # The descriptor is gone, whatever close says.
            super().carry_out(name, *arguments)
        # As Python does: an error of an operation on a descriptor names no file.
        named = [path] if isinstance(arguments[0], str) else []
        raise OSError(self.code, os.strerror(self.code), *named)


class ShortTransfers(Instrument):
    """Writes and reads less than it is asked for, at least one byte, by a seeded choice."""

    def __init__(self, seed: int, inner: Operations | None = None) -> None:
        super().__init__(inner)
        self.seed, self.fired = seed, 0
        self._random = random.Random(seed)

    def carry_out(self, name: str, *arguments: Any) -> Any:
        if name == "write" and len(arguments[1]) > 1:
            self.fired += 1
            arguments = (arguments[0], arguments[1][: self._random.randint(1, len(arguments[1]) - 1)])
        if name == "preadv" and len(arguments[1][0]) > 1:
            self.fired += 1
            part = arguments[1][0][: self._random.randint(1, len(arguments[1][0]) - 1)]
            arguments = (arguments[0], [part], arguments[2])
        return super().carry_out(name, *arguments)


class KillAt(Instrument):
    """Ends its own process by SIGKILL at the nth operation that changes something: nothing is cleaned up.

    Counted in each process for itself: a pickled copy starts at 0.
    """

    def __init__(self, number: int, when: str = "before", inner: Operations | None = None) -> None:
        """Describes the moment.

        Args:
            number: which operation, from 1.
            when: `before` it is carried out, `after`, or `half`, which for a write is after half of its data.
            inner: what carries operations out.
        """
        super().__init__(inner)
        assert when in ("before", "half", "after")
        self.number, self.when, self.calls = number, when, 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"calls": 0, "written": {}}

    def carry_out(self, name: str, *arguments: Any) -> Any:
        self.calls += self.changes(name, arguments)
        if self.calls != self.number or not self.changes(name, arguments):
            return super().carry_out(name, *arguments)
        try:
            if self.when == "half" and name == "write":
                super().carry_out(name, arguments[0], arguments[1][: len(arguments[1]) // 2])
            elif self.when == "after":
                super().carry_out(name, *arguments)
        finally:  # also after one that is refused, such as the removal of what is not there
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Event:
    """One operation that changed something, with what it takes to do it again. Paths are relative to the base."""

    name: str
    """A kind of `MUTATING`, or `failed_fsync`."""
    path: str = ""
    """The file, directory or source; as it was opened, where the operation was on a descriptor."""
    target: str = ""
    """The new name, of link and replace."""
    file: int = -1
    """Number of the file created, written, or synced: files that bear one name one after another differ."""
    data: bytes = b""


class Recording(Instrument):
    """Keeps a trace of the operations that change something and of the fsyncs that failed.

    Directories that appear without an operation (such as by `os.makedirs`) are noticed at the next operation.
    """

    def __init__(self, base: str | os.PathLike[str], inner: Operations | None = None) -> None:
        """Starts a trace.

        Args:
            base: directory below which everything happens.
            inner: what carries operations out.
        """
        super().__init__(inner)
        self.base = os.path.abspath(base)
        self.before: dict[str, bytes | None] = files_below(self.base)
        """What was there at the start: path -> content, None for a directory. It counts as durable."""
        self.events: list[Event] = []
        self._directories = {path for path, data in self.before.items() if data is None}
        self._files: dict[int, int] = {}
        self._read: dict[int, str] = {}

    def carry_out(self, name: str, *arguments: Any) -> Any:
        self._notice_directories(arguments)
        path = self._relative(arguments[0])
        file = self._files.get(arguments[0], -1) if isinstance(arguments[0], int) else -1
        try:
            result = super().carry_out(name, *arguments)
        except OSError:
            if name == "fsync":
                self.events.append(Event("failed_fsync", path, file=file))
            raise
        if name == "open_new":
            self._files[result] = file = len(self.events)
        elif name == "open_read":
            self._read[result] = path
        elif name == "close":
            self._files.pop(arguments[0], None)
            self._read.pop(arguments[0], None)
        if name == "mkdir":
            self._directories.add(path)
        if name == "replace" and path in self._directories:
            # A directory goes with all below it.
            below = {one for one in self._directories if one == path or one.startswith(f"{path}{os.sep}")}
            moved = {self._relative(arguments[1]) + one.removeprefix(path) for one in below}
            self._directories = (self._directories - below) | moved
        if name in MUTATING and name != "close":
            data = bytes(arguments[1][:result]) if name == "write" else b""
            target = self._relative(arguments[1]) if name in ("link", "replace") else ""
            self.events.append(Event(name, path, target, file, data))
        return result

    def _relative(self, place: Any) -> str:
        if isinstance(place, int):
            place = self.written.get(place) or os.path.join(self.base, self._read.get(place, ""))
        return os.path.relpath(os.path.normpath(place), self.base)

    def _notice_directories(self, arguments: Sequence[Any]) -> None:
        parts = self._relative(arguments[0]).split(os.sep)
        for size in range(1, len(parts)):
            path = os.path.join(*parts[:size])
            if path not in (".", "..") and path not in self._directories:
                self._directories.add(path)
                self.events.append(Event("mkdir", path))


def files_below(path: str | os.PathLike[str]) -> dict[str, bytes | None]:
    """Returns what is below a directory: path -> content, None for a directory."""
    found: dict[str, bytes | None] = {}
    for directory, directories, files in os.walk(path):
        for name in directories:
            found[os.path.relpath(os.path.join(directory, name), path)] = None
        for name in files:
            with open(os.path.join(directory, name), "rb") as file:
                found[os.path.relpath(file.name, path)] = file.read()
    return found


@contextlib.contextmanager
def injected(operations: Operations) -> Iterator[None]:
    """Puts operations in the place of the real ones, for code that takes none, such as readers."""
    for name in (*READING, *MUTATING):
        setattr(OPERATIONS, name, getattr(operations, name))
    try:
        yield
    finally:
        for name in (*READING, *MUTATING):
            delattr(OPERATIONS, name)


def in_child(work: Callable[[], object], group: bool = False) -> int:
    """Runs something in a forked process that ends without clean-up.

    Args:
        work: what to run.
        group: whether the process leads a group of its own, which it may kill.

    Returns:
        0; 99 where it raised, with the error on standard error; its status where it exits; or minus the number of the
        signal that ended it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        pid = os.fork()
    if pid == 0:
        status = 99
        try:
            if group:
                os.setsid()
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 98
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
