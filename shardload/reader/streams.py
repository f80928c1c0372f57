"""Items of stream fields, of many samples at once: ranges of bytes, checked block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ChecksumError, FormatError
from shardload.format import layout
from shardload.format.checksum import block_sum, data_sums, rows_match, with_local_ids
from shardload.format.ragged import Ragged
from shardload.format.rows import stream_spans
from shardload.format.schema import Field
from shardload.planner import ItemRanges, counted
from shardload.reader.checks import CheckedBlocks, Verify
from shardload.reader.engines import NO_RANGES, Engine, Ranges
from shardload.reader.facts import ShardFacts
from shardload.reader.located import Located, damaged
from shardload.reader.pieces import pieces_of, runs_within

_T = TypeVar("_T", bound=np.generic)

Int64 = NDArray[np.int64]

PIECE_BYTES = 16 << 20
"""So many bytes of blocks are checked at a time, those of a larger sample at once: what is held beside the items."""
_GROUP_BLOCKS = 1024
"""Blocks compared with their checksums at once."""


Owner = Callable[[int, int], tuple[Located, str]]
"""For messages: the number of a span, and an item in it -> the sample that has the item, alone, and what more there is to say."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Where items lie: arrays of shape (spans,)."""

    shard_ids: Int64
    low: Int64
    """First byte in the stream of the shard."""
    high: Int64
    """Byte after the last."""

    def __getitem__(self, slots: Int64 | slice | NDArray[np.bool_]) -> Spans:
        return Spans(self.shard_ids[slots], self.low[slots], self.high[slots])


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
        self,
        field: Field,
        number: int,
        facts: ShardFacts,
        engine: Engine,
        checked: CheckedBlocks,
        verify: Verify,
        sums_of: Callable[[int, int], NDArray[np.uint32]] | None = None,
    ) -> None:
        """Describes the field.

        Args:
            field: the field.
            number: its number in the schema.
            facts: where its streams lie.
            engine: what reads them.
            checked: which blocks have been checked in this process, by their numbers in the dataset.
            verify: whether checksums are compared; not `auto`.
            sums_of: shard and number of the field -> the checksums of all its blocks there; None to read those of single
                blocks, which lie a request apart where the shards are.
        """
        self._field = field
        self._number = number
        self._facts = facts
        self._engine = engine
        self._checked = checked
        self._verify = verify
        self._sums_of = sums_of

    def first_items(self, samples: Located) -> Int64:
        """Returns the first item in the stream of its shard of each sample. Their ids do not fall."""
        return self._spans(samples).low // self._field.num_bytes

    def ranges(self, samples: Located) -> Ranges:
        """Returns where the items of samples lie, in the order of their ids."""
        return self._ranges(self._spans(samples[np.argsort(samples.sample_ids, kind="stable")]))

    def hint(self, samples: Located) -> Ranges:
        """Returns what will be read of samples: their blocks, where nothing else brings what lies around the items."""
        return self._hinted(self._spans(samples[np.argsort(samples.sample_ids, kind="stable")]))

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
        some = np.flatnonzero(lengths)
        made, first = [], 0
        for size in sizes:
            offsets = np.zeros(size + 1, dtype=np.int64)
            np.cumsum(lengths[first : first + size] // item_bytes, out=offsets[1:])
            made.append(Ragged(np.empty((int(offsets[-1]), *self._field.shape), self._field.dtype), offsets))
            first += size
        if len(some):
            targets = [one.values.reshape(-1).view(np.uint8) for one in made]
            self._fill(spans[some], targets, lambda span, item: (samples[some[span : span + 1]], ""))
        return made

    def read_ranges(self, ranges: ItemRanges, target: NDArray[np.uint8], owner: Owner, due: bool = True) -> None:
        """Copies ranges of items, one after another, into an array.

        Args:
            ranges: of shards that are open, within their streams; at least one.
            target: uint8 of shape (bytes,), C-contiguous and as long as all ranges; belongs to the caller.
            owner: tells whose items are damaged.
            due: False where it is known that no block is to be checked.

        Raises:
            FormatError: a block is damaged; names shard and sample.
            StorageError: a file cannot be read.
        """
        spans = self._spans_of(ranges)
        if due:
            self._fill(spans, [target], owner)
        else:
            self._engine.read(self._ranges(spans), [target])

    def hints(self, ranges: ItemRanges, hinted: CheckedBlocks | None) -> Ranges | None:
        """Returns what is to be announced of ranges of items.

        Args:
            ranges: as for `read_ranges`.
            hinted: the blocks that were announced, which are left out and to which these are added; None to announce all.

        Returns:
            None if all blocks have been checked and stay in memory.
        """
        spans = self._spans_of(ranges)
        if hinted is not None:
            first, counts = self._block_ranges(spans)
            numbers = counted(first, counts)
            # What was checked has been read, whoever announced it.
            if self._verify == "once" and not self._checked.missing(numbers).any():
                return None
            missing = hinted.missing(numbers)
            if not missing.any():
                return NO_RANGES
            hinted.add(numbers[missing])
            spans = spans[np.logical_or.reduceat(missing, np.cumsum(counts) - counts)]
        return self._hinted(spans)

    def _spans_of(self, ranges: ItemRanges) -> Spans:
        size = self._field.num_bytes
        return Spans(ranges.shard_ids, ranges.low * size, ranges.high * size)

    def _spans(self, samples: Located) -> Spans:
        """Returns where samples' items lie, checked against the streams and each other. Their ids do not fall."""
        num_items = self._facts.streams(self._number).num_items[samples.shard_ids]
        try:
            starts, stops = stream_spans(samples.rows, self._field, num_items, samples.sample_ids, samples.shard_ids)
        except FormatError as error:
            raise damaged(FormatError, samples, error.sample_id or 0, error.message) from None
        return Spans(samples.shard_ids, starts * self._field.num_bytes, stops * self._field.num_bytes)

    def _ranges(self, spans: Spans) -> Ranges:
        some = spans.low < spans.high
        if not some.all():
            spans = spans[some]
        starts = self._facts.streams(self._number).starts[spans.shard_ids]
        return Ranges(spans.shard_ids, starts + spans.low, spans.high - spans.low)

    def _hinted(self, spans: Spans) -> Ranges:
        if self._sums_of is None or self._verify == "off":
            return self._ranges(spans)
        spans = spans[spans.low < spans.high]
        low = spans.low // layout.BLOCK_BYTES * layout.BLOCK_BYTES
        high = np.minimum(
            -(-spans.high // layout.BLOCK_BYTES) * layout.BLOCK_BYTES,
            self._facts.streams(self._number).num_bytes[spans.shard_ids],
        )
        return self._ranges(Spans(spans.shard_ids, low, high))

    def _block_ranges(self, spans: Spans) -> tuple[Int64, Int64]:
        """Returns the first block of each span, by its number in the dataset, and how many there are."""
        firsts = self._facts.first_blocks[spans.shard_ids]
        first, stop = firsts + spans.low // layout.BLOCK_BYTES, firsts - -spans.high // layout.BLOCK_BYTES
        return first, stop - first

    def _fill(self, spans: Spans, targets: Sequence[NDArray[np.uint8]], owner: Owner) -> None:
        """Copies spans that hold something, one after another, into arrays; none crosses from one into the next."""
        first, counts = self._block_ranges(spans)
        numbers = counted(first, counts)
        due = self._checked.due(numbers, self._verify)
        if not due.any():
            self._engine.read(self._ranges(spans), targets)
            return
        if self._engine.name == "map" and self._verify == "once" and self._right(numbers[due]):
            # Of blocks that are right and stay in memory no copy is needed with more than what is asked for.
            self._engine.read(self._ranges(spans), targets)
            return
        outs = pieces_of(spans.high - spans.low, targets)
        for part in runs_within(counts * layout.BLOCK_BYTES, PIECE_BYTES):
            mine = spans[part]
            blocks = self._blocks(np.unique(counted(first[part], counts[part])))
            data = self._read_blocks(blocks)
            self._check(blocks, data, mine, partial(_later, owner, part.start))
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
        self._engine.read(self._runs(blocks, starts, blocks.lengths), [*targets, flat[first:]])
        return data

    def _stored_sums(self, blocks: Blocks) -> NDArray[np.uint32]:
        """Returns the checksums of blocks as they are stored."""
        stored = np.empty(len(blocks.numbers), dtype="<u4")
        if self._sums_of is None:
            starts = self._facts.streams(self._number).sum_starts[blocks.shard_ids] + 4 * blocks.local_ids
            self._engine.read(self._runs(blocks, starts, np.full(len(stored), 4)), [stored.view(np.uint8)])
            return stored
        for shard_id in np.unique(blocks.shard_ids).tolist():
            mine = blocks.shard_ids == shard_id
            stored[mine] = self._sums_of(shard_id, self._number)[blocks.local_ids[mine]]
        return stored

    def _check(self, blocks: Blocks, data: NDArray[np.uint8], spans: Spans, owner: Owner) -> None:
        """Compares blocks with their checksums."""
        wrong = self._wrong(blocks, data)
        if wrong is not None:
            raise self._damaged(blocks, wrong, spans, owner)
        self._checked.add(blocks.numbers)

    def _right(self, numbers: Int64) -> bool:
        """Tells whether blocks have their checksums, and then notes them; which has not is not asked."""
        for some in _groups(np.unique(numbers), max(1, PIECE_BYTES // layout.BLOCK_BYTES)):
            blocks = self._blocks(some)
            if self._wrong(blocks, self._read_blocks(blocks)) is not None:
                return False
            self._checked.add(some)
        return True

    def _wrong(self, blocks: Blocks, data: NDArray[np.uint8]) -> int | None:
        """Returns the first of some blocks that has not its checksum; None where all have."""
        stored = self._stored_sums(blocks)
        bases = self._facts.identities(self._number)[blocks.shard_ids]
        sums = data_sums(stored, bases, blocks.local_ids, layout.BLOCK_BYTES)
        good = True

        def right(i: int) -> bool:
            identity = with_local_ids(bases[i : i + 1], blocks.local_ids[i : i + 1])
            return block_sum(data[i, : blocks.lengths[i]], int(identity[0])) == int(stored[i])

        for short in np.flatnonzero(blocks.lengths < layout.BLOCK_BYTES).tolist():
            good &= right(short)
            # Now that of the whole row, so that all rows are alike.
            sums[short] = block_sum(data[short], 0)
        if good and all(map(rows_match, _groups(data, _GROUP_BLOCKS), _groups(sums, _GROUP_BLOCKS))):
            return None
        return next((i for i in range(len(data)) if not right(i)), None)

    def _runs(self, blocks: Blocks, starts: Int64, lengths: Int64) -> Ranges:
        """Returns the ranges of what belongs to blocks.

        They are joined where blocks follow each other in a shard, unless mapped ones are all of one size, which are gathered.
        """
        if self._engine.name == "map" and (lengths == lengths[0]).all():
            return Ranges(blocks.shard_ids, starts, lengths)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(blocks.numbers) != 1) + 1])
        return Ranges(blocks.shard_ids[edges], starts[edges], np.add.reduceat(lengths, edges))

    def _damaged(self, blocks: Blocks, i: int, spans: Spans, owner: Owner) -> ChecksumError:
        """Returns the error for a block; it names the owner of the first of the spans that have part of it."""
        shard_id, low = int(blocks.shard_ids[i]), int(blocks.local_ids[i]) * layout.BLOCK_BYTES
        high = low + int(blocks.lengths[i])
        spanning = np.flatnonzero((spans.shard_ids == shard_id) & (spans.low < high) & (spans.high > low))
        span = int(spanning[np.argmin(spans.low[spanning])])
        sample, more = owner(span, max(low, int(spans.low[span])) // self._field.num_bytes)
        start = int(self._facts.streams(self._number).starts[shard_id])
        detail = f"the items of field {self._field.name!r}{more} do not have their checksum"
        return damaged(ChecksumError, sample, 0, detail, start + low, start + high)


def _later(owner: Owner, skipped: int, span: int, item: int) -> tuple[Located, str]:
    """Asks the owner of spans about those that follow some."""
    return owner(skipped + span, item)


def _groups(values: NDArray[_T], size: int) -> list[NDArray[_T]]:
    """Returns an array in pieces of at most so many of its first dimension."""
    return [values[first : first + size] for first in range(0, len(values), size)]
