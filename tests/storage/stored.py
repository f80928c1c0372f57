"""A storage in memory that notes what is read of it."""

from __future__ import annotations

import numpy as np

from shardload.errors import StorageError
from shardload.storage import Storage, StoredFile


class NotedFile:
    """A file in memory; `reads` are the ranges that were asked for."""

    dataset = "memory"

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data, self.num_bytes = name, data, len(data)
        self.reads: list[tuple[int, int]] = []
        self.announced: list[tuple[int, int]] = []
        self.has_copies = False
        self.discarded: list[tuple[int, int]] = []

    def read_into(self, buffer: memoryview, start: int) -> None:
        stop = start + len(buffer)
        if start < 0 or stop > self.num_bytes:
            raise StorageError(f"memory: {self.name} has no bytes {start} to {stop}", dataset="memory", shard=self.name)
        self.reads.append((start, stop))
        buffer[:] = self.data[start:stop]

    def read(self, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        self.read_into(memoryview(buffer), start)
        return bytes(buffer)

    def will_need(self, start: int, num_bytes: int) -> None:
        self.announced.append((start, start + num_bytes))

    def discard(self, start: int, stop: int) -> bool:
        self.discarded.append((start, stop))
        return self.has_copies

    @property
    def num_read(self) -> int:
        return sum(stop - start for start, stop in self.reads)


class NotedStorage:
    """Files in memory."""

    root = "memory"

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = {name: NotedFile(name, data) for name, data in files.items()}
        self.opened: list[str] = []

    def open(self, name: str, num_bytes: int | None = None) -> StoredFile:
        if name not in self.files:
            raise StorageError(f"memory: {name} is missing", dataset="memory", shard=name)
        self.opened.append(name)
        return self.files[name]

    def read_small(self, name: str, max_bytes: int) -> bytes:
        return self.files[name].data

    def exists(self, name: str) -> bool:
        return name in self.files

    def list(self, name: str) -> list[str]:
        return sorted(other.rpartition("/")[2] for other in self.files if other.rpartition("/")[0] == name)


def noise(num_bytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(num_bytes)


_: type[Storage] = NotedStorage
