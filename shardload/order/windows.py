"""Which items of a stream a window has, and which windows stand at the positions of an epoch. Pure arithmetic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardload.order.epoch import EpochOrders, Order, Reseed, WindowEnd, seed_at
from shardload.order.permutation import RECIPE

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """Windows of one size over a stream of items.

    At phase p, window w starts at item w * stride + p, and takes `length + shift` items. Its id is p * num_windows + w. There are
    as many windows as fit at every phase, so that all epochs have equally many; what is left at the stream's end, and the
    p items at its start, no window has.
    """

    num_items: int
    """Items of the stream."""
    length: int
    """Items of a window."""
    stride: int
    """Items from the start of one window to that of the next."""
    shift: int = 0
    """Further items that a window takes behind its own."""
    moves: bool = False
    """Whether there are phases other than 0."""

    @property
    def num_phases(self) -> int:
        """Phases, from 0: as many as the stride, or of a stream with room for fewer as many as leave one window."""
        return max(1, min(self.stride, self._num_starts)) if self.moves else 1

    @property
    def num_windows(self) -> int:
        """Windows at each phase."""
        left = self._num_starts - self.num_phases
        return left // self.stride + 1 if left >= 0 else 0

    def starts(self, ids: Int64) -> Int64:
        """Returns the first item of each window: int64 of the shape of `ids`, which are below num_phases * num_windows."""
        phases, windows = np.divmod(ids, self.num_windows)
        return windows * self.stride + phases

    @property
    def _num_starts(self) -> int:
        """Items at which a window may start."""
        return max(0, self.num_items - self.length - self.shift + 1)


def phase_of(seed: int, epoch: int, num_phases: int) -> int:
    """Returns the phase of an epoch, from 0 to num_phases - 1: the first 8 bytes of a BLAKE2b over the numbers, modulo."""
    digest = hashlib.blake2b(f"shardload phase {seed} {epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % num_phases


@dataclass(frozen=True, slots=True)
class PhasedOrders(EpochOrders):
    """Orders of windows, all of one phase in an epoch and of another one in the next."""

    num_positions: int
    """Windows of one phase."""
    windows: EpochOrders
    """The orders of the windows of any one phase."""
    num_phases: int

    @property
    def name(self) -> str:
        """That of the windows' orders, and the number of phases."""
        return f"phase of {self.num_phases}, shuffle {self.windows.name}"

    def window_end(self, epoch: int, seed: int) -> WindowEnd | None:
        """Returns where stretches of positions end whose windows are neighbours, as the windows' orders say."""
        return self.windows.window_end(epoch, seed)

    def order(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Order:
        """Returns the windows' order in an epoch, as ids of its phase.

        A seed that comes in the midst of an epoch leaves the phase as it is: what was delivered would come again in part.
        """
        order = self.windows.order(epoch, seed, reseeds, recipe)
        first_id = phase_of(seed_at(seed, reseeds, epoch, 0), epoch, self.num_phases) * self.num_positions
        return lambda positions: order(positions) + first_id
