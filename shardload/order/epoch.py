"""The order of an epoch, also where it was given another seed in its midst."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardload.order.permutation import RECIPE, Permutation

Int64 = NDArray[np.int64]
Order = Callable[[Int64], Int64]
"""Positions -> sample ids, both int64 of shape (positions,)."""
Inverse = Callable[[Int64], Int64]
"""Sample ids -> the positions at which they stand, both int64 of shape (samples,)."""
WindowEnd = Callable[[int], int]
"""Position -> the end of the window that it lies in."""


class Reseed(NamedTuple):
    """From this place on, the order has another seed."""

    epoch: int
    """Its epoch."""
    position: int
    """Its position in that epoch."""
    seed: int
    """The seed from there on."""


class Segment(NamedTuple):
    """Since when sources have had the shares that they have, and what was drawn from each before."""

    parts: tuple[int, ...]
    """The shares, as of `Blend`."""
    num_positions: int
    """Positions of an epoch."""
    epoch: int
    """Epoch in which they begin."""
    position: int
    """Position at which they begin there: counted so that the epoch ends where it is to."""
    drawn: tuple[int, ...]
    """Draws from each source before, in all epochs."""
    used: tuple[int, ...]
    """Draws from each source before, in that epoch."""


def seed_at(seed: int, reseeds: Sequence[Reseed], epoch: int, position: int) -> int:
    """Returns the seed in force at a place.

    Args:
        seed: the first one.
        reseeds: those that came later, in their order.
        epoch: the epoch of the place.
        position: its position there.
    """
    for reseed in reseeds:
        if (reseed.epoch, reseed.position) <= (epoch, position):
            seed = reseed.seed
    return seed


def epoch_order(num_samples: int, seed: int, epoch: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Order:
    """Returns the permutation of an epoch.

    A seed that comes at position p leaves what was delivered before as it is, and permutes the rest anew: position
    p + i becomes position p + Permutation(n - p, new seed)(i) of the order before. So the epoch still has each sample once.

    Args:
        num_samples: n, the samples in the epoch.
        seed: the first seed.
        epoch: the epoch.
        reseeds: the seeds that came later, in their order; those of other epochs as well.
        recipe: version of the permutation.
    """

    def part(num_positions: int, seed: int) -> Order:
        return Permutation(num_positions, seed=seed, epoch=epoch, recipe=recipe).sample_ids

    return reseeded(part, num_samples, seed_at(seed, reseeds, epoch, 0), epoch, reseeds)


def reseeded(
    part: Callable[[int, int], Order], num_positions: int, seed: int, epoch: int, reseeds: Sequence[Reseed]
) -> Order:
    """Returns the order of an epoch with the seeds that came in its midst; see `epoch_order`.

    Args:
        part: number of positions, seed -> the order of so many.
        num_positions: positions of the epoch.
        seed: the seed at its start.
        epoch: the epoch.
        reseeds: the seeds that came later, in their order; those of other epochs as well.
    """
    whole = part(num_positions, seed)
    # The last one comes first: what it gives are positions of the order that it took the place of.
    rests = _rests(part, num_positions, epoch, reseeds)[::-1]
    return (lambda positions: whole(_moved(positions, rests))) if rests else whole


def reseeded_inverse(
    part: Callable[[int, int], Inverse], num_positions: int, seed: int, epoch: int, reseeds: Sequence[Reseed]
) -> Inverse:
    """Returns the inverse of what `reseeded` returns; `part` gives the inverse of its parts."""
    whole, rests = part(num_positions, seed), _rests(part, num_positions, epoch, reseeds)
    return (lambda sample_ids: _moved(whole(sample_ids), rests)) if rests else whole


def _rests(
    part: Callable[[int, int], Order], num_positions: int, epoch: int, reseeds: Sequence[Reseed]
) -> list[tuple[int, Order]]:
    """Returns where in an epoch other seeds come, and what each makes of the positions from there on, counted from there."""
    later = [reseed for reseed in reseeds if reseed.epoch == epoch and 0 < reseed.position < num_positions]
    return [(one.position, part(num_positions - one.position, one.seed)) for one in later]


def _moved(positions: Int64, rests: Sequence[tuple[int, Order]]) -> Int64:
    positions = positions.copy()
    for start, rest in rests:
        moved = positions >= start
        positions[moved] = start + rest(positions[moved] - start)
    return positions


class EpochOrders(ABC):
    """Which sample stands at each position of each epoch. A value: equal on all ranks, and it opens nothing."""

    num_positions: int
    """Positions of an epoch."""

    @property
    @abstractmethod
    def name(self) -> bool | str:
        """How states name it, with all that it depends on beside seed and samples; states of another one are refused."""

    def window_end(self, epoch: int, seed: int) -> WindowEnd | None:
        """Returns where windows end, stretches of positions whose samples lie in a few large pieces; None where there are none.

        Args:
            epoch: the epoch.
            seed: the seed at its start.
        """
        return None

    def reseed_position(self, position: int) -> int:
        """Returns the first position, not before a cursor, from which on an epoch can have another seed."""
        return position

    @abstractmethod
    def order(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Order:
        """Returns what stands at the positions of an epoch, from 0 to `num_positions`.

        Args:
            epoch: the epoch.
            seed: the first seed.
            reseeds: the seeds that came later, in their order; those of other epochs as well.
            recipe: version of the permutation.
        """

    @property
    def invertible(self) -> bool:
        """Whether `inverse` tells where a sample stands."""
        return type(self).inverse is not EpochOrders.inverse

    def inverse(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Inverse:
        """Returns at which position of an epoch each sample stands: the inverse of `order`, with the same arguments.

        Raises:
            ValueError: these orders have none.
        """
        raise ValueError(
            f"where a sample stands is not known of an order of the kind {self.name!r}, only what stands where"
        )

    @property
    def num_places(self) -> int:
        """Positions of an epoch as states count them."""
        return self.num_positions

    def stored(self, epoch: int, position: int, seed: int, reseeds: Sequence[Reseed], recipe: int) -> int:
        """Returns a position as states count it.

        Args:
            epoch: its epoch.
            position: the position, from 0 to `num_positions`.
            seed: the first seed.
            reseeds: the seeds that came later, in their order, at positions as states count them.
            recipe: version of the permutation.
        """
        return position

    def restored(self, epoch: int, position: int, seed: int, reseeds: Sequence[Reseed], recipe: int) -> int:
        """Returns the position of a state as one of these orders: the inverse of `stored`, with the same arguments."""
        return position

    def forms(self) -> tuple[EpochOrders, ...]:
        """Returns the orders whose states fit: these, then others that differ in what they pass over."""
        return (self,)

    @property
    def segment(self) -> Segment | None:
        """What states have to hold of shares that may be changed in mid-run; None where there are none."""
        return None

    @property
    def full_name(self) -> str:
        """The name with all shares: for orders made of these, whose states have no segment."""
        return str(self.name) if self.segment is None else f"{self.name} in {list(self.segment.parts)}"

    def going_on(self, segment: Segment, epoch: int, position: int) -> tuple[EpochOrders, int]:
        """Returns the orders of a run that goes on from a place, with the shares of these.

        Args:
            segment: that of the orders it had before.
            epoch: epoch of the place.
            position: its position, as of the orders before.

        Returns:
            The orders, and the position as of them.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class InOrder(EpochOrders):
    """All samples in their own order, in each epoch."""

    num_positions: int

    @property
    def name(self) -> bool:
        """False."""
        return False

    def order(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Order:
        """Returns the positions themselves."""
        return lambda positions: positions

    def inverse(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Inverse:
        """Returns the ids themselves."""
        return lambda sample_ids: sample_ids


@dataclass(frozen=True, slots=True)
class Permuted(EpochOrders):
    """A permutation of all samples for each epoch."""

    num_positions: int

    @property
    def name(self) -> bool:
        """True."""
        return True

    def order(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Order:
        """Returns the permutation of an epoch, as of `epoch_order`."""
        return epoch_order(self.num_positions, seed, epoch, reseeds, recipe)

    def inverse(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Inverse:
        """Returns the inverse of the permutation of an epoch."""

        def part(num_positions: int, seed: int) -> Inverse:
            return Permutation(num_positions, seed=seed, epoch=epoch, recipe=recipe).positions

        return reseeded_inverse(part, self.num_positions, seed_at(seed, reseeds, epoch, 0), epoch, reseeds)
