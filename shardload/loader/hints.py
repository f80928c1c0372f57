"""What is announced to the storage before it is read."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shardload.loader.ahead import Ahead
from shardload.order.cursor import RankBatch, by_window
from shardload.order.epoch import WindowEnd
from shardload.reader.serve import Hint

Int64 = NDArray[np.int64]


class Hints:
    """Passes batches on, and collects what is to be announced before they are read."""

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self._waiting: list[Hint] = []

    def take(self) -> list[Hint]:
        """Returns what is to be announced now, once."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def batches(
        self, ids: Iterator[RankBatch], after: Iterator[RankBatch], windows: tuple[WindowEnd, WindowEnd] | None
    ) -> Iterator[RankBatch]:
        """Yields batches, those that follow being announced.

        Row tables that are read by page have their pages announced a window before the records that they tell of.

        Args:
            ids: the batches.
            after: those of the next epoch, which are announced while this one ends.
            windows: where windows of the two epochs end, which are announced as a whole; None where there are none.
        """
        size = self._ahead.hinted_batches
        if not size:
            yield from ids
            return
        if windows is not None:
            yield from self._by_window(by_window(ids, windows[0]), by_window(after, windows[1]))
            return
        # The first batch is read at once, and windows grow: others do not come at the price of the first ones.
        yield from itertools.islice(ids, 1)
        waiting: collections.deque[RankBatch] = collections.deque()
        window, begun = min(2, size), 0
        (own, coming), rows_announced = _window(ids, after, window), False
        while True:
            if len(waiting) <= (begun if self._ahead.early else window // 2):
                waiting.extend(own)
                begun = len(own)
                if coming:
                    self._waiting.append(Hint(False, coming, rows_announced))
                window = min(2 * window, size)
                own, coming = _window(ids, after, window)
                if coming:
                    self._waiting.append(Hint(True, coming, False))
                    rows_announced = True
            if not waiting:
                return
            yield waiting.popleft()

    def _by_window(self, windows: Iterator[list[RankBatch]], after: Iterator[list[RankBatch]]) -> Iterator[RankBatch]:
        """Yields the batches of windows; each window is announced as a whole while the one before it is read."""
        own: list[RankBatch] = []
        for window in windows:
            self._announce(window, rows_announced=bool(own))
            yield from own
            own = window
        for window in itertools.islice(after, 1):
            self._announce(window, rows_announced=bool(own))
        yield from own

    def _announce(self, batches: list[RankBatch], rows_announced: bool) -> None:
        # Neighbours share the pages of row tables: who is told of a window reads few of them.
        ids = [batch.sample_ids for batch in batches]
        self._waiting += [Hint(True, ids, False), Hint(False, ids, rows_announced)]


def _window(ids: Iterator[RankBatch], after: Iterator[RankBatch], size: int) -> tuple[list[RankBatch], list[Int64]]:
    """Returns so many batches as far as there are, and the samples of them and of those after them that fill the window."""
    own = list(itertools.islice(ids, size))
    coming = own + list(itertools.islice(after, size - len(own)))
    return own, [batch.sample_ids for batch in coming]
