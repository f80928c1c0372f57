"""A storage whose files are kept block by block on a local disk, as far as they are read."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import StorageError
from shardload.storage.base import Storage, StoredFile
from shardload.storage.cache import Cache, Missing
from shardload.storage.cache_directory import CacheDirectory, check_limit
from shardload.storage.slots import key_of, num_blocks, widened


class CachedStorage:
    """The files of another storage, through a cache. Picklable; each process opens the cache for itself.

    Only files whose content has a name are kept: such as shards, by their digest in the table. Others are read as they are.
    """

    def __init__(self, inner: Storage, cache_dir: str, limit_bytes: int) -> None:
        """Describes it; nothing is opened.

        Args:
            inner: where the files are.
            cache_dir: directory of the cache.
            limit_bytes: what its files together may take, those of all jobs that use the directory.

        Raises:
            ValueError: the limit is too small.
        """
        check_limit(limit_bytes)
        self.inner = inner
        self.cache_dir = cache_dir
        self.limit_bytes = limit_bytes
        self.counted_elsewhere = False
        """Whether reads of files are not what somebody needs, but what an engine fetches for others."""
        self._cache: Cache | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("inner", "cache_dir", "limit_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def root(self) -> str:
        """Where the files are, as messages name it."""
        return self.inner.root

    @property
    def num_retries(self) -> dict[str, int]:
        """Attempts that the storage below has repeated, by what had gone wrong."""
        return dict(getattr(self.inner, "num_retries", {}))

    @property
    def cache(self) -> Cache:
        """This process's cache, opened at the first call.

        Raises:
            StorageError: the directory cannot be a cache.
        """
        cache = self._cache
        if cache is None or cache.process_id != os.getpid():
            if cache is not None:
                # A lock that was held in the parent is never released here.
                self._lock = threading.Lock()
                self._cache = None
            with self._lock:
                cache = self._cache
                if cache is None:
                    cache = self._cache = Cache(self.cache_dir, self.limit_bytes)
        return cache

    def check(self) -> None:
        """Makes the cache, or looks whether it is one; leaves nothing open. A file system that fails is told of at the first use.

        Raises:
            StorageError: the directory cannot be a cache, or is in use with another limit.
        """
        try:
            CacheDirectory(self.cache_dir, self.limit_bytes).close()
        except StorageError:
            raise
        except OSError:
            # Without it reads go on, with a warning.
            return

    def open(self, name: str, num_bytes: int | None = None, digest: bytes | None = None) -> StoredFile:
        """Opens a file.

        Args:
            name: of the file.
            num_bytes: the length it must have.
            digest: of its content, at least 16 bytes. With it, and its length, nothing is asked of where it is stored before
                something is read that is not in the cache.
        """
        if digest is None or num_bytes is None:
            return self.inner.open(name, num_bytes)
        return CachedFile(self, name, num_bytes, digest)

    def read_small(self, name: str, max_bytes: int) -> bytes:
        """Returns a whole file, from where it is stored."""
        return self.inner.read_small(name, max_bytes)

    def exists(self, name: str) -> bool:
        """Tells whether a name is there, where it is stored."""
        return self.inner.exists(name)

    def list(self, name: str) -> list[str]:
        """Returns the names in a directory, where it is stored."""
        return self.inner.list(name)


class CachedFile:
    """A file read through a cache: what is there comes from the disk, checked; the rest is fetched, and kept."""

    def __init__(self, storage: CachedStorage, name: str, num_bytes: int, digest: bytes) -> None:
        self.dataset = storage.root
        self.name = name
        self.num_bytes = num_bytes
        self.key = key_of(digest, num_bytes)
        """What its blocks are found by in the cache."""
        self._storage = storage
        self._inner: StoredFile | None = None
        self._lock = threading.Lock()

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills a buffer with the bytes from `start` on."""
        target = np.frombuffer(buffer, dtype=np.uint8)
        if start < 0 or start + len(target) > self.num_bytes:
            # Told in the words of whoever stores it.
            self._origin().read_into(buffer, start)
            return
        if not len(target):
            return
        cache, alone = self._storage.cache, not self._storage.counted_elsewhere
        missing = cache.read(self.key[None], np.array([start]), [target], needed=alone)
        if alone:
            lost = num_blocks(*np.array([part[1:] for part in missing], dtype=np.int64).reshape(-1, 2).T)
            cache.count(num_blocks(np.array([start]), np.array([start + len(target)])) - lost, lost)
        if missing:
            self._fetch(cache, missing, target, start)

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes of a half-open range."""
        data = np.empty(stop - start, dtype=np.uint8)
        self.read_into(data.data, start)
        return data.tobytes()

    def will_need(self, start: int, num_bytes: int) -> None:
        """Passes on what is not in the cache."""
        # Whoever wants all of a file may say so by a number that is larger than any.
        stop = min(start + num_bytes, self.num_bytes)
        if start < stop:
            cache = self._storage.cache
            if not cache.will_need(self.key[None], np.array([start]), np.array([stop])).all():
                self._origin().will_need(start, stop - start)

    def discard(self, start: int, stop: int) -> bool:
        """Drops the blocks of a range; the next read fetches them.

        Returns:
            Whether there were any, or the storage below had a copy of its own.
        """
        below = self._inner is not None and self._inner.discard(start, stop)
        held = self._storage.cache.drop(self.key, start, stop)
        self._storage.cache.stats.num_damaged += held
        return held or below

    def _origin(self) -> StoredFile:
        with self._lock:
            if self._inner is None:
                self._inner = self._storage.inner.open(self.name, self.num_bytes)
            return self._inner

    def _fetch(self, cache: Cache, missing: list[Missing], target: NDArray[np.uint8], start: int) -> None:
        """Fetches what is missing, and keeps it.

        By one request, whatever is there in between: who asked for one range took several to be dearer.
        """
        low, high = missing[0].start, missing[-1].stop
        first, stop = widened(low, high, self.num_bytes)
        origin = self._origin()
        if (first, stop) == (low, high):
            data = target[low - start : high - start]
            origin.read_into(data.data, first)
        else:
            data = np.empty(stop - first, dtype=np.uint8)
            origin.read_into(data.data, first)
            target[low - start : high - start] = data[low - first : high - first]
        pieces = [widened(part.start, part.stop, self.num_bytes) for part in missing]
        keys, starts = np.tile(self.key, (len(pieces), 1)), np.array([begin for begin, _ in pieces])
        cache.write(keys, starts, [data[begin - first : end - first] for begin, end in pieces])
