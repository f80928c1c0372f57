"""Where an export goes: files are written under a hidden name beside the target, and appear there whole or not at all.

The hidden folder is locked: what a killed export left in it is removed by the next one to the same target, and two at once
are refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator

from shardload.errors import ExportError, ShardloadError
from shardload.quantities import format_bytes
from shardload.storage import FileWriter, Operations
from shardload.writer.lock import DirectoryLock

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class _NoDigest:
    """The sum of a file that nobody asks for."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Does nothing."""

    def digest(self) -> bytes:
        """Returns nothing."""
        return b""


class Target:
    """The files of an export under way, which become the target by `publish`."""

    def __init__(self, path: str, suffix: str, single: bool, operations: Operations) -> None:
        """Describes them.

        Args:
            path: absolute path of the target.
            suffix: that of the files.
            single: whether the target is one file, not a folder of them.
            operations: what carries out the file operations.
        """
        self.path = path
        self.single = single
        self.num_files = 0
        self.finished_bytes = 0
        """Bytes of the files that are finished."""
        self.published = False
        """Whether the target has its name."""
        self._suffix = suffix
        self._operations = operations
        self._file: FileWriter | None = None
        parent, name = os.path.split(path)
        self.hidden = os.path.join(parent, f".{name}.exporting")
        """The folder that all is written in."""
        self._content = os.path.join(self.hidden, name)

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return self.finished_bytes + (self._file.num_bytes if self._file is not None else 0)

    def begin(self) -> None:
        """Makes the folder for the files, if there are to be several."""
        if not self.single:
            self._operations.mkdir(self._content)

    def open_next(self) -> FileWriter:
        """Begins the next file."""
        name = f"{self.num_files:06d}{self._suffix}"
        path = self._content if self.single else os.path.join(self._content, name)
        self._file = FileWriter(path, self._operations, _NoDigest())
        self.num_files += 1
        return self._file

    def finish_file(self) -> None:
        """Brings the file that was begun last to the device."""
        assert self._file is not None
        self._file.finish()
        self.finished_bytes += self._file.num_bytes
        self._file = None

    def publish(self) -> None:
        """Gives the files the name of the target.

        Raises:
            ExportError: something has come to stand there meanwhile.
        """
        if not self.single:
            self._sync(self._content)
        self._sync(self.hidden)
        try:
            if self.single:
                self._link()
            else:
                # A folder never takes the place of a file, nor of a folder that holds anything.
                self._operations.replace(self._content, self.path)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise already_there(self.path) from None
            raise
        self.published = True
        self._sync(os.path.dirname(self.path))

    def clear(self) -> None:
        """Removes what is in the hidden folder, as far as that succeeds."""
        file, self._file = self._file, None
        if file is not None:
            file.abandon()
        with contextlib.suppress(OSError):
            if os.path.isdir(self._content) and not os.path.islink(self._content):
                for name in self._operations.listdir(self._content):
                    self._operations.unlink(os.path.join(self._content, name))
                self._operations.rmdir(self._content)
            else:
                self._operations.unlink(self._content)

    def _link(self) -> None:
        try:
            self._operations.link(self._content, self.path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # File systems without hard links: what comes to stand there between these two calls is lost.
            if os.path.lexists(self.path):
                raise already_there(self.path) from None
            self._operations.replace(self._content, self.path)

    def _sync(self, directory: str) -> None:
        descriptor = self._operations.open_read(directory)
        try:
            self._operations.fsync(descriptor)
        finally:
            self._operations.close(descriptor)


@contextlib.contextmanager
def exporting(target: Target, operations: Operations) -> Iterator[None]:
    """Holds the target's hidden folder; at the end, however that is reached, it is gone.

    Raises:
        ExportError: the target is there, another export to it is under way, or the storage failed.
    """
    if os.path.lexists(target.path):
        raise already_there(target.path)
    with _named(target):
        lock = _locked(target, operations)
        try:
            target.clear()
            target.begin()
            yield
        finally:
            target.clear()
            with contextlib.suppress(OSError):
                operations.rmdir(target.hidden)
            lock.release()


def already_there(path: str) -> ExportError:
    """Returns the error for a target that is there."""
    return ExportError(f"{path} is there already: choose another target, or remove it", dataset=path)


def _locked(target: Target, operations: Operations) -> DirectoryLock:
    for _ in range(10):
        with contextlib.suppress(FileExistsError):
            operations.mkdir(target.hidden)
        try:
            lock = DirectoryLock(target.hidden)
        except FileNotFoundError:
            continue
        try:
            lock.take()
        except BlockingIOError:
            lock.release()
            break
        # Whoever had it may have removed it before it was locked here.
        if lock.is_at(target.hidden):
            return lock
        lock.release()
    raise ExportError(f"{target.path}: another export to it is under way", dataset=target.path)


@contextlib.contextmanager
def _named(target: Target) -> Iterator[None]:
    """Turns the operating system's errors at the target into one sentence that names it and says what is there."""
    path = target.path
    try:
        yield
    except OSError as error:
        if isinstance(error, ShardloadError):
            raise
        detail = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                detail += f" ({format_bytes(shutil.disk_usage(os.path.dirname(path)).free)} free)"
        left = "it is there, but a loss of power may take it" if target.published else "nothing was left there"
        raise ExportError(f"{path} cannot be written: {detail}; {left}", dataset=path) from error
