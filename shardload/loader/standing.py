"""Where a run stands, and what becomes of a place when its seed or weights change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shardload.loader.state import MAX_RESEEDS, Place, Saved
from shardload.order.cursor import Partition
from shardload.order.epoch import EpochOrders, Reseed
from shardload.quantities import as_integer


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands. Replaced as a whole, so that who only asks, in whatever thread, changes nothing."""

    place: Place = field(default_factory=Place)
    """What is delivered."""
    entered: Place = field(default_factory=Place)
    """Where the current epoch was entered, or will be: `state_at` and `len` count from here."""
    next: Place = field(default_factory=Place)
    """Where the next iteration begins unless a place was loaded."""
    loaded: Place | None = None
    """A loaded place waits here for the next iteration, which runs its remainder."""
    begun: bool = False
    live: bool = False
    resumed: bool = False
    reached: Place | None = None
    """Up to where the training loop was given something, by this run or the one whose state was loaded."""


def without_rest(place: Place, num_samples: int) -> Place:
    """Returns a place with a position from 0 on: what is left of the epoch before is a place there."""
    return place if place.position >= 0 else Place(place.epoch - 1, place.position + num_samples)


def reseeded(reseeds: tuple[Reseed, ...], place: Place, seed: int) -> tuple[Reseed, ...]:
    """Returns the seeds with one that counts from a place on; what was to come later than it is forgotten."""
    seed = as_integer(seed, "reseed")
    if seed >= 1 << 64:
        raise ValueError(f"reseed must be a seed below 2^64, not {seed}")
    kept = tuple(one for one in reseeds if (one.epoch, one.position) < (place.epoch, place.position))
    if len(kept) >= MAX_RESEEDS:
        raise ValueError(f"the seed was changed {MAX_RESEEDS} times already, which is as many as a state can record")
    return (*kept, Reseed(place.epoch, place.position, seed))


def reweighed(orders: EpochOrders, saved: Saved, place: Place) -> tuple[EpochOrders, Place]:
    """Returns the orders of a mixture that goes on from a place of a state with its own weights, and the place as of them."""
    segment = saved.segment
    assert segment is not None
    orders, position = orders.going_on(segment, place.epoch, place.position)
    if orders.segment != segment and saved.reseeds:
        raise ValueError(
            "reweigh=True: the seed was changed in this run, and weights cannot be changed after that: keep the weights, or start "
            "a run with both"
        )
    return orders, replace(place, position=position)


def batches_done(place: Place, partition: Partition) -> int:
    """Returns the batches done before a place; a state of single samples does not know, so they are worked out."""
    return place.batches or partition.batches_before(place.position)
