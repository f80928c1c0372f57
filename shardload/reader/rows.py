"""Packed rows from shards, checked page by page."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ChecksumError
from shardload.format import layout
from shardload.format.rows import RowLayout
from shardload.format.shard import ShardHead
from shardload.storage import StoredFile


class RowCache:
    """Sums of streams and keys, the least recently used dropped past some bytes. Safe for several threads."""

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

    def __init__(self, name: str, head: ShardHead, rows: RowLayout, store: NDArray[Any] | None) -> None:
        """Describes the table.

        Args:
            name: name of the shard, for messages.
            head: where its sections lie.
            rows: layout of its rows.
            store: array for all rows of the shard, if the table is to be read at once rather than page by page.
        """
        self._name = name
        self._num_samples = head.num_samples
        self._section = head.section(layout.SECTION_ROWS)
        self._pages = head.section(layout.SECTION_PAGES)
        self._rows = rows
        self._store = store
        self._loaded = False
        self._digests: memoryview | None = None

    def load(self, file: StoredFile) -> NDArray[Any]:
        """Returns the store, filled if it is not yet: structured array of shape (samples,).

        Raises:
            ChecksumError: a page does not have its digest.
        """
        assert self._store is not None
        if not self._loaded:
            # Of two threads both may read; they write the same.
            data = self._store.view(np.uint8).data
            file.read_into(data, self._section.start)
            digests = self._page_digests(file)
            for page in range(self._rows.num_pages(self._num_samples)):
                low, high = self._rows.page_bounds(page, self._num_samples)
                self._check(file, page, data[low:high], digests)
            self._loaded = True
        return self._store

    def read_pages(self, file: StoredFile, pages: Iterable[tuple[int, memoryview]]) -> None:
        """Reads pages, each into the beginning of some memory, and checks them.

        Raises:
            ChecksumError: a page does not have its digest.
        """
        start, digests = self._section.start, self._page_digests(file)
        for page, memory in pages:
            low, high = self._rows.page_bounds(page, self._num_samples)
            data = memory[: high - low]
            file.read_into(data, start + low)
            self._check(file, page, data, digests)

    def ranges(self, pages: Iterable[int]) -> list[tuple[int, int]]:
        """Returns start and length of what has to be read of the file for some pages."""
        found = []
        if self._digests is None:
            found.append((self._pages.start, self._pages.stop - self._pages.start))
        for page in pages:
            start, stop = self._rows.page_bounds(page, self._num_samples)
            found.append((self._section.start + start, stop - start))
        return found

    def _check(self, file: StoredFile, page: int, data: memoryview, digests: memoryview) -> None:
        if hashlib.sha256(data).digest() != digests[page * layout.DIGEST_BYTES : (page + 1) * layout.DIGEST_BYTES]:
            low, high = (self._section.start + at for at in self._rows.page_bounds(page, self._num_samples))
            raise ChecksumError(
                f"{file.dataset}: {self._name} is damaged: the packed rows at bytes {low} to {high} do not have their "
                "SHA-256",
                dataset=file.dataset,
                shard=self._name,
                start=low,
                stop=high,
            )

    def _page_digests(self, file: StoredFile) -> memoryview:
        if self._digests is None:
            digests = np.empty(self._pages.num_bytes, dtype=np.uint8).data
            file.read_into(digests, self._pages.start)
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
