"""A stream of one shard: ranges of its items, checked block by block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ChecksumError
from shardload.format import layout
from shardload.format.checksum import block_sum, data_sums, identity_sums, rows_match
from shardload.format.schema import Field
from shardload.format.shard import Section
from shardload.planner import merge_ranges
from shardload.reader.checks import CheckedBlocks, Verify
from shardload.reader.rows import RowCache
from shardload.storage import FileReader

Int64 = NDArray[np.int64]

MAX_GAP_BYTES = 4096
MAX_READ_BYTES = 4 << 20
# Sums of so many blocks are read and kept together: a page of them for 4 MiB of the stream.
_SUMS_PIECE = 1024


class StreamReader:
    """Reads the items of one field in one shard. Safe for several threads."""

    def __init__(
        self, field: Field, data: Section, sums: Section, identity: tuple[int, int, int], shard_id: int, cache: RowCache
    ) -> None:
        """Describes the stream.

        Args:
            field: the field.
            data: where its items lie.
            sums: where the checksums of its blocks lie.
            identity: generation, unit and part of the shard.
            shard_id: number of the shard, for the cache.
            cache: where sums are kept.
        """
        self.num_items = data.num_bytes // data.item_bytes
        self._field = field
        self._data = data
        self._sums = sums
        self._identity = identity
        self._shard_id = shard_id
        self._cache = cache
        self._checked = CheckedBlocks()

    def read(
        self, file: FileReader, starts: Int64, stops: Int64, places: Int64, out: NDArray[np.uint8], verify: Verify
    ) -> None:
        """Copies ranges of items into their places.

        Args:
            file: the shard.
            starts: first item of each range; not falling.
            stops: item after each range; not falling, at most `num_items`.
            places: where in `out` the bytes of each range go.
            out: uint8 of shape (bytes,), C-contiguous; belongs to the caller.
            verify: whether checksums are compared; not `auto`.

        Raises:
            ChecksumError: a block is damaged; names the bytes.
        """
        size = self._field.num_bytes
        low, high = starts * size, stops * size
        blocks = low // layout.BLOCK_BYTES * layout.BLOCK_BYTES
        ends = np.minimum(-(-high // layout.BLOCK_BYTES) * layout.BLOCK_BYTES, self._data.num_bytes)
        # A range of no items has no blocks.
        some = np.flatnonzero(low < high)
        low, high, blocks, ends, places = low[some], high[some], blocks[some], ends[some], places[some]
        for first, last in merge_ranges(blocks, ends, max_gap_bytes=MAX_GAP_BYTES, max_read_bytes=MAX_READ_BYTES):
            start, stop = int(blocks[first]), int(ends[first:last].max())
            buffer = np.empty(stop - start, dtype=np.uint8)
            file.read_into(buffer.data, self._data.start + start)
            if verify != "off":
                self._check(file, buffer, start // layout.BLOCK_BYTES, verify)
            for i in range(first, last):
                part = buffer[int(low[i]) - start : int(high[i]) - start]
                out[int(places[i]) : int(places[i]) + len(part)] = part

    def will_need(self, file: FileReader, starts: Int64, stops: Int64) -> None:
        """Tells the operating system that ranges of items will be read soon."""
        size = self._field.num_bytes
        for start, stop in zip((starts * size).tolist(), (stops * size).tolist(), strict=True):
            if start < stop:
                file.will_need(self._data.start + start, stop - start)

    def _check(self, file: FileReader, data: NDArray[np.uint8], first: int, verify: Verify) -> None:
        """Checks whole blocks that lie one after the other, from number `first` on."""
        numbers = np.arange(first, first + layout.num_blocks(len(data)))
        if verify == "once" and not self._checked.missing(numbers).any():
            return
        stored = self._stored_sums(file, first, first + len(numbers))
        identities = identity_sums(*self._identity, self._sums.field, numbers)
        whole = len(data) // layout.BLOCK_BYTES
        rows = data[: whole * layout.BLOCK_BYTES].reshape(whole, layout.BLOCK_BYTES)
        if not rows_match(rows, data_sums(stored[:whole], identities[:whole], layout.BLOCK_BYTES)) or whole < len(
            numbers
        ):
            for i in range(len(numbers)):
                block = data[i * layout.BLOCK_BYTES : (i + 1) * layout.BLOCK_BYTES]
                if block_sum(block, int(identities[i])) != stored[i]:
                    raise self._damaged(file, int(numbers[i]), len(block))
        self._checked.add(numbers)

    def _stored_sums(self, file: FileReader, first: int, last: int) -> NDArray[np.uint32]:
        pieces = []
        for piece in range(first // _SUMS_PIECE, (last - 1) // _SUMS_PIECE + 1):
            key = (self._shard_id, -1 - self._sums.field, piece)
            sums = self._cache.get(key)
            if sums is None:
                start = self._sums.start + 4 * piece * _SUMS_PIECE
                stop = min(start + 4 * _SUMS_PIECE, self._sums.stop)
                sums = np.frombuffer(file.read(start, stop), dtype="<u4")
                self._cache.put(key, sums)
            pieces.append(sums)
        start = first // _SUMS_PIECE * _SUMS_PIECE
        joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return joined[first - start : last - start].astype(np.uint32, copy=False)

    def _damaged(self, file: FileReader, block: int, num_bytes: int) -> ChecksumError:
        start = self._data.start + block * layout.BLOCK_BYTES
        stop = start + num_bytes
        return ChecksumError(
            f"{file.dataset}: {file.name} is damaged at bytes {start} to {stop}: the items of field {self._field.name!r} "
            "do not have their checksum",
            dataset=file.dataset,
            shard=file.name,
            start=start,
            stop=stop,
        )
