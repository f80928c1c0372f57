"""How bytes come from shards: what all ways of reading have in common, and one positioned read after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardload.format.external import ExternalFile
from shardload.format.table import ShardTable
from shardload.planner import merge_ranges
from shardload.reader.files import NumberedFiles, OpenFiles
from shardload.reader.in_memory import InMemory
from shardload.reader.pieces import pieces_of
from shardload.storage import StoredFile

Int64 = NDArray[np.int64]

MAX_GAP_BYTES = 4096
"""Ranges this near each other are read together: the copy is cheaper than another call."""
MAX_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of bytes of shards, or of files beside them: arrays of shape (ranges,)."""

    shard_ids: Int64
    """Numbers of the shards in the table, or of files that were added behind them."""
    starts: Int64
    """First byte in the file."""
    lengths: Int64
    """Bytes."""

    def __getitem__(self, part: slice | NDArray[np.bool_]) -> Ranges:
        return Ranges(self.shard_ids[part], self.starts[part], self.lengths[part])

    def __len__(self) -> int:
        return len(self.starts)


NO_RANGES = Ranges(*np.zeros((3, 0), dtype=np.int64))


def joined(ranges: Sequence[Ranges]) -> Ranges:
    """Returns ranges one after another."""
    columns = ([getattr(one, name) for one in ranges] for name in ("shard_ids", "starts", "lengths"))
    return Ranges(*(np.concatenate(column) for column in columns))


class Engine(Protocol):
    """Reads bytes of shards. Safe for several threads; belongs to one process."""

    name: str
    """`map`, `pread` or `ranges`."""

    def read(self, ranges: Ranges, targets: Sequence[NDArray[np.uint8]]) -> None:
        """Copies ranges, one after another, into arrays that together are as long.

        Args:
            ranges: what is read; no range crosses from one target into the next.
            targets: uint8 of shape (bytes,), C-contiguous and writable each; belong to the caller.

        Raises:
            StorageError: a file is missing, was cut, or cannot be read; names shard and bytes.
        """
        ...

    def read_bytes(self, ranges: Ranges) -> list[bytes]:
        """Returns the bytes of each range."""
        ...

    def read_joined(self, ranges: Ranges) -> bytes:
        """Returns the bytes of all ranges, one after another."""
        ...

    def in_memory(self, ranges: Ranges) -> InMemory | None:
        """Returns where ranges lie in memory; None where they do not, or others would wait for who reads them there."""
        ...

    def will_need(self, ranges: Ranges) -> None:
        """Tells the operating system that ranges will be read soon; it may start to fetch them."""
        ...

    def add(self, others: Sequence[ExternalFile]) -> list[int]:
        """Adds files beside the shards; returns their numbers, which are behind those of the shards.

        Called by one thread at a time. A file that is there keeps its number.
        """
        ...


class ReadEngine:
    """Positioned reads, one after the other."""

    name = "pread"

    def __init__(self, files: OpenFiles, table: ShardTable) -> None:
        self._files = files
        self._known = NumberedFiles(table)

    def read(self, ranges: Ranges, targets: Sequence[NDArray[np.uint8]]) -> None:
        """Copies ranges into targets; those near each other in rising order are read together."""
        stops = ranges.starts + ranges.lengths
        shard_ids, lengths = ranges.shard_ids, ranges.lengths
        pieces = pieces_of(lengths, targets)
        rises = (np.diff(shard_ids) == 0) & (ranges.starts[1:] >= stops[:-1])
        edges = [0, *(np.flatnonzero(~rises) + 1).tolist(), len(ranges)]
        for first, last in pairwise(edges):
            runs = merge_ranges(
                ranges.starts[first:last], stops[first:last], max_gap_bytes=MAX_GAP_BYTES, max_read_bytes=MAX_READ_BYTES
            )
            for low, high in runs:
                self._read_run(ranges[first + low : first + high], pieces[first + low : first + high])

    def read_bytes(self, ranges: Ranges) -> list[bytes]:
        """Returns the bytes of each range."""
        data = np.empty(int(ranges.lengths.sum()), dtype=np.uint8)
        self.read(ranges, [data])
        return [piece.tobytes() for piece in pieces_of(ranges.lengths, [data])]

    def read_joined(self, ranges: Ranges) -> bytes:
        """Returns the bytes of all ranges."""
        data = np.empty(int(ranges.lengths.sum()), dtype=np.uint8)
        self.read(ranges, [data])
        return data.tobytes()

    def in_memory(self, ranges: Ranges) -> None:
        """Nothing does, that is known of."""

    def will_need(self, ranges: Ranges) -> None:
        """Tells the operating system of each range."""
        for shard_id, start, length in zip(
            ranges.shard_ids.tolist(), ranges.starts.tolist(), ranges.lengths.tolist(), strict=True
        ):
            self.file(shard_id).will_need(start, length)

    def add(self, others: Sequence[ExternalFile]) -> list[int]:
        """Adds files beside the shards."""
        return self._known.add(others)

    def file(self, number: int) -> StoredFile:
        """Returns an open file, of a shard or one beside them."""
        return self._files.get(number, self._known[number])

    def _read_run(self, ranges: Ranges, pieces: Sequence[memoryview]) -> None:
        file, start = self.file(int(ranges.shard_ids[0])), int(ranges.starts[0])
        if len(ranges) == 1:
            file.read_into(pieces[0], start)
            return
        buffer = memoryview(bytearray(int(ranges.starts[-1] + ranges.lengths[-1]) - start))
        file.read_into(buffer, start)
        for piece, offset in zip(pieces, (ranges.starts - start).tolist(), strict=True):
            piece[:] = buffer[offset : offset + len(piece)]
