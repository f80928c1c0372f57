"""What a dataset is read through: one small interface that directories, object stores and caches share.

Wrappers (retries, a cache) are storages over a storage. Writing is not part of it: see `LocalStorage`.
"""

from __future__ import annotations

from typing import Protocol


class StoredFile(Protocol):
    """A file of known length that never changes, read at offsets. Safe for several threads."""

    @property
    def dataset(self) -> str:
        """Root of the storage, as messages name it: without secrets."""
        ...

    @property
    def name(self) -> str:
        """Name of the file below the root."""
        ...

    @property
    def num_bytes(self) -> int:
        """Its length."""
        ...

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills a writable buffer of bytes with those from `start` on: all of them, or it raises.

        Raises:
            StorageError: the file is missing, ended early, was replaced since it was opened, or cannot be read; names file and
                bytes.
        """
        ...

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes of a half-open range; raises as `read_into`."""
        ...

    def will_need(self, start: int, num_bytes: int) -> None:
        """Says that a range will be read soon; it may be fetched meanwhile. Never waits for it and never raises for its sake."""
        ...

    def discard(self, start: int, stop: int) -> bool:
        """Drops copies of a range whose content was found damaged.

        Returns:
            Whether another read may give other bytes: then it comes from where the file is stored.
        """
        ...


class Storage(Protocol):
    """The files of one dataset. Picklable, without open files, connections or threads in the pickle; made without I/O."""

    @property
    def root(self) -> str:
        """Where it is, as messages name it: without secrets."""
        ...

    def open(self, name: str, num_bytes: int | None = None) -> StoredFile:
        """Opens a file; `num_bytes` is the length it must have. With it a storage far away may wait with its first look.

        Raises:
            StorageError: it is missing, or cannot be read.
            FormatError: it has another length.
        """
        ...

    def read_small(self, name: str, max_bytes: int) -> bytes:
        """Returns a whole file that may not be longer than `max_bytes`; raises as `open`."""
        ...

    def exists(self, name: str) -> bool:
        """Tells whether a name is there."""
        ...

    def list(self, name: str) -> list[str]:
        """Returns the names in a directory, sorted; none if it is not there."""
        ...
