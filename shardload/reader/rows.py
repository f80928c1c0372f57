"""Packed rows from shards: checked page by page, and kept as long as the budget allows."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ChecksumError
from shardload.format import layout
from shardload.format.rows import RowLayout
from shardload.format.shard import ShardHead
from shardload.storage import StoredFile


class RowCache:
    """Pieces of row tables, sums and keys, the least recently used dropped past some bytes. Safe for several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._pieces: OrderedDict[tuple[int, ...], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, ...]) -> NDArray[Any] | None:
        """Returns a piece, or None."""
        with self._lock:
            piece = self._pieces.get(key)
            if piece is not None:
                self._pieces.move_to_end(key)
            return piece

    def drop(self, key: tuple[int, ...]) -> None:
        """Lets a piece go, if it is there."""
        with self._lock:
            piece = self._pieces.pop(key, None)
            self._num_bytes -= 0 if piece is None else piece.nbytes

    def put(self, key: tuple[int, ...], piece: NDArray[Any]) -> None:
        """Keeps a piece."""
        with self._lock:
            if key in self._pieces:
                return
            self._pieces[key] = piece
            self._num_bytes += piece.nbytes
            while self._num_bytes > self._max_bytes and len(self._pieces) > 1:
                _, dropped = self._pieces.popitem(last=False)
                self._num_bytes -= dropped.nbytes


class RowTable:
    """The packed rows of one shard."""

    def __init__(
        self, shard_id: int, name: str, head: ShardHead, rows: RowLayout, cache: RowCache, store: NDArray[Any] | None
    ) -> None:
        """Describes the table.

        Args:
            shard_id: number of the shard, for the cache.
            name: name of the shard, for messages.
            head: where its sections lie.
            rows: layout of its rows.
            cache: where checked pages are kept.
            store: array for all rows of the shard, if the table is to be read at once rather than page by page.
        """
        self._shard_id = shard_id
        self._name = name
        self._num_samples = head.num_samples
        self._section = head.section(layout.SECTION_ROWS)
        self._pages = head.section(layout.SECTION_PAGES)
        self._rows = rows
        self._cache = cache
        self._store = store
        self._loaded = False
        self._digests: bytes | None = None

    def take(self, file: StoredFile, local_ids: NDArray[np.int64]) -> NDArray[Any]:
        """Returns the rows of some samples: structured array of shape (samples,).

        Args:
            file: the shard.
            local_ids: not falling.

        Raises:
            ChecksumError: a page does not have its digest.
        """
        per_page = self._rows.rows_per_page
        if self._store is not None:
            self.load(file)
            return self._store[local_ids]
        rows = np.empty(len(local_ids), dtype=self._rows.dtype)
        pages = local_ids // per_page
        for page in np.unique(pages):
            start, stop = np.searchsorted(pages, [page, page + 1])
            rows[start:stop] = self._page(file, int(page))[local_ids[start:stop] - page * per_page]
        return rows

    def load(self, file: StoredFile) -> None:
        """Fills the store, if there is one and it is not full yet.

        Raises:
            ChecksumError: a page does not have its digest.
        """
        if self._store is not None and not self._loaded:
            # Of two threads both may read; they write the same.
            self._read(file, 0, self._rows.num_pages(self._num_samples), self._store)
            self._loaded = True

    def ranges(self, local_ids: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Returns start and length of what has yet to be read of the file for the rows of some samples, page by page.

        Args:
            local_ids: not falling.
        """
        found = []
        if self._digests is None:
            found.append((self._pages.start, self._pages.stop - self._pages.start))
        for page in np.unique(local_ids // self._rows.rows_per_page).tolist():
            if self._cache.get((self._shard_id, page)) is None:
                start, stop = self._rows.page_bounds(page, self._num_samples)
                found.append((self._section.start + start, stop - start))
        return found

    def _page(self, file: StoredFile, page: int) -> NDArray[Any]:
        key = (self._shard_id, page)
        rows = self._cache.get(key)
        if rows is None:
            start, stop = self._rows.page_bounds(page, self._num_samples)
            rows = np.empty((stop - start) // self._rows.dtype.itemsize, dtype=self._rows.dtype)
            self._read(file, page, page + 1, rows)
            self._cache.put(key, rows)
        return rows

    def _read(self, file: StoredFile, first: int, last: int, out: NDArray[Any]) -> None:
        """Fills an array with the rows of pages first to last - 1."""
        start = self._rows.page_bounds(first, self._num_samples)[0]
        data = out.view(np.uint8)
        file.read_into(data.data, self._section.start + start)
        digests = self._page_digests(file)
        for page in range(first, last):
            low, high = self._rows.page_bounds(page, self._num_samples)
            digest = digests[page * layout.DIGEST_BYTES : (page + 1) * layout.DIGEST_BYTES]
            if hashlib.sha256(data[low - start : high - start].data).digest() != digest:
                low, high = low + self._section.start, high + self._section.start
                raise ChecksumError(
                    f"{file.dataset}: {self._name} is damaged: the packed rows at bytes {low} to {high} do not have their "
                    "SHA-256",
                    dataset=file.dataset,
                    shard=self._name,
                    start=low,
                    stop=high,
                )

    def _page_digests(self, file: StoredFile) -> bytes:
        if self._digests is None:
            digests = file.read(self._pages.start, self._pages.stop)
            if hashlib.sha256(digests).digest() != self._pages.digest:
                raise ChecksumError(
                    f"{file.dataset}: {self._name} is damaged: the page digests at bytes {self._pages.start} to "
                    f"{self._pages.stop} do not have their SHA-256",
                    dataset=file.dataset,
                    shard=self._name,
                    start=self._pages.start,
                    stop=self._pages.stop,
                )
            self._digests = digests
        return self._digests
