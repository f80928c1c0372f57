"""What a step of a run has, and at which step a position comes: over epochs, resumes and other numbers of ranks.

A step is one global batch. Steps are counted from 0 over what was delivered, so that a resume goes on with the count of the
place that it goes on from: what came after that place before is forgotten, as it is by the model, unless a later start goes on
from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shardload.order.cursor import Partition
from shardload.order.epoch import EpochOrders, Reseed

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchPlaces:
    """Where the samples of one global batch stand, rank by rank: int64 of shape (samples,) each, fillers left out."""

    epochs: Int64
    """The epoch whose order each is from."""
    positions: Int64
    """The position there."""
    ranks: Int64
    """The rank that gets it."""
    slots: Int64
    """Its place in the rank's batch."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a position comes."""

    step: int
    rank: int
    slot: int
    """Its place in the rank's batch."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where batches begin, and how the order is split from there on."""

    partition: Partition
    epoch: int
    position: int
    """In the epoch: where the first batch begins if one follows in it. Below 0 are the positions of the epoch before."""

    def batch(self, number: int) -> tuple[int, int]:
        """Returns the epoch and the cursor of a batch, counted from 0; as many epochs as needed follow each other."""
        partition = self.partition
        if partition.tail == "carry":
            first = self._line(self.epoch, self.position) + number * partition.global_batch
            # It belongs to the epoch of its last sample.
            epoch = (first + partition.global_batch - 1) // partition.num_samples
            return epoch, first - epoch * partition.num_samples
        here, each = partition.num_batches(self.position), partition.num_batches()
        if number < here:
            return self.epoch, self.position + number * partition.global_batch
        epochs, rest = divmod(number - here, each)
        return self.epoch + 1 + epochs, rest * partition.global_batch

    @property
    def num_in_epoch(self) -> int:
        """Batches in the epoch of the first one."""
        return self.partition.num_batches(self.batch(0)[1])

    def places(self, number: int) -> BatchPlaces:
        """Returns where the samples of a batch stand."""
        epoch, cursor = self.batch(number)
        parts = []
        for rank in range(self.partition.num_replicas):
            positions, num_valid = self.partition.positions(cursor, rank)
            slots = np.arange(num_valid, dtype=np.int64)
            parts.append((positions[:num_valid], np.full(num_valid, rank, dtype=np.int64), slots))
        positions, ranks, slots = (np.concatenate(column) for column in zip(*parts, strict=True))
        before = positions < 0
        return BatchPlaces(epoch - before, positions + before * self.partition.num_samples, ranks, slots)

    def number(self, epoch: int, position: int) -> int | None:
        """Returns how many batches come before a place; None if none of them ends there.

        The end of an epoch counts as the start of the next one, as in states.
        """
        partition, size = self.partition, self.partition.global_batch
        if partition.tail == "carry":
            number, rest = divmod(self._line(epoch, position) - self._line(self.epoch, self.position), size)
            return None if rest or number < 0 else number
        if epoch < self.epoch:
            return None
        origin, before = self._origin(epoch)
        here = partition.num_batches(origin)
        if position == partition.num_samples or position == origin + here * size:
            return before + here
        number, rest = divmod(position - origin, size)
        return None if rest or not 0 <= number <= here else before + number

    def seen(self, epoch: int, position: int) -> list[Seat]:
        """Returns where a position of an epoch comes: nowhere if it lies before the start, or in a tail that is left out.

        Several times where `pad` repeats it. What `mask` fills up with does not count.
        """
        partition, size, stride = self.partition, self.partition.global_batch, self.partition.num_replicas
        if partition.tail == "carry":
            ahead = self._line(epoch, position) - self._line(self.epoch, self.position)
            return [] if ahead < 0 else [Seat(ahead // size, ahead % size % stride, ahead % size // stride)]
        if epoch < self.epoch:
            return []
        origin, before = self._origin(epoch)
        here = partition.num_batches(origin)
        last = origin + (here - 1) * size
        found, stop = [], last + size
        if stop > partition.num_samples:
            padded = -(-(partition.num_samples - last) // stride) * stride
            stop = last + padded if partition.tail == "pad" else partition.num_samples
        for at in range(position, stop, partition.num_samples):
            if at >= origin and here:
                number, rest = divmod(at - origin, size)
                found.append(Seat(before + number, rest % stride, rest // stride))
        return found

    def _origin(self, epoch: int) -> tuple[int, int]:
        """Returns where the batches of an epoch begin, and how many come before."""
        if epoch == self.epoch:
            return self.position, 0
        later = epoch - self.epoch - 1
        return 0, self.partition.num_batches(self.position) + later * self.partition.num_batches()

    def _line(self, epoch: int, position: int) -> int:
        """Returns a place counted over all epochs, which `carry` runs through without a gap."""
        return epoch * self.partition.num_samples + position


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a run delivered from one start on."""

    orders: EpochOrders
    start: Start
    seed: int
    """The first seed of its order."""
    reseeds: tuple[Reseed, ...] = ()
    """The seeds that came later."""
    first_step: int = 0
    """Number of its first step in the run."""
    num_steps: int | None = None
    """Its steps until the run went on from another start; None while it has not."""

    def has(self, step: int) -> bool:
        """Tells whether a step of the run lies in it."""
        return self.first_step <= step and (self.num_steps is None or step < self.first_step + self.num_steps)

    def places(self, step: int) -> BatchPlaces:
        """Returns where the samples of a step of the run stand."""
        return self.start.places(step - self.first_step)

    def seen(self, epoch: int, position: int) -> list[Seat]:
        """Returns at which steps of the run a position of an epoch comes in it."""
        seats = [replace(seat, step=seat.step + self.first_step) for seat in self.start.seen(epoch, position)]
        return [seat for seat in seats if self.has(seat.step)]

    @property
    def epochs(self) -> range:
        """The epochs that it has samples of; of one that has not ended, those of its first batch."""
        first = self.start.batch(0)
        last = first[0] if not self.num_steps else self.start.batch(self.num_steps - 1)[0]
        return range(first[0] - (first[1] < 0), last + 1)


@dataclass(frozen=True, slots=True)
class Begun:
    """A start of a run as it was recorded."""

    orders: EpochOrders
    start: Start
    seed: int
    reseeds: tuple[Reseed, ...]
    after: tuple[int, int] | None
    """Epoch and position up to which samples had been delivered before, as that run counts them; None for a run's first start."""


class History:
    """The starts of a run as they came, each with the one that it went on from: a run may go back, and forward again."""

    def __init__(self) -> None:
        self._stretches: list[Stretch] = []
        self._parents: list[int | None] = []

    def add(self, begun: Begun) -> None:
        """Adds a start. One without `after` begins the run anew; without any before it, steps are counted from it on.

        Raises:
            ValueError: it goes on from a place that no step of the starts before it ended at.
        """
        parent = None if begun.after is None or not self._stretches else self._parent(begun, begun.after)
        first_step = 0 if parent is None else self._stretches[parent[0]].first_step + parent[1]
        self._stretches.append(Stretch(begun.orders, begun.start, begun.seed, begun.reseeds, first_step))
        self._parents.append(None if parent is None else parent[0])

    def stretches(self) -> list[Stretch]:
        """Returns the stretches of the run that the newest start is of, in the order of their steps."""
        found: list[Stretch] = []
        number = len(self._stretches) - 1 if self._stretches else None
        while number is not None:
            one = self._stretches[number]
            found.append(replace(one, num_steps=found[-1].first_step - one.first_step) if found else one)
            number = self._parents[number]
        return found[::-1]

    def _parent(self, begun: Begun, after: tuple[int, int]) -> tuple[int, int]:
        """Returns which start another one went on from, and after how many of its steps."""
        names, seeds = {form.name for form in begun.orders.forms()}, {begun.reseeds}
        if begun.reseeds and begun.reseeds[-1][:2] >= after:
            seeds.add(begun.reseeds[:-1])
        looser = None
        for i in reversed(range(len(self._stretches))):
            one = self._stretches[i]
            number = one.start.number(*after)
            # Each epoch has a start of its own, so that a place in a later one belongs to another start.
            if number is None or number > one.start.num_in_epoch:
                continue
            # Other orders may have a batch end there too, by chance.
            if one.reseeds in seeds and one.orders.name in names:
                return i, number
            looser = looser or (i, number)
        return looser or self._over_epochs(after)

    def _over_epochs(self, after: tuple[int, int]) -> tuple[int, int]:
        """Returns the same where the start of an epoch was lost: of the newest run, as if it had not stopped."""
        at: int | None = len(self._stretches) - 1
        most: int | None = None
        while at is not None:
            one, parent = self._stretches[at], self._parents[at]
            number = one.start.number(*after)
            if number is not None and (most is None or number <= most - one.first_step):
                return at, number
            at, most = parent, one.first_step
        raise ValueError(
            f"it goes on from position {after[1]} of epoch {after[0]}, where no step of the starts before it ended"
        )
