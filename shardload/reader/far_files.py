"""Files of shards that are a request away, read through the engine that fetches ahead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardload.format.table import ShardEntry
from shardload.reader.engines import Ranges
from shardload.reader.files import OpenFiles
from shardload.reader.range_engine import RangeEngine
from shardload.storage import StoredFile

_Tails = dict[int, tuple[int, bytes]]
"""Shard -> where its end starts, and the end."""


class FarFile:
    """A shard's file read through the engine: what was announced of it is there, or on its way."""

    def __init__(self, shard_id: int, file: StoredFile, engine: RangeEngine, tails: _Tails) -> None:
        self.dataset, self.name, self.num_bytes = file.dataset, file.name, file.num_bytes
        self._shard_id = shard_id
        self._file = file
        self._engine = engine
        self._tails = tails

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills a writable buffer of bytes with those from `start` on."""
        if not len(buffer):
            return
        low, tail = self._tails.get(self._shard_id, (self.num_bytes, b""))
        if start >= low:
            buffer[:] = tail[start - low : start - low + len(buffer)]
        else:
            self._engine.read(_alone(self._shard_id, start, len(buffer)), [np.frombuffer(buffer, dtype=np.uint8)])

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes of a half-open range."""
        data = bytearray(stop - start)
        self.read_into(memoryview(data), start)
        return bytes(data)

    def will_need(self, start: int, num_bytes: int) -> None:
        """Has a range fetched."""
        self._engine.will_need(_alone(self._shard_id, start, num_bytes))

    def discard(self, start: int, stop: int) -> bool:
        """Drops copies of a range, here and below."""
        self._tails.pop(self._shard_id, None)
        self._engine.discard(self._shard_id, start, stop)
        return self._file.discard(start, stop)


class FarFiles:
    """The shards' files as `FarFile`."""

    near = False

    def __init__(self, files: OpenFiles, engine: RangeEngine) -> None:
        self.engine = engine
        self._files = files
        self._tails: _Tails = {}

    def get(self, shard_id: int, entry: ShardEntry) -> StoredFile:
        """Returns a shard's file."""
        return FarFile(shard_id, self._files.get(shard_id, entry), self.engine, self._tails)

    def bring_tails(self, wanted: Sequence[tuple[int, ShardEntry, int]]) -> None:
        """Fetches ends of shards, all at once, which reads of them are then given until `let_go`.

        Args:
            wanted: number of a shard, what is known of it, and bytes.
        """
        rows = [(shard_id, entry.num_bytes - size, size) for shard_id, entry, size in wanted]
        data = self.engine.read_bytes(Ranges(*np.array(rows, dtype=np.int64).T))
        for (shard_id, start, _), tail in zip(rows, data, strict=True):
            self._tails[shard_id] = start, tail

    def let_go(self, shard_ids: Sequence[int]) -> None:
        """Drops such ends."""
        for shard_id in shard_ids:
            self._tails.pop(shard_id, None)


def _alone(shard_id: int, start: int, num_bytes: int) -> Ranges:
    return Ranges(*(np.array([number], dtype=np.int64) for number in (shard_id, start, num_bytes)))
