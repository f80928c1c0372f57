"""What an iteration goes through: the rest of an epoch, or of a scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from shardload.order.cursor import RankBatch
from shardload.order.epoch import WindowEnd
from shardload.order.next_use import Forecast


def _unknown() -> Forecast | None:
    return None


class Entered(NamedTuple):
    """A run that was begun."""

    epoch: int
    seed: int
    """The seed in force there."""
    num_positions: int
    """Positions of the epoch."""
    batches: Iterator[RankBatch]
    after: Iterator[RankBatch]
    """The batches that are to come after it."""
    windows: tuple[WindowEnd, WindowEnd] | None = None
    """Where windows of both end, which are announced as a whole; None where there are none."""
    forecast: Callable[[], Forecast | None] = _unknown
    """Returns what tells a cache when samples are needed again, or None; of packed sequences it measures some."""


class Run(Protocol):
    """One rank's batches of an epoch or a scan, and what was given of them."""

    @property
    def rank(self) -> int:
        """The replica's rank."""
        ...

    def begin(self) -> Entered:
        """Enters it."""
        ...

    def deliver(self, cursor: int) -> None:
        """Notes that the training loop was given what ends at `cursor`."""
        ...
