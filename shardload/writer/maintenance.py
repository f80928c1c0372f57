"""What looks after a dataset shares: the lock, and the names of shards."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from shardload.errors import PackError, StorageError
from shardload.storage import LocalStorage
from shardload.writer.lock import DirectoryLock

_SHARD = re.compile(r"([0-9]{4,})-([0-9]{6,})-([0-9]{5,})\.shard")


@contextlib.contextmanager
def locked(storage: LocalStorage) -> Iterator[None]:
    """Holds the lock of a dataset's directory.

    Raises:
        StorageError: there is no such directory.
        PackError: a writer is at work there.
    """
    if not os.path.isdir(storage.root):
        raise StorageError(f"{storage.root} is not a directory", dataset=storage.root)
    lock = DirectoryLock(storage.root)
    try:
        try:
            lock.take()
        except BlockingIOError:
            raise PackError(f"{storage.root}: a writer is at work there", dataset=storage.root) from None
        yield
    finally:
        lock.release()


def shard_identity(name: str) -> tuple[int, int, int] | None:
    """Returns generation, unit and part of a shard by its name in `shards/`, or None if it is no shard's."""
    match = _SHARD.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))
