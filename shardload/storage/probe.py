"""Files that are written and read only to see how fast that goes. They have no name: whatever ends the process, none stays."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from shardload.errors import StorageError
from shardload.storage.residency import resident_fraction

ALIGNMENT_BYTES = 4096
"""Offsets, lengths and addresses of direct reads and writes are multiples of it."""

_CANNOT = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class Room:
    """Where a directory lies."""

    file_system: str
    """Its type, such as ext4 or nfs4; empty if the system does not tell."""
    free_bytes: int
    """What this user may still write."""


def room_of(directory: str) -> Room:
    """Returns the file system of a directory and what is free there.

    Raises:
        StorageError: it cannot be asked.
    """
    try:
        facts = os.statvfs(directory)
        device = os.stat(directory).st_dev
    except OSError as error:
        raise _failed(directory, error) from error
    return Room(_file_system(f"{os.major(device)}:{os.minor(device)}"), facts.f_bavail * facts.f_frsize)


def _file_system(device: str) -> str:
    with contextlib.suppress(OSError, ValueError), open("/proc/self/mountinfo") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if before.split()[2] == device:
                return after.split()[0]
    return ""


def aligned_buffer(num_bytes: int) -> mmap.mmap:
    """Returns memory of at least so many bytes that direct reads and writes accept; closing it gives it back."""
    return mmap.mmap(-1, -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)


class ProbeFile:
    """A file without a name in a directory. Closing it, or the end of the process, gives its space back.

    Reads and writes go past the page cache where the file system allows that (`direct`).
    """

    def __init__(self, directory: str, *, direct: bool = True) -> None:
        """Creates the file.

        Raises:
            StorageError: it cannot be created there.
        """
        self.directory = directory
        self.num_bytes = 0
        try:
            # Where the file system knows no files without a name, the name is removed before anything is written.
            self._file = tempfile.TemporaryFile(buffering=0, prefix=".shardload-plan-", dir=directory)  # noqa: SIM115
        except OSError as error:
            raise _failed(directory, error) from error
        self.direct = direct and self._go_direct()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, data: memoryview) -> None:
        """Writes at the end: a multiple of `ALIGNMENT_BYTES`, from an aligned buffer.

        Raises:
            StorageError: the file system is full, or failed.
        """
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._file.fileno(), data[done:], self.num_bytes + done)
        except OSError as error:
            raise _failed(self.directory, error) from error
        self.num_bytes += len(data)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills an aligned buffer, a multiple of `ALIGNMENT_BYTES` long, from an offset that is one too."""
        try:
            count = os.preadv(self._file.fileno(), [buffer], start)
        except OSError as error:
            raise _failed(self.directory, error) from error
        if count != len(buffer):
            raise StorageError(f"{self.directory}: a read of {len(buffer)} bytes returned {count}")

    def sync(self) -> None:
        """Brings what was written to the device."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _failed(self.directory, error) from error

    def drop(self, *, random: bool) -> float:
        """Drops the file's pages from memory, and returns what part of them is there all the same, 0 to 1; 1 if nobody can tell.

        Args:
            random: whether it will be read in random order, so that the system had better not read ahead.
        """
        advice = os.POSIX_FADV_RANDOM if random else os.POSIX_FADV_SEQUENTIAL
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(self._file.fileno(), 0, 0, advice)
        found = resident_fraction(self._file.fileno(), self.num_bytes)
        return 1.0 if found is None else found

    def close(self) -> None:
        """Gives the space back."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _go_direct(self) -> bool:
        """Asks for direct reads and writes, and tries one of each: some file systems take the flag and not the requests."""
        descriptor = self._file.fileno()
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        buffer = aligned_buffer(ALIGNMENT_BYTES)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            os.pwrite(descriptor, buffer, 0)
            os.preadv(descriptor, [buffer], 0)
        except OSError as error:
            if error.errno not in _CANNOT:
                self.close()
                raise _failed(self.directory, error) from error
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
            return False
        finally:
            buffer.close()
        return True


def _failed(directory: str, error: OSError) -> StorageError:
    return StorageError(f"{directory}: cannot be measured: {error.strerror or error}", dataset=directory)
