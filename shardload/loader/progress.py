"""Where an order stands: which epoch comes next, what has been delivered, and the state of it.

Pure bookkeeping that the sampler, the batch sampler and the loader share.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import LoaderClosedError
from shardload.loader.state import OrderKey, Place, decode_state, encode_state
from shardload.order import Permutation
from shardload.order.cursor import Partition

Int64 = NDArray[np.int64]


class Progress:
    """The place of one run in its order. Not safe to use from several threads."""

    def __init__(self, key: OrderKey) -> None:
        self.key = key
        # A wrong seed is told here rather than in the middle of a run.
        self.order(0)
        self._place = Place()
        # Where the epoch under way was entered: `state_at` and `len` count from here.
        self._entered = Place()
        self._next_epoch = 0
        # A loaded place waits here for the next iteration, which runs its remainder.
        self._loaded: Place | None = None
        self._running = False
        self.turn = 0
        """Number of iterations begun; each delivers under its own, so that an older one cannot move the place."""

    def order(self, epoch: int) -> Callable[[Int64], Int64]:
        """Returns the function from positions of an epoch to sample ids."""
        if not self.key.shuffle:
            return lambda positions: positions
        key = self.key
        return Permutation(key.num_samples, seed=key.seed, epoch=epoch, recipe=key.recipe).sample_ids

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration; a place that was just loaded wins over it."""
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
            raise ValueError(f"epoch must be an integer from 0, not {epoch!r}")
        if self._loaded is not None:
            if epoch != self._loaded.epoch:
                warnings.warn(
                    f"set_epoch({epoch}) is ignored once: the state that was loaded goes on in epoch {self._loaded.epoch}",
                    UserWarning,
                    stacklevel=3,
                )
            return
        self._next_epoch = epoch

    def begin(self, partition: Partition) -> Place:
        """Starts an iteration: the remainder of a loaded place, else the next epoch not yet begun."""
        place = self._upcoming(partition)
        self._loaded = None
        self._place = self._entered = place
        self._next_epoch = place.epoch + 1
        self._running = True
        self.turn += 1
        return place

    def deliver(self, cursor: int, turn: int) -> None:
        """Notes that the training loop was given the batch that ends at `cursor`, by the iteration of a turn.

        Raises:
            LoaderClosedError: a newer iteration has begun.
        """
        if turn != self.turn:
            raise LoaderClosedError("this iterator is closed: a newer one of the same order took over")
        self._place = replace(self._place, position=cursor, batches=self._place.batches + 1)

    def end(self) -> None:
        """Notes that an iteration ran to its end."""
        self._running = False

    def num_batches(self, partition: Partition) -> int:
        """Returns the batches of the epoch under way or coming: those done in it and those left."""
        place = self._entered if self._running else self._upcoming(partition)
        return place.batches + partition.num_batches(place.position)

    def remaining(self, partition: Partition) -> int:
        """Returns the batches that are left of the epoch under way or coming."""
        place = self._place if self._running else self._upcoming(partition)
        return partition.num_batches(place.position)

    def state(self, partition: Partition | None) -> dict[str, str]:
        """Returns the state of what was delivered; an epoch that was delivered whole counts as the next one's start.

        Without a partition only a cursor at the very end is an epoch's end.
        """
        return encode_state(self.key, self._normal(self._current(), partition))

    def state_at(self, num_batches: int, partition: Partition) -> dict[str, str]:
        """Returns the state after so many batches of the epoch under way or coming.

        Raises:
            ValueError: the epoch has no such batch, or it lies before the place where this run entered the epoch.
        """
        entered = self._entered if self._running or self._place != self._entered else self._upcoming(partition)
        last = entered.batches + partition.num_batches(entered.position)
        if not isinstance(num_batches, int) or not entered.batches <= num_batches <= last:
            raise ValueError(
                f"num_batches must be from {entered.batches} to {last} in epoch {entered.epoch}, not {num_batches!r}"
            )
        cursor = entered.position + (num_batches - entered.batches) * partition.global_batch
        place = Place(entered.epoch, min(cursor, self.key.num_samples), num_batches)
        return encode_state(self.key, self._normal(place, partition))

    def load(self, state: Mapping[str, Any], skip_samples: int = 0) -> None:
        """Takes up the place of a state, some samples (over all ranks) further on.

        Raises:
            StateMismatchError: the state belongs to another dataset, seed or order; nothing has changed then.
            ValueError: `skip_samples` is negative.
        """
        if not isinstance(skip_samples, int) or skip_samples < 0:
            raise ValueError(f"skip_samples must be an integer from 0, not {skip_samples!r}")
        place = decode_state(state, self.key)
        epochs, position = divmod(place.position + skip_samples, max(1, self.key.num_samples))
        # Batches that were skipped or belong to an epoch before are no batches of this one.
        batches = place.batches if epochs == 0 else 0
        self._loaded = Place(place.epoch + epochs, position, batches)
        self._place = self._entered = self._loaded
        self._next_epoch = self._loaded.epoch
        self._running = False

    def _current(self) -> Place:
        """Returns the place of what was delivered; before any delivery, the place where the next iteration starts."""
        if self._loaded is not None:
            return self._loaded
        if not self._running and self._place == Place():
            return Place(self._next_epoch)
        return self._place

    def _upcoming(self, partition: Partition) -> Place:
        if self._loaded is not None:
            return self._normal(self._loaded, partition)
        return Place(self._next_epoch)

    def _normal(self, place: Place, partition: Partition | None) -> Place:
        over = (
            place.position >= self.key.num_samples if partition is None else partition.num_batches(place.position) == 0
        )
        return Place(place.epoch + 1) if over else place
