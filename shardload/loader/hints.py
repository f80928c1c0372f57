"""What is announced to the storage before it is read."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardload.loader.ahead import Ahead
from shardload.loader.progress import Progress
from shardload.order.cursor import Partition, RankBatch, Window, by_window
from shardload.order.epoch import WindowEnd
from shardload.order.next_use import Forecast, Uses, ranks_near
from shardload.reader.serve import Hint

Int64 = NDArray[np.int64]

_UNREAD_WINDOWS = 6
"""Announcements whose samples may not all be read yet: bursts are on their way in several threads, and ranks are apart."""

_BEGIN_BURSTS = 5
"""Bursts after which so many batches are ready that a loop at half of what is possible does not wait for others."""


@dataclass(slots=True)
class Carried:
    """Batches of an epoch that were announced to a store at the end of the one before it."""

    epoch: int = -1
    cursor: int = 0
    """Cursor after the first of them."""
    num_batches: int = 0

    def note(self, epoch: int, batches: list[RankBatch]) -> None:
        """Takes in what was announced of the next epoch."""
        self.epoch, self.num_batches = epoch, len(batches)
        self.cursor = batches[0].cursor if batches else 0

    def is_of(self, epoch: int, cursor: int = 0) -> bool:
        """Tells whether it is what an epoch begins with, by the cursor after its first batch."""
        return (self.epoch, self.cursor) == (epoch, cursor)


class Hints:
    """Passes batches on, and collects what is to be announced before they are read."""

    def __init__(self, ahead: Ahead, carried: Carried | None = None) -> None:
        """Describes it.

        Args:
            ahead: how many batches are announced at a time.
            carried: what the last epoch has announced of this one, which is to be noted of the next one, too.
        """
        self.ahead = ahead
        self._carried = Carried() if carried is None else carried
        self._waiting: list[Hint] = []
        self._told: Told | None = None
        self._epoch = 0

    def take(self) -> list[Hint]:
        """Returns what is to be announced now, once."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def batches(
        self,
        ids: Iterator[RankBatch],
        after: Iterator[RankBatch],
        windows: tuple[WindowEnd, WindowEnd] | None,
        epoch: int = 0,
        forecast: Forecast | None = None,
    ) -> Iterator[RankBatch]:
        """Yields batches, those that follow being announced.

        Row tables that are read by page have their pages announced a window before the records that they tell of.

        Args:
            ids: the batches.
            after: those of the next epoch, which are announced while this one ends.
            windows: where windows of the two epochs end, which are announced as a whole; None where there are none.
            epoch: that of the batches.
            forecast: what tells when samples are needed again; None if nobody asks for that.
        """
        self._epoch, self._told = epoch, None if forecast is None else Told(forecast, epoch)
        if not self.ahead.hinted_batches:
            yield from ids
        elif windows is not None:
            yield from self._by_window(by_window(ids, windows[0]), by_window(after, windows[1]))
        else:
            # The first batch is read at once, and windows grow: others do not come at the price of the first ones.
            for first in itertools.islice(ids, 1):
                yield first
                if self.ahead.early and self._told is None:
                    yield from self._from_a_store(ids, after, first.cursor)
                else:
                    yield from self._in_turn(ids, after)

    def _in_turn(self, ids: Iterator[RankBatch], after: Iterator[RankBatch]) -> Iterator[RankBatch]:
        """Yields batches, those of a window being announced when half of the window before was read, or when it is begun."""
        size = self.ahead.hinted_batches
        waiting: collections.deque[RankBatch] = collections.deque()
        window, begun = min(2, size), 0
        (own, later), rows_announced = _window(ids, after, window), False
        while True:
            if len(waiting) <= (begun if self.ahead.early else window // 2):
                waiting.extend(own)
                begun = len(own)
                self._announce(own, later, rows_announced)
                window = min(2 * window, size)
                own, later = _window(ids, after, window)
                self._announce_rows(own, later)
                rows_announced = True
            if not waiting:
                return
            yield waiting.popleft()

    def _from_a_store(self, ids: Iterator[RankBatch], after: Iterator[RankBatch], cursor: int) -> Iterator[RankBatch]:
        """Yields the batches after the first one, those of a window being announced when the window before is begun.

        At the end of the epoch a whole window of the next one is announced, which is that one's first: so that where a loop takes
        less than there could be its batches come as if there had been no end.
        """
        carried, size = self._carried, self.ahead.hinted_batches
        rows_announced = carried.is_of(self._epoch, cursor)
        num_carried = carried.num_batches - 1 if rows_announced else 0
        sizes = _doubled(max(num_carried, min(2, size)), size)
        own, later, first = list[RankBatch](), list[RankBatch](), 0
        window = list(itertools.islice(ids, next(sizes)))
        while window:
            following = list(itertools.islice(ids, next(sizes)))
            # What is left at the end would be requests of their own.
            if len(following) <= len(window) // 2:
                window, following = window + following, []
            if not following:
                later = list(itertools.islice(after, size))
            yield from own[:first]
            # What was carried over is on its way; only a cache is told of it once more.
            self._announce(window[num_carried if self._told is None else 0 :], [], rows_announced)
            self._announce_rows(following, later)
            yield from own[first:]
            # What an epoch begins with is waited for: no announcement takes the interpreter from who reads it.
            first, num_carried, rows_announced = num_carried // 2, 0, True
            own, window = window, following
        if not own:
            later = list(itertools.islice(after, size))
        yield from own[:first]
        carried.note(self._epoch + 1, later)
        self._announce([], later, rows_announced)
        yield from own[first:]

    def _by_window(self, windows: Iterator[Window], after: Iterator[Window]) -> Iterator[RankBatch]:
        """Yields the batches of windows; each window is announced as a whole while the one before it is read.

        The last one is followed by the first one of the next epoch, which that finds on its way.
        """
        carried, early, own = self._carried, self.ahead.early, list[RankBatch]()
        epochs = ((self._epoch, window) for window in windows), ((self._epoch + 1, window) for window in after)
        for number, (epoch, window) in enumerate(itertools.chain(epochs[0], itertools.islice(epochs[1], 1))):
            # What an epoch begins with comes first, where all of it shares a way, and until batches are ready: what is fetched
            # meanwhile slows down who reads.
            begun = max(len(own) // 4, min(len(own) // 2, _BEGIN_BURSTS * self.ahead.burst_batches))
            first = begun if early and number == 1 else 0
            yield from own[:first]
            # What was carried over is on its way; only a cache is told of it once more.
            known = not number and early and carried.is_of(epoch, *(one.cursor for one in window.batches[:1]))
            if not known or self._told is not None:
                parts = (window.parts, []) if epoch == self._epoch else ([], window.parts)
                # An epoch that is one window finds all of it there, and keeps it for the next one: whatever is read before that
                # is announced would be dropped, and asked for again.
                turn = epoch + (epoch > self._epoch and number == 1 and early)
                # Neighbours share the pages of row tables: who is told of a window reads few of them.
                self._announce_rows(*parts)
                self._announce(*parts, rows_announced=number > 0, turn=turn)
            if epoch > self._epoch:
                carried.note(epoch, window.batches)
            yield from own[first:]
            own = window.batches if epoch == self._epoch else []
        yield from own

    def _announce(
        self, own: list[RankBatch], later: list[RankBatch], rows_announced: bool, turn: int | None = None
    ) -> None:
        if own or later:
            uses = None if self._told is None else self._told.uses(own, later)
            turn = self._turn(own) if turn is None else turn
            self._waiting.append(Hint(False, _ids(own, later), rows_announced, uses, turn))

    def _announce_rows(self, own: list[RankBatch], later: list[RankBatch]) -> None:
        if own or later:
            self._waiting.append(Hint(True, _ids(own, later), False, turn=self._turn(own)))

    def _turn(self, own: list[RankBatch]) -> int:
        return self._epoch if own else self._epoch + 1


class Told:
    """What a cache is told of samples that are announced."""

    def __init__(self, forecast: Forecast, epoch: int, max_unread: int = _UNREAD_WINDOWS) -> None:
        """Describes it.

        Args:
            forecast: when samples are needed again.
            epoch: that of the batches.
            max_unread: announcements whose samples may not be read yet.
        """
        self._forecast = forecast
        self._epoch = epoch
        self._firsts: collections.deque[int] = collections.deque(maxlen=max_unread)

    def uses(self, own: list[RankBatch], later: list[RankBatch]) -> Uses:
        """Returns when the samples of batches of the epoch, and of the next one, are read."""
        size = self._forecast.num_positions
        positions = [batch.positions + self._epoch * size for batch in own]
        positions += [batch.positions + (self._epoch + 1) * size for batch in later]
        whole = np.concatenate(positions)
        self._firsts.append(int(whole[0]))
        return Uses(self._forecast, self._firsts[0], np.concatenate(_ids(own, later)), whole)


def forecast_of(progress: Progress, partition: Partition, rank: int) -> Forecast | None:
    """Returns what tells when a rank's samples are needed again on its node; None where the order cannot be inverted."""
    recorded, num_replicas = progress.recorded(partition), partition.num_replicas
    begun = recorded.begun
    if not begun.orders.invertible:
        return None
    # Where a rank does not have every so many-th position, each sample may come to any of them.
    regular = type(partition) is Partition and partition.tail != "carry"
    near = ranks_near(num_replicas) if regular else num_replicas
    facts = begun.orders, begun.seed, begun.reseeds, recorded.recipe
    return Forecast(*facts, rank, num_replicas, near, recorded.fingerprint)


def _window(ids: Iterator[RankBatch], after: Iterator[RankBatch], size: int) -> tuple[list[RankBatch], list[RankBatch]]:
    """Returns so many batches as far as there are, and those after them that fill the window."""
    own = list(itertools.islice(ids, size))
    return own, list(itertools.islice(after, size - len(own)))


def _doubled(size: int, most: int) -> Iterator[int]:
    """Yields sizes of windows, each twice the one before."""
    while True:
        yield size
        size = min(2 * size, most)


def _ids(own: list[RankBatch], later: list[RankBatch]) -> list[Int64]:
    return [batch.sample_ids for batch in (*own, *later)]
