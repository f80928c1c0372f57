"""An order cut into blocks, and the samples of each block put together to units: sequences, or batches.

Block b of an epoch has the positions [b x lookahead, (b + 1) x lookahead); what its units are depends on the lengths of its
samples and on nothing else, so that each rank finds the same. A cursor is one integer: b x stride + the number of the unit in
its block. What lies between the last unit of a block and the next block is a hole. At the end it is the epoch's last position.
"""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardload.order.epoch import EpochOrders, Order, Reseed, WindowEnd
from shardload.order.grouping import Grouping, UnitBlock
from shardload.order.permutation import RECIPE

Int64 = NDArray[np.int64]
Lengths = Callable[[Int64], Int64]
"""Sample ids -> items of each, both int64 of shape (samples,)."""

_KEPT_BLOCKS, _KEPT_EPOCHS = 8, 3


class Placed(NamedTuple):
    """A block and where its samples stand."""

    units: UnitBlock
    positions: Int64
    """Positions of its samples in the epoch: int64 of shape (members,), unit after unit."""
    sample_ids: Int64
    """The samples: int64 of shape (members,)."""


class Segment(NamedTuple):
    """Units of one block that follow each other."""

    block: int
    start: int
    """The first, counted in its block."""
    stop: int
    """The one after the last."""


class UnitOrders(EpochOrders):
    """Orders whose states tell how the samples are grouped."""

    def __init__(self, orders: EpochOrders, grouping: Grouping) -> None:
        self._orders = orders
        self._grouping = grouping
        # Where a cursor ends: more than samples where a block can have more units than samples.
        self.num_positions = end_of(orders.num_positions, grouping)

    @property
    def name(self) -> str:
        """The grouping, and what it groups."""
        return f"{self._grouping.name} of {self._orders.full_name}"

    def window_end(self, epoch: int, seed: int) -> WindowEnd | None:
        """Returns where windows end, if cursors go up to the same positions as samples."""
        return self._orders.window_end(epoch, seed) if self._grouping.stride == self._grouping.lookahead else None

    def reseed_position(self, position: int) -> int:
        """Returns the start of the next block: the samples of one that was begun are not where their positions are."""
        stride = self._grouping.stride
        return min(-(-position // stride) * stride, self.num_positions)

    def order(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Order:
        """Returns which sample stands at each position of the samples; seeds change at cursors."""
        per_block = self._grouping.lookahead, self._grouping.stride
        moved = tuple(one._replace(position=one.position // per_block[1] * per_block[0]) for one in reseeds)
        return self._orders.order(epoch, seed, moved, recipe)


def end_of(num_samples: int, grouping: Grouping) -> int:
    """Returns the cursor at the end of an epoch of so many samples."""
    if grouping.stride == grouping.lookahead:
        return num_samples
    return -(-num_samples // grouping.lookahead) * grouping.stride


class EpochUnits:
    """The units of one epoch, found block by block as they are asked for. Safe for several threads."""

    def __init__(self, num_samples: int, grouping: Grouping, order: Order, lengths: Lengths) -> None:
        """Describes them.

        Args:
            num_samples: positions of the epoch.
            grouping: what makes units of a block's samples.
            order: positions -> sample ids.
            lengths: sample ids -> their lengths.
        """
        self.num_blocks = -(-num_samples // grouping.lookahead)
        self.end = end_of(num_samples, grouping)
        """The cursor at the end."""
        self._num_samples = num_samples
        self._grouping = grouping
        self._order = order
        self._lengths = lengths
        self._lock = threading.Lock()
        self._counts = np.full(self.num_blocks, -1, dtype=np.int32)
        self._blocks: collections.OrderedDict[int, Placed] = collections.OrderedDict()
        self._num_kept = _KEPT_BLOCKS

    def block(self, number: int) -> Placed:
        """Returns a block."""
        with self._lock:
            placed = self._blocks.get(number)
            if placed is None:
                placed = self._blocks[number] = self._placed(number)
                self._counts[number] = placed.units.num_units
                if len(self._blocks) > self._num_kept:
                    self._blocks.popitem(last=False)
            else:
                self._blocks.move_to_end(number)
        return placed

    def keep(self, num_blocks: int) -> None:
        """Keeps so many blocks from now on, if that is more than before: those that are used at a time."""
        self._num_kept = max(self._num_kept, num_blocks)

    def count(self, number: int) -> int:
        """Returns how many units a block has."""
        known = int(self._counts[number])
        return self.block(number).units.num_units if known < 0 else known

    def segments(self, start: int) -> Iterator[Segment]:
        """Yields the units from a cursor to the end of the epoch, block by block."""
        number, first = divmod(start, self._grouping.stride)
        while start < self.end and number < self.num_blocks:
            count = self.count(number)
            if first < count:
                yield Segment(number, first, count)
            number, first = number + 1, 0

    def some(self, start: int, num_units: int) -> Iterator[Segment]:
        """Yields so many units from a cursor on, fewer at the end of the epoch."""
        for segment in self.segments(start):
            if num_units <= 0:
                return
            yield segment._replace(stop=min(segment.stop, segment.start + num_units))
            num_units -= segment.stop - segment.start

    def num_units(self, start: int, stop: int | None = None) -> int:
        """Returns how many units there are between two cursors: takes the lengths of all samples there, once."""
        stride = self._grouping.stride
        first, head = divmod(start, stride)
        last, rest = (self.num_blocks, 0) if stop is None or stop >= self.end else divmod(stop, stride)
        for number in np.flatnonzero(self._counts[first:last] < 0).tolist():
            self.count(first + number)
        whole = int(self._counts[first:last].sum(dtype=np.int64))
        before = min(head, self.count(first)) if head and first < self.num_blocks else 0
        return whole + (min(rest, self.count(last)) if rest else 0) - before

    def forward(self, start: int, num_units: int) -> int | None:
        """Returns the cursor after so many units; None where there are not as many."""
        cursor = start
        for number, first, stop in self.some(start, num_units):
            num_units -= stop - first
            cursor = self._cursor(number, stop)
        return cursor if num_units <= 0 else None

    def past(self, start: int, num_samples: int) -> tuple[int, int]:
        """Returns the cursor after as many units as have so many samples or more, and how many the epoch lacks for that."""
        for number, first, stop in self.segments(start):
            if num_samples <= 0:
                return start, 0
            edges = self.block(number).units.edges
            passed = edges[first + 1 : stop + 1] - edges[first]
            if passed[-1] >= num_samples:
                return self._cursor(number, first + 1 + int(np.searchsorted(passed, num_samples))), 0
            num_samples -= int(passed[-1])
        return (self.end, num_samples) if num_samples > 0 else (start, 0)

    def _cursor(self, number: int, unit: int) -> int:
        """Returns the cursor at a unit; that after the last one of a block is at the first of the next."""
        stride = self._grouping.stride
        return min((number + 1) * stride, self.end) if unit == self.count(number) else number * stride + unit

    def _placed(self, number: int) -> Placed:
        first = number * self._grouping.lookahead
        positions = np.arange(first, min(first + self._grouping.lookahead, self._num_samples), dtype=np.int64)
        sample_ids = self._order(positions)
        units = self._grouping.arrange(self._lengths(sample_ids), sample_ids)
        return Placed(units, positions[units.slots], sample_ids[units.slots])


@dataclass(eq=False)
class UnitPlan:
    """How the samples of all epochs are grouped, and what is known of some of them. Shared by all who count or read."""

    num_samples: int
    """Positions of an epoch."""
    grouping: Grouping
    """What makes units of a block's samples."""
    lengths: Lengths
    """Sample ids -> their lengths."""

    def __post_init__(self) -> None:
        self._process_id = os.getpid()
        self._lock = threading.Lock()
        self._epochs: collections.OrderedDict[Hashable, EpochUnits] = collections.OrderedDict()

    def epoch(self, key: Hashable, order: Callable[[], Order]) -> EpochUnits:
        """Returns the units of an epoch.

        Args:
            key: what its order depends on.
            order: returns its order.
        """
        if self._process_id != os.getpid():
            # Whoever held locks when this process was forked is not here to give them back.
            self.__post_init__()
        with self._lock:
            blocks = self._epochs.pop(key, None)
            if blocks is None:
                blocks = EpochUnits(self.num_samples, self.grouping, order(), self.lengths)
            self._epochs[key] = blocks
            if len(self._epochs) > _KEPT_EPOCHS:
                self._epochs.popitem(last=False)
        return blocks

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("num_samples", "grouping", "lengths")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()
