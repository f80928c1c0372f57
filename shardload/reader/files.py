"""The shard files that a process has open, and what is read of each first."""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from shardload.errors import FormatError
from shardload.format import layout
from shardload.format.external import ExternalFile
from shardload.format.shard import TAIL_READ_BYTES, Expected, ShardHead, check_header, decode_head, tail_bytes
from shardload.format.table import ShardEntry, ShardTable
from shardload.storage import CachedStorage, LocalStorage, Storage, StoredFile

_MAX_FAR_FILES = 1 << 16

WORD_BYTES = len(layout.FOOTER_MAGIC)
"""What the end of a file is told by."""
_LOOK_BYTES = 1 << 14


class ShardFiles(Protocol):
    """What gives the files of shards."""

    @property
    def near(self) -> bool:
        """Whether they are on a file system, and not a request away."""
        ...

    def get(self, shard_id: int, entry: ShardEntry) -> StoredFile:
        """Returns a shard's file."""
        ...


class OpenFiles:
    """The shard files that are open, the least recently used dropped past a number. Safe for several threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.near = isinstance(storage, LocalStorage)
        """Whether they are on a file system, and not a request away."""
        self._files: OrderedDict[int, StoredFile] = OrderedDict()
        self._lock = threading.Lock()
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # The descriptors belong to the training script as well; a file far away has none.
        self._max_files = max(4, min(1024, soft_limit // 4)) if self.near else _MAX_FAR_FILES

    def get(self, shard_id: int, entry: ShardEntry | ExternalFile) -> StoredFile:
        """Returns an open file, of a shard or one beside them. It stays open as long as the caller holds it."""
        with self._lock:
            file = self._files.get(shard_id)
            if file is None:
                file = self._files[shard_id] = self._open(entry)
                if len(self._files) > self._max_files:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(shard_id)
            return file

    def _open(self, entry: ShardEntry | ExternalFile) -> StoredFile:
        if isinstance(self._storage, CachedStorage):
            return self._storage.open(entry.name, entry.num_bytes, digest_of(entry))
        return self._storage.open(entry.name, entry.num_bytes)


def digest_of(entry: ShardEntry | ExternalFile) -> bytes:
    """Returns the SHA-256 of a whole file."""
    return entry.file_digest if isinstance(entry, ShardEntry) else bytes.fromhex(entry.sha256)


class NumberedFiles:
    """What is known of shards, and of files beside them that are numbered behind them."""

    def __init__(self, table: ShardTable) -> None:
        self._table = table
        self._others: list[ExternalFile] = []
        self._numbers: dict[ExternalFile, int] = {}

    def __getitem__(self, number: int) -> ShardEntry | ExternalFile:
        beside = number - len(self._table)
        return self._table[number] if beside < 0 else self._others[beside]

    def add(self, others: Sequence[ExternalFile]) -> list[int]:
        """Adds files and returns their numbers. Called by one thread at a time; a file that is there keeps its number."""
        for one in others:
            if one not in self._numbers:
                self._numbers[one] = len(self._table) + len(self._others)
                self._others.append(one)
        return [self._numbers[one] for one in others]


def read_head(
    file: StoredFile, expected: Expected, identity: tuple[int, int, int], *, with_header: bool = True
) -> ShardHead:
    """Returns what directory and footer say, checked against what is known of the shard, and so the header if asked for.

    Raises:
        FormatError: the file is damaged, or another shard.
    """
    num_bytes, place = expected.num_bytes, f"{file.dataset}: {file.name}"
    try:
        end = file.read(max(0, num_bytes - TAIL_READ_BYTES), num_bytes)
        size = tail_bytes(end, place)
        tail = end[-size:] if size <= len(end) else file.read(max(0, num_bytes - size), num_bytes)
        head = decode_head(tail, expected, place)
        if with_header:
            check_header(file.read(0, layout.HEADER_BYTES), head, expected.schema, identity, place)
    except FormatError as error:
        error.dataset, error.shard = file.dataset, file.name
        raise
    return head


def last_word(file: StoredFile) -> tuple[int, int]:
    """Returns where the last eight bytes lie, at a multiple of eight, that are not all zero, and the number they are.

    Zeros at the end of a file read the same once they are cut off. If there is nothing else, the first eight are returned.
    """
    stop = file.num_bytes // WORD_BYTES * WORD_BYTES
    while stop:
        start = max(0, stop - _LOOK_BYTES)
        words = np.frombuffer(file.read(start, stop), dtype="<u8")
        some = np.flatnonzero(words)
        if len(some):
            return start + int(some[-1]) * WORD_BYTES, int(words[some[-1]])
        stop = start
    return 0, 0
