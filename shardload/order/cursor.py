"""Which positions of an epoch make a rank's batches. The only place where the order is split over ranks.

From cursor p a global batch is positions [p, p + G), G = batch_size x num_replicas; rank r of R takes p + r, p + r + R,
... A run may go on from any cursor with another batch size or number of replicas: the cursor is all there is to know.

Positions below 0 are those of the epoch before: -1 is its last one. With the tail `carry` an epoch begins there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from shardload.order.epoch import Order

Int64 = NDArray[np.int64]
Tail = Literal["drop", "short", "pad", "mask", "carry"]

WINDOW_POSITIONS = 1 << 15
"""Positions whose sample ids are computed at once: enough that the cost of a call is spread thin."""


@dataclass(frozen=True, slots=True)
class Partition:
    """How the positions of an epoch are cut into batches and split over ranks."""

    num_samples: int
    """Positions in the epoch."""
    batch_size: int
    """Samples a batch and rank."""
    num_replicas: int
    """Ranks that share the order."""
    tail: Tail
    """What becomes of the last positions that are no whole global batch: `drop` leaves them out, `short` makes smaller
    batches of them (on ranks without a position an empty one), `pad` fills them up to a multiple of the replicas with
    positions from the epoch's start, as torch's DistributedSampler does, `mask` fills every batch in the same way and tells
    which positions are such fillers, `carry` opens the next epoch with them."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_replicas"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer from 1, not {value!r}")
        if self.tail not in get_args(Tail):
            raise ValueError(f"tail must be one of {', '.join(get_args(Tail))}, not {self.tail!r}")

    @property
    def global_batch(self) -> int:
        """Samples of one batch over all ranks."""
        return self.batch_size * self.num_replicas

    @property
    def facts(self) -> dict[str, Any]:
        """What all ranks must agree on."""
        return asdict(self)

    def in_epoch(self, key: Hashable, order: Callable[[], Order]) -> Self:
        """Returns the partition of one epoch: this one, where all epochs are alike.

        Args:
            key: what the order of the epoch depends on.
            order: returns that order.
        """
        return self

    def num_batches(self, cursor: int = 0) -> int:
        """Returns how many batches every rank has from a cursor to the end of its epoch."""
        left = max(0, self.num_samples - cursor)
        return left // self.global_batch if self.tail in ("drop", "carry") else -(-left // self.global_batch)

    def has_batch(self, cursor: int, num_batches: int = 1) -> bool:
        """Returns whether so many batches follow a cursor in its epoch."""
        size = self.batch_size * self.num_replicas
        # Of a batch that need not be whole one position is enough.
        least = num_batches * size if self.tail in ("drop", "carry") else (num_batches - 1) * size + 1
        return max(0, self.num_samples - cursor) >= least

    def batches_before(self, cursor: int) -> int:
        """Returns how many batches of this size lie before a cursor."""
        return max(0, cursor // self.global_batch)

    def after(self, cursor: int, num_batches: int) -> int:
        """Returns the cursor after so many batches; at the end of the epoch the number of samples."""
        return min(cursor + num_batches * self.global_batch, self.num_samples)

    def batches(self, rank: int, cursor: int, order: Order) -> Iterator[RankBatch]:
        """Yields a rank's batches from a cursor to the end of the epoch; see `rank_batches`."""
        return rank_batches(self, rank, cursor, order)

    def check(self, cursor: int = 0) -> None:
        """Refuses settings that give no batch at all.

        Args:
            cursor: where the epoch is entered, for partitions that cannot tell without looking.

        Raises:
            ValueError: says what would be needed.
        """
        if self.num_samples == 0:
            raise ValueError("the dataset has no samples, so there are no batches to load")
        if self.num_batches() == 0:
            raise ValueError(
                f"{self.num_samples} samples do not fill one global batch of {self.global_batch} (batch_size "
                f"{self.batch_size} x {self.num_replicas} replicas), and tail={self.tail!r} gives only full ones: make the "
                "batch smaller or choose another tail"
            )

    def positions(self, cursor: int, rank: int) -> tuple[Int64, int]:
        """Returns a rank's positions of the global batch at a cursor.

        Returns:
            int64, usually of shape (batch_size,), and how many of them are no fillers: those come first. Only the tail `mask`
            has fillers; what `pad` repeats counts as any other.
        """
        stop = cursor + self.global_batch
        num_valid = self.batch_size
        if stop > self.num_samples:
            left = self.num_samples - cursor
            if self.tail == "mask":
                num_valid = len(range(rank, left, self.num_replicas))
            else:
                num_ranks = self.num_replicas if self.tail == "pad" else 1
                stop = cursor + -(-left // num_ranks) * num_ranks
        positions = np.arange(cursor + rank, stop, self.num_replicas, dtype=np.int64)
        positions = positions % self.num_samples if stop > self.num_samples else positions
        return positions, min(num_valid, len(positions))

    def advance(self, cursor: int) -> int:
        """Returns the cursor after the global batch at `cursor`; at the end of the epoch the number of samples.

        With `carry` it may be less there: what is left belongs to the next epoch.
        """
        after = cursor + self.global_batch
        return after if self.tail == "carry" or self.num_batches(after) else self.num_samples


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What the samples of a batch are put together to: sequences that they are packed in, or the batch itself."""

    positions: Int64
    """Where the units stand in the epoch: int64 of shape (units,)."""
    edges: Int64
    """Where each one's samples start in the batch, and the end of the last: int64 of shape (units + 1,)."""
    starts: Int64
    """First item of each sample that is used: int64 of shape (samples,)."""
    lengths: Int64
    """Items of each sample that are used: int64 of shape (samples,)."""
    num_valid: int
    """How many of the units are no fillers; those come first."""
    num_places: int
    """Items that those take, with what they are padded with."""

    @property
    def num_items(self) -> int:
        """Items in them."""
        return int(self.lengths[: self.edges[self.num_valid]].sum())


@dataclass(frozen=True, slots=True)
class RankBatch:
    """One rank's share of one global batch."""

    cursor: int
    """Cursor after this batch: what a state saved now holds."""
    positions: Int64
    """Positions in the epoch: int64 of shape (batch,). Below 0 are those of the epoch before; they come first."""
    sample_ids: Int64
    """The samples at those positions: int64 of shape (batch,)."""
    num_valid: int
    """How many of them are no fillers; those come first."""
    units: Units | None = None
    """What they are put together to; None for a batch of samples as they come."""

    @property
    def num_before(self) -> int:
        """How many positions belong to the epoch before; those come first."""
        return int(np.searchsorted(self.positions, 0)) if len(self.positions) and self.positions[0] < 0 else 0

    def part(self, which: NDArray[np.bool_]) -> RankBatch:
        """Returns some samples of it, for who only announces them.

        Args:
            which: of shape (batch,).
        """
        num_valid = int(which[: self.num_valid].sum())
        return RankBatch(self.cursor, self.positions[which], self.sample_ids[which], num_valid)


def rank_batches(partition: Partition, rank: int, cursor: int, order: Order) -> Iterator[RankBatch]:
    """Yields a rank's batches from a cursor to the end of the epoch.

    Args:
        partition: how the epoch is split.
        rank: from 0 to num_replicas - 1.
        cursor: first position of the first batch.
        order: positions -> sample ids, both int64 of shape (positions,).
    """
    # The first windows are small so that the first batches do not wait for ids that they do not need.
    window, most = 1, max(1, WINDOW_POSITIONS // partition.batch_size)
    size, stride = partition.batch_size, partition.num_replicas
    while (left := partition.num_batches(cursor)) > 0:
        num_full = min(window, left, (partition.num_samples - cursor) // partition.global_batch)
        if num_full:
            # Full batches follow each other without a gap: one range holds the positions of all.
            positions = np.arange(num_full * size, dtype=np.int64) * stride + (cursor + rank)
            ids = order(positions).reshape(num_full, size)
            end = cursor + (num_full - 1) * size * stride
            for mine, sample_ids in zip(positions.reshape(num_full, size), ids, strict=True):
                # What comes after the last of them may be less than a batch.
                cursor = partition.advance(cursor) if cursor == end else cursor + size * stride
                yield RankBatch(cursor, mine, sample_ids, size)
        else:
            last, num_valid = partition.positions(cursor, rank)
            cursor = partition.advance(cursor)
            yield RankBatch(cursor, last, order(last), num_valid)
        window = min(8 * window, most)


@dataclass(frozen=True, slots=True)
class Window:
    """What a rank has in a window of an order, which is announced as a whole."""

    batches: list[RankBatch]
    """Those that begin in it."""
    parts: list[RankBatch]
    """What lies in it of these, and of those that begin before it: of whole windows there are only whole blocks to be read."""


def by_window(batches: Iterator[RankBatch], window_end: Callable[[int], int]) -> Iterator[Window]:
    """Yields batches by the window that they begin in.

    Args:
        batches: the batches of an epoch.
        window_end: position -> the end of the window that it lies in.
    """
    group, parts, later = list[RankBatch](), list[RankBatch](), list[RankBatch]()
    end = 0
    for batch in batches:
        if not group:
            end = window_end(max(0, int(batch.positions[0]) if len(batch.positions) else batch.cursor - 1))
            parts, later = _cut(later, end)
        group.append(batch)
        mine, after = _cut([batch], end)
        parts, later = parts + mine, later + after
        if batch.cursor >= end:
            yield Window(group, parts)
            group, parts = [], []
    if group or later:
        yield Window(group, parts + later)


def _cut(batches: list[RankBatch], end: int) -> tuple[list[RankBatch], list[RankBatch]]:
    """Returns what of batches lies before the end of a window, and the rest."""
    before, after = list[RankBatch](), list[RankBatch]()
    for batch in batches:
        inside = batch.positions < end
        if inside.any():
            before.append(batch if inside.all() else batch.part(inside))
        if not inside.all():
            after.append(batch.part(~inside))
    return before, after
