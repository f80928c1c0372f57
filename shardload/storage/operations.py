"""The file operations that shardload uses, in one place, so that tests can make any one of them fail or the last."""

from __future__ import annotations

import os
from collections.abc import Sequence


class Operations:
    """The operating system's file operations. Subclass it to count them, make them fail, or die at one of them."""

    def open_new(self, path: str) -> int:
        """Creates a file that must not exist and returns its descriptor for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def open_read(self, path: str) -> int:
        """Opens a file for reading. Never waits, also not for a FIFO's writer."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Writes some of `data` and returns how much."""
        return os.write(descriptor, data)

    def preadv(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Reads at an offset into the buffers and returns how much; 0 at the end of the file."""
        return os.preadv(descriptor, buffers, offset)

    def stat(self, descriptor: int) -> os.stat_result:
        """Returns the facts of an open file."""
        return os.fstat(descriptor)

    def fsync(self, descriptor: int) -> None:
        """Brings a file's bytes, or a directory's names, to the device."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Closes a descriptor."""
        os.close(descriptor)

    def link(self, source: str, target: str) -> None:
        """Gives a file a second name that must not exist."""
        os.link(source, target)

    def replace(self, source: str, target: str) -> None:
        """Renames a file over another."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        """Removes a name."""
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        """Creates a directory that must not exist."""
        os.mkdir(path)

    def rmdir(self, path: str) -> None:
        """Removes an empty directory."""
        os.rmdir(path)

    def listdir(self, path: str) -> list[str]:
        """Returns the names in a directory."""
        return os.listdir(path)


OPERATIONS = Operations()
"""The real ones."""
