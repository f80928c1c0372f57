"""When samples are needed again: what a cache keeps the nearest of. Pure, and O(1) in memory: orders can be inverted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardload.order.epoch import EpochOrders, Inverse, Reseed

Int64 = NDArray[np.int64]

_EPOCHS_AHEAD = 3
"""A sample that other nodes have in the coming epochs is looked for in so many of them."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is needed when, by the ranks of one node. Positions are counted over all epochs: epoch * num_positions + position."""

    orders: EpochOrders
    """Which can be inverted."""
    seed: int
    reseeds: tuple[Reseed, ...]
    recipe: int
    rank: int
    num_replicas: int
    num_near: int
    """Ranks that share a node, and so a cache: those of a node follow each other. As many as there are if that is not known."""
    fingerprint: str
    """Of what is read."""

    @property
    def job(self) -> int:
        """What tells this order from others, for all its ranks: above 0, below 2^63."""
        facts = f"{self.fingerprint} {self.orders.full_name} {self.seed}".encode()
        return int.from_bytes(hashlib.sha256(facts).digest()[:8], "little") >> 1 | 1

    @property
    def num_positions(self) -> int:
        """Positions of an epoch."""
        return self.orders.num_positions

    def following(self, sample_ids: Int64, epochs: Int64) -> Int64:
        """Returns where samples are needed next on this node after some epochs: int64 of shape (samples,).

        Args:
            sample_ids: int64 of shape (samples,).
            epochs: the epoch after which each of them is asked for: int64 of shape (samples,).
        """
        span = self.num_positions
        found = np.empty(len(sample_ids), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            mine = np.flatnonzero(epochs == epoch)
            found[mine] = (epoch + 1 + _EPOCHS_AHEAD) * span
            for later in range(epoch + 1, epoch + 1 + _EPOCHS_AHEAD):
                places = self._inverse(later)(sample_ids[mine])
                here = self._is_near(places)
                found[mine[here]] = later * span + places[here]
                mine = mine[~here]
                if not len(mine):
                    break
        return found

    def _inverse(self, epoch: int) -> Inverse:
        return self.orders.inverse(epoch, self.seed, self.reseeds, self.recipe)

    def _is_near(self, positions: Int64) -> NDArray[np.bool_]:
        """Tells which positions of an epoch ranks of this node have."""
        near: NDArray[np.bool_] = positions % self.num_replicas // self.num_near == self.rank // self.num_near
        return near


@dataclass(frozen=True, slots=True)
class Uses:
    """Samples that will be read, and where in the order that is."""

    forecast: Forecast
    cursor: int
    """Position up to which all is read."""
    sample_ids: Int64
    """As the forecast numbers them: int64 of shape (samples,)."""
    positions: Int64
    """Where each is read, counted over all epochs: int64 of shape (samples,)."""

    def __getitem__(self, part: slice | Int64 | NDArray[np.bool_]) -> Uses:
        return Uses(self.forecast, self.cursor, self.sample_ids[part], self.positions[part])

    def following(self) -> Int64:
        """Returns where each is needed next after that: int64 of shape (samples,)."""
        return self.forecast.following(self.sample_ids, self.positions // self.forecast.num_positions)


def join_uses(parts: Sequence[Uses]) -> Uses:
    """Returns the uses of several batches of one order as one; the cursor is that of the first."""
    ids, positions = ([getattr(part, name) for part in parts] for name in ("sample_ids", "positions"))
    return Uses(parts[0].forecast, parts[0].cursor, np.concatenate(ids), np.concatenate(positions))


def ranks_near(num_replicas: int) -> int:
    """Returns how many of the ranks share a node, from what launchers such as torchrun tell; all of them if that says nothing."""
    return _told_near(num_replicas) or num_replicas


def all_near(num_replicas: int) -> bool:
    """Tells whether all ranks are known to share a node."""
    return num_replicas == 1 or _told_near(num_replicas) == num_replicas


def _told_near(num_replicas: int) -> int:
    """Returns how many of the ranks share a node as the launcher tells; 0 if it does not, or they do not follow each other."""
    world, local = (os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if not local.isdecimal() or world != str(num_replicas) or not 0 < int(local) <= num_replicas:
        return 0
    return int(local) if num_replicas % int(local) == 0 else 0
