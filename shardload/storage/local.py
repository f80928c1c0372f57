"""Files of a local dataset: positional reads, and writes that are on the device before they count."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from shardload.errors import FormatError, StorageError
from shardload.storage.operations import OPERATIONS, Operations

_WRITE_BYTES = 2 << 20
"""The system's large page: what is written from one on comes into the page cache in one piece, and is mapped by one entry. What
fills it is written without a copy."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class FileReader:
    """An open file of known length, read at offsets. Safe to use from several threads and after a fork.

    The descriptor is closed when the last reference goes, so that a reader dropped from a bounded set of open files
    stays usable for whoever still reads from it.
    """

    def __init__(self, root: str, name: str, num_bytes: int | None, operations: Operations) -> None:
        self.dataset = root
        self.name = name
        self._operations = operations
        self._descriptor = -1
        try:
            self._descriptor = operations.open_read(os.path.join(root, name))
            facts = operations.stat(self._descriptor)
        except FileNotFoundError:
            raise StorageError(f"{root}: {name} is missing", dataset=root, shard=name) from None
        except OSError as error:
            raise self._failed(error) from error
        if not stat.S_ISREG(facts.st_mode):
            raise StorageError(f"{root}: {name} is not a regular file", dataset=root, shard=name)
        if num_bytes is not None and facts.st_size != num_bytes:
            raise FormatError(
                f"{root}: {name} has {facts.st_size} bytes instead of {num_bytes}: it was cut, extended or replaced",
                dataset=root,
                shard=name,
            )
        self.num_bytes = facts.st_size

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the interpreter the modules that closing needs may be gone, and descriptors go anyway.
        if self._descriptor >= 0 and not is_finalizing():
            # Nothing was written through it, so there is nothing that closing could lose.
            with contextlib.suppress(OSError):
                self._operations.close(self._descriptor)

    @property
    def descriptor(self) -> int:
        """The open descriptor; it is closed when this object goes."""
        return self._descriptor

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills a writable buffer of bytes with those from `start` on.

        Raises:
            StorageError: the file ended early, or the device failed.
        """
        done, size = 0, len(buffer)
        while done < size:
            try:
                count = self._operations.preadv(self._descriptor, [buffer[done:] if done else buffer], start + done)
            except OSError as error:
                raise self._failed(error, start, start + size) from error
            if count == 0:
                raise StorageError(
                    f"{self.dataset}: {self.name} ended at byte {start + done} while bytes {start} to "
                    f"{start + size} were read: it was cut after it was opened",
                    dataset=self.dataset,
                    shard=self.name,
                    start=start,
                    stop=start + size,
                )
            done += count

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes of a half-open range."""
        buffer = np.empty(stop - start, dtype=np.uint8)
        self.read_into(buffer.data, start)
        return buffer.tobytes()

    def will_need(self, start: int, num_bytes: int) -> None:
        """Tells the operating system that a range will be read soon; it may start to fetch it."""
        os.posix_fadvise(self._descriptor, start, num_bytes, os.POSIX_FADV_WILLNEED)

    def discard(self, start: int, stop: int) -> bool:
        """Drops nothing: another read gives the same bytes."""
        return False

    def _failed(self, error: OSError, start: int | None = None, stop: int | None = None) -> StorageError:
        place = "" if start is None else f" at bytes {start} to {stop}"
        message = f"{self.dataset}: {self.name} cannot be read{place}: {error.strerror or error}"
        return StorageError(message, dataset=self.dataset, shard=self.name, start=start, stop=stop)


class Digest(Protocol):
    """A sum over bytes that come piece by piece, as those of hashlib."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Takes more bytes in."""

    def digest(self) -> bytes:
        """Returns the sum over all bytes so far."""


class FileWriter:
    """A new file, written front to back. `finish` brings it to the device; leaving without it removes it."""

    def __init__(self, path: str, operations: Operations = OPERATIONS, digest: Digest | None = None) -> None:
        """Creates the file, which must not exist.

        Args:
            path: where.
            operations: what carries out its operations.
            digest: the sum that `finish` returns; None for SHA-256.
        """
        self.path = path
        self.num_bytes = 0
        self._operations = operations
        self._digest: Digest = hashlib.sha256() if digest is None else digest
        # Kept for all that is written: new memory costs more than the copy.
        self._pending = memoryview(bytearray(_WRITE_BYTES))
        self._num_pending = 0
        self._process = os.getpid()
        self._descriptor = operations.open_new(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends bytes; what does not fill a large page is kept."""
        size = len(data)
        self.num_bytes += size
        if (stop := self._num_pending + size) < _WRITE_BYTES:
            self._pending[self._num_pending : stop] = data
            self._num_pending = stop
            return
        view = memoryview(data)
        if self._num_pending:
            room = _WRITE_BYTES - self._num_pending
            self._pending[self._num_pending :] = view[:room]
            self._num_pending = _WRITE_BYTES
            self._flush()
            view = view[room:]
        if whole := len(view) // _WRITE_BYTES * _WRITE_BYTES:
            self._write(view[:whole])
        self._num_pending = len(view) - whole
        self._pending[: self._num_pending] = view[whole:]

    def pad_to(self, offset: int) -> None:
        """Appends zeros up to an offset."""
        self.write(bytes(offset - self.num_bytes))

    def finish(self) -> bytes:
        """Brings all bytes to the device, closes the file and returns the digest of its content.

        After a failure here the file must be thrown away: a second fsync may succeed though data was lost.
        """
        self._flush()
        self._operations.fsync(self._descriptor)
        descriptor, self._descriptor = self._descriptor, -1
        self._operations.close(descriptor)
        return self._digest.digest()

    def abandon(self) -> None:
        """Removes the file unless it was finished, as far as that succeeds.

        It raises no error of its own, as another led here. A process forked meanwhile only closes its descriptor.
        """
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            with contextlib.suppress(OSError):
                self._operations.close(descriptor)
        finally:
            if os.getpid() == self._process:
                with contextlib.suppress(OSError):
                    self._operations.unlink(self.path)

    def _flush(self) -> None:
        size, self._num_pending = self._num_pending, 0
        self._write(self._pending[:size])

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        self._digest.update(data)
        view, done = memoryview(data), 0
        # os.write may write less than asked for without an error: on a full disk the next write tells.
        while done < len(view):
            done += self._operations.write(self._descriptor, view[done:])


class LocalStorage:
    """The files below one local directory. Picklable; holds nothing open."""

    def __init__(self, root: str, operations: Operations = OPERATIONS) -> None:
        self.root = root
        self.operations = operations

    def open(self, name: str, num_bytes: int | None = None) -> FileReader:
        """Opens a file; `num_bytes` is the length it must have."""
        return FileReader(self.root, name, num_bytes, self.operations)

    def read_small(self, name: str, max_bytes: int) -> bytes:
        """Returns a whole file that may not be longer than `max_bytes`."""
        reader = self.open(name)
        if reader.num_bytes > max_bytes:
            raise FormatError(
                f"{self.root}: {name} has {reader.num_bytes} bytes; at most {max_bytes} can be right",
                dataset=self.root,
                shard=name,
            )
        return reader.read(0, reader.num_bytes)

    def path(self, name: str) -> str:
        """Returns the path of a file."""
        return os.path.join(self.root, name)

    def exists(self, name: str) -> bool:
        """Tells whether a name is there."""
        return os.path.lexists(self.path(name))

    def list(self, name: str) -> list[str]:
        """Returns the names in a directory, sorted; none if it is not there."""
        try:
            return sorted(self.operations.listdir(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            message = f"{self.root}: {name} cannot be listed: {error.strerror or error}"
            raise StorageError(message, dataset=self.root, shard=name) from error

    def make_directory(self, name: str) -> None:
        """Creates a directory unless it is there, and brings its name to the device."""
        try:
            self.operations.mkdir(self.path(name))
        except FileExistsError:
            return
        self.sync_directory(os.path.dirname(name))

    def sync_directory(self, name: str) -> None:
        """Brings the names in a directory to the device."""
        descriptor = self.operations.open_read(self.path(name) or ".")
        try:
            self.operations.fsync(descriptor)
        finally:
            self.operations.close(descriptor)

    def write(self, name: str, data: bytes) -> None:
        """Writes a new file and brings its bytes to the device; its name still needs `sync_directory`."""
        with FileWriter(self.path(name), self.operations) as writer:
            writer.write(data)
            writer.finish()

    def create_exclusively(self, name: str, prepared: str) -> bool:
        """Gives a prepared file a name if nobody has it yet; one of several callers wins.

        Returns:
            Whether this caller won.
        """
        try:
            self.operations.link(self.path(prepared), self.path(name))
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # File systems without hard links: the exclusive creation still decides, and the fsync in write comes before
            # the name is made durable; a crash in between leaves a manifest that its own fingerprint refuses and
            # the next writer removes.
            try:
                self.write(name, self.read_small(prepared, 1 << 30))
            except FileExistsError:
                return False
        self.sync_directory(os.path.dirname(name))
        return True
