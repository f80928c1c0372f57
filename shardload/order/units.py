"""Batches of units: the sequences or token-budget batches of an epoch's blocks, split over ranks as samples are.

From a cursor a global batch is the next batch_size x num_replicas units, across blocks; rank r of R takes the r-th of them,
the one R further, ... What the units are does not depend on ranks, so that a run may go on from any cursor on other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shardload.order.cursor import Partition, RankBatch, Units
from shardload.order.epoch import Order
from shardload.order.unit_blocks import EpochUnits, Segment, UnitPlan

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class UnitPartition(Partition):
    """A partition whose positions are units, with holes between those of two blocks.

    `num_samples` is the cursor at the end of an epoch, and `batch_size` counts units. What depends on how many units there
    are is known of one epoch only, after `in_epoch`. All of them are counted, which takes the lengths of all samples, by
    `num_batches` and `batches_before` alone; what else is asked looks a global batch ahead.
    """

    plan: UnitPlan = field(kw_only=True)
    blocks: EpochUnits | None = field(kw_only=True, default=None)

    def __post_init__(self) -> None:
        # Not super(): the class that slots make is another one than that which it would name.
        Partition.__post_init__(self)
        if self.tail == "carry":
            raise ValueError(
                "tail='carry' does not go with packed sequences or batch_tokens=: choose 'drop', 'short', 'pad' or 'mask'"
            )

    @property
    def facts(self) -> dict[str, Any]:
        """What all ranks must agree on; the grouping is part of the order's name."""
        return {name: getattr(self, name) for name in ("num_samples", "batch_size", "num_replicas", "tail")}

    def in_epoch(self, key: Hashable, order: Callable[[], Order]) -> Self:
        """Returns the partition of one epoch."""
        return replace(self, blocks=self.plan.epoch(key, order))

    def check(self, cursor: int = 0) -> None:
        """Refuses a dataset without samples, and once the epoch is known, one in which no batch follows a cursor."""
        if self.num_samples == 0:
            raise ValueError("the dataset has no samples, so there are no batches to load")
        if self.blocks is not None and not self.has_batch(cursor):
            raise ValueError(
                f"the {self.num_samples} samples make {self.blocks.num_units(0)} units (sequences, or batches of batch_tokens=), "
                f"and a global batch takes {self.global_batch}: use fewer replicas, a smaller batch or another tail"
            )

    def num_batches(self, cursor: int = 0) -> int:
        """Returns how many batches every rank has from a cursor to the end of its epoch; counts all units there."""
        left = self._known.num_units(cursor)
        return left // self.global_batch if self.tail == "drop" else -(-left // self.global_batch)

    def has_batch(self, cursor: int, num_batches: int = 1) -> bool:
        """Returns whether so many batches follow a cursor in its epoch."""
        rest = self.global_batch if self.tail == "drop" else 1
        return self._known.forward(cursor, (num_batches - 1) * self.global_batch + rest) is not None

    def batches_before(self, cursor: int) -> int:
        """Returns how many batches of this size lie before a cursor; counts all units there."""
        return self._known.num_units(0, cursor) // self.global_batch

    def after(self, cursor: int, num_batches: int) -> int:
        """Returns the cursor after so many batches; at the end of the epoch, the end."""
        later = self._known.forward(cursor, num_batches * self.global_batch)
        return self.num_samples if later is None or not self.has_batch(later) else later

    def advance(self, cursor: int) -> int:
        """Returns the cursor after the global batch at `cursor`; at the end of the epoch, the end."""
        return self.after(cursor, 1)

    def batches(self, rank: int, cursor: int, order: Order) -> Iterator[RankBatch]:
        """Yields a rank's batches from a cursor to the end of the epoch."""
        while self.has_batch(cursor):
            after = self.advance(cursor)
            yield self._batch(rank, cursor, after)
            cursor = after

    def delivered(self, start: int, stop: int) -> Iterator[Int64]:
        """Yields the samples, each int64 of shape (members,), of all ranks' batches between two places of the epoch.

        Args:
            start: where the epoch was entered.
            stop: where it stands, a cursor that `advance` returned, or `start`.
        """
        blocks = self._known
        num_units = blocks.num_units(start, stop)
        if stop >= self.num_samples:
            if self.tail == "drop":
                num_units -= num_units % self.global_batch
            if self.tail == "pad":
                yield from map(self._samples, self._from_start(-num_units % self.num_replicas))
        yield from map(self._samples, blocks.some(start, num_units))

    @property
    def _known(self) -> EpochUnits:
        assert self.blocks is not None, "counted without an epoch"
        return self.blocks

    def _samples(self, segment: Segment) -> Int64:
        placed = self._known.block(segment.block)
        edges = placed.units.edges
        return placed.sample_ids[edges[segment.start] : edges[segment.stop]]

    def _from_start(self, num_units: int) -> Iterator[Segment]:
        """Yields so many units from the start of the epoch on, over and over if it has fewer."""
        while num_units > 0:
            for segment in self._known.some(0, num_units):
                yield segment
                num_units -= segment.stop - segment.start

    def _batch(self, rank: int, cursor: int, after: int) -> RankBatch:
        segments = list(self._known.some(cursor, self.global_batch))
        # Those of this global batch, and of the next one, which `advance` has looked for.
        self._known.keep(2 * len(segments) + 2)
        left = sum(segment.stop - segment.start for segment in segments)
        num_valid = len(range(rank, left, self.num_replicas))
        if self.tail == "pad":
            segments += self._from_start(-left % self.num_replicas)
            num_valid = -(-left // self.num_replicas)
        elif self.tail == "mask":
            segments += self._from_start(self.global_batch - left)
        parts, passed = [_Part.empty()], 0
        for segment in segments:
            first = segment.start + (rank - passed) % self.num_replicas
            passed += segment.stop - segment.start
            if first < segment.stop:
                parts.append(self._part(segment.block, np.arange(first, segment.stop, self.num_replicas)))
        return _joined(parts, num_valid, after)

    def _part(self, number: int, mine: Int64) -> _Part:
        placed = self._known.block(number)
        units = placed.units
        sizes = units.edges[mine + 1] - units.edges[mine]
        members = np.repeat(units.edges[mine] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        found = placed.positions, placed.sample_ids, units.starts, units.lengths
        return _Part(
            mine + number * self.plan.grouping.stride, sizes, units.places[mine], *(of[members] for of in found)
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What a batch has of one block: by unit, then by member."""

    units: Int64
    sizes: Int64
    places: Int64
    positions: Int64
    sample_ids: Int64
    starts: Int64
    lengths: Int64

    @classmethod
    def empty(cls) -> _Part:
        return cls(*(np.empty(0, dtype=np.int64) for _ in cls.__slots__))


def _joined(parts: list[_Part], num_valid: int, cursor: int) -> RankBatch:
    whole = _Part(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Part.__slots__))
    edges = np.zeros(len(whole.units) + 1, dtype=np.int64)
    np.cumsum(whole.sizes, out=edges[1:])
    num_places = int(whole.places[:num_valid].sum())
    units = Units(whole.units, edges, whole.starts, whole.lengths, num_valid, num_places)
    return RankBatch(cursor, whole.positions, whole.sample_ids, int(edges[num_valid]), units)
