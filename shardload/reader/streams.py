"""Items of stream fields, of many samples at once: ranges of bytes, checked block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ChecksumError, FormatError
from shardload.format import layout
from shardload.format.checksum import block_sum, data_sums, rows_match, with_local_ids
from shardload.format.ragged import Ragged
from shardload.format.rows import stream_spans
from shardload.format.schema import Field
from shardload.reader.checks import CheckedBlocks, Verify
from shardload.reader.engines import Engine, Ranges
from shardload.reader.facts import ShardFacts
from shardload.reader.located import Located, damaged

Int64 = NDArray[np.int64]

PIECE_BYTES = 16 << 20
"""So many bytes of blocks are checked at a time, those of a larger sample at once: what is held beside the items."""
_GROUP_BLOCKS = 1024
"""Blocks compared with their checksums at once."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Where samples' items lie: arrays of shape (samples,)."""

    samples: Located
    low: Int64
    """First byte in the stream of the shard."""
    high: Int64
    """Byte after the last."""

    def __getitem__(self, slots: Int64 | slice | NDArray[np.bool_]) -> Spans:
        return Spans(self.samples[slots], self.low[slots], self.high[slots])


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of streams, each once, shard by shard: arrays of shape (blocks,)."""

    numbers: Int64
    """Their numbers in the dataset; they rise."""
    shard_ids: Int64
    local_ids: Int64
    """Their numbers in the stream of the shard."""
    lengths: Int64
    """Bytes: less than a whole block for the last one of a stream."""


class StreamReader:
    """Reads the items of one stream field. Safe for several threads."""

    def __init__(
        self, field: Field, number: int, facts: ShardFacts, engine: Engine, checked: CheckedBlocks, verify: Verify
    ) -> None:
        """Describes the field.

        Args:
            field: the field.
            number: its number in the schema.
            facts: where its streams lie.
            engine: what reads them.
            checked: which blocks have been checked in this process, by their numbers in the dataset.
            verify: whether checksums are compared; not `auto`.
        """
        self._field = field
        self._number = number
        self._facts = facts
        self._engine = engine
        self._checked = checked
        self._verify = verify

    def ranges(self, samples: Located) -> Ranges:
        """Returns where the items of samples lie, in the order of their ids."""
        return self._ranges(self._spans(samples[np.argsort(samples.sample_ids, kind="stable")]))

    def read(self, samples: Located, sizes: Sequence[int]) -> list[Ragged]:
        """Returns the items of several batches.

        Args:
            samples: the samples of all batches, one batch after another.
            sizes: the number of samples in each.

        Raises:
            FormatError: a block is damaged, or rows and stream do not agree; names shard and sample.
            StorageError: a file cannot be read.
        """
        order = np.argsort(samples.sample_ids, kind="stable")
        # The spans are checked before memory is taken for what they add up to.
        spans = self._spans(samples[order])[np.argsort(order)]
        lengths, item_bytes = spans.high - spans.low, self._field.num_bytes
        made, first = [], 0
        for size in sizes:
            offsets = np.zeros(size + 1, dtype=np.int64)
            np.cumsum(lengths[first : first + size] // item_bytes, out=offsets[1:])
            made.append(Ragged(np.empty((int(offsets[-1]), *self._field.shape), self._field.dtype), offsets))
            first += size
        some = spans[lengths > 0]
        if len(some.low):
            self._fill(some, made)
        return made

    def _spans(self, samples: Located) -> Spans:
        """Returns where samples' items lie, checked against the streams and each other. Their ids do not fall."""
        num_items = self._facts.streams(self._number).num_items[samples.shard_ids]
        try:
            starts, stops = stream_spans(samples.rows, self._field, num_items, samples.sample_ids, samples.shard_ids)
        except FormatError as error:
            raise damaged(FormatError, samples, error.sample_id or 0, error.message) from None
        return Spans(samples, starts * self._field.num_bytes, stops * self._field.num_bytes)

    def _ranges(self, spans: Spans) -> Ranges:
        spans = spans[spans.low < spans.high]
        shard_ids = spans.samples.shard_ids
        starts = self._facts.streams(self._number).starts[shard_ids]
        return Ranges(shard_ids, starts + spans.low, spans.high - spans.low)

    def _fill(self, spans: Spans, made: Sequence[Ragged]) -> None:
        """Copies spans that hold something into the arrays of batches, one after another."""
        flat = [one.values.reshape(-1).view(np.uint8) for one in made]
        firsts = self._facts.first_blocks[spans.samples.shard_ids]
        first, stop = firsts + spans.low // layout.BLOCK_BYTES, firsts - -spans.high // layout.BLOCK_BYTES
        numbers = _counted(first, stop - first)
        if not self._checked.due(numbers, self._verify).any():
            self._engine.read(self._ranges(spans), flat)
            return
        outs = [
            data.data[low:high]
            for data, one in zip(flat, made, strict=True)
            for low, high in pairwise((one.offsets * self._field.num_bytes).tolist())
            if low < high
        ]
        for part in _pieces((stop - first) * layout.BLOCK_BYTES):
            mine = spans[part]
            blocks = self._blocks(np.unique(_counted(first[part], (stop - first)[part])))
            data = self._read_blocks(blocks)
            self._check(blocks, data, mine)
            at = np.searchsorted(blocks.numbers, first[part]) * layout.BLOCK_BYTES + mine.low % layout.BLOCK_BYTES
            content, ends = data.reshape(-1).data, at + mine.high - mine.low
            for out, start, end in zip(outs[part], at.tolist(), ends.tolist(), strict=True):
                out[:] = content[start:end]

    def _blocks(self, numbers: Int64) -> Blocks:
        facts = self._facts.streams(self._number)
        shard_ids = np.searchsorted(self._facts.first_blocks, numbers, side="right") - 1
        local_ids = numbers - self._facts.first_blocks[shard_ids]
        lengths = np.minimum(facts.num_bytes[shard_ids] - local_ids * layout.BLOCK_BYTES, layout.BLOCK_BYTES)
        return Blocks(numbers, shard_ids, local_ids, lengths)

    def _read_blocks(self, blocks: Blocks) -> NDArray[np.uint8]:
        """Returns blocks, whatever past the end of short ones: uint8 of shape (blocks, BLOCK_BYTES)."""
        facts = self._facts.streams(self._number)
        data = np.empty((len(blocks.numbers), layout.BLOCK_BYTES), dtype=np.uint8)
        targets, flat, first = [], data.reshape(-1), 0
        for short in np.flatnonzero(blocks.lengths < layout.BLOCK_BYTES).tolist():
            stop = short * layout.BLOCK_BYTES + int(blocks.lengths[short])
            targets.append(flat[first:stop])
            first = (short + 1) * layout.BLOCK_BYTES
        starts = facts.starts[blocks.shard_ids] + blocks.local_ids * layout.BLOCK_BYTES
        self._engine.read(_runs(blocks, starts, blocks.lengths), [*targets, flat[first:]])
        return data

    def _check(self, blocks: Blocks, data: NDArray[np.uint8], spans: Spans) -> None:
        """Compares blocks with their checksums."""
        starts = self._facts.streams(self._number).sum_starts[blocks.shard_ids] + 4 * blocks.local_ids
        stored = np.empty(len(data), dtype="<u4")
        self._engine.read(_runs(blocks, starts, np.full(len(data), 4)), [stored.view(np.uint8)])
        identities = with_local_ids(self._facts.identities(self._number)[blocks.shard_ids], blocks.local_ids)
        sums = data_sums(stored, identities, layout.BLOCK_BYTES)
        good = True
        for short in np.flatnonzero(blocks.lengths < layout.BLOCK_BYTES).tolist():
            good &= block_sum(data[short, : blocks.lengths[short]], int(identities[short])) == stored[short]
            # Now that of the whole row, so that all rows are alike.
            sums[short] = block_sum(data[short], 0)
        groups = (slice(first, first + _GROUP_BLOCKS) for first in range(0, len(data), _GROUP_BLOCKS))
        if not good or not all(rows_match(data[group], sums[group]) for group in groups):
            for i in range(len(data)):
                if block_sum(data[i, : blocks.lengths[i]], int(identities[i])) != stored[i]:
                    raise self._damaged(blocks, i, spans)
        self._checked.add(blocks.numbers)

    def _damaged(self, blocks: Blocks, i: int, spans: Spans) -> ChecksumError:
        """Returns the error for a block; it names the first of the samples that have part of it."""
        shard_id, low = int(blocks.shard_ids[i]), int(blocks.local_ids[i]) * layout.BLOCK_BYTES
        high = low + int(blocks.lengths[i])
        inside = (spans.samples.shard_ids == shard_id) & (spans.low < high) & (spans.high > low)
        slots = np.flatnonzero(inside)
        slot = int(slots[np.argmin(spans.samples.sample_ids[slots])])
        start = int(self._facts.streams(self._number).starts[shard_id])
        detail = f"the items of field {self._field.name!r} do not have their checksum"
        return damaged(ChecksumError, spans.samples, slot, detail, start + low, start + high)


def _counted(firsts: Int64, counts: Int64) -> Int64:
    """Returns first, first + 1, ... for each count, one after another."""
    ends = np.cumsum(counts)
    return np.repeat(firsts - ends + counts, counts) + np.arange(ends[-1])


def _runs(blocks: Blocks, starts: Int64, lengths: Int64) -> Ranges:
    """Returns the ranges of what belongs to blocks, joined where blocks follow each other in a shard."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(blocks.numbers) != 1) + 1])
    return Ranges(blocks.shard_ids[edges], starts[edges], np.add.reduceat(lengths, edges))


def _pieces(sizes: Int64) -> list[slice]:
    """Returns runs of at most `PIECE_BYTES`, or of one larger."""
    if int(sizes.sum()) <= PIECE_BYTES:
        return [slice(0, len(sizes))]
    pieces, first, total = [], 0, 0
    for i, size in enumerate(sizes.tolist()):
        if i > first and total + size > PIECE_BYTES:
            pieces.append(slice(first, i))
            first, total = i, 0
        total += size
    return [*pieces, slice(first, len(sizes))]
