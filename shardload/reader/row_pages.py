"""Pages of row tables that are not held whole: kept in one piece of memory, and given row by row."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.format import layout

Int64 = NDArray[np.int64]
Fill = Callable[[list[int], list[memoryview]], None]
"""Reads pages of some numbers, which rise, each into its memory, and checks them."""

_FIRST_PLACES = 1024
"""Memory is taken for so many pages, and for all when these are in use: until then how many there are is only somebody's word."""
_MOST_PAGES = _FIRST_PLACES
"""Pages that a thread reads before it gives them to all."""


class RowPages:
    """Checked pages in places of one size, the least recently used replaced. Safe for several threads.

    Rows from many pages are taken by one gather. And the memory comes in the system's large pages, for which numpy asks: that of
    a single page comes by four faults, which on a virtual machine take two thirds of the time of its SHA-256.
    """

    def __init__(self, page_bytes: int, max_bytes: int, num_pages: int) -> None:
        """Takes no memory yet.

        Args:
            page_bytes: the most that a page has.
            max_bytes: bytes that pages may take; there is always room for one.
            num_pages: the most that there can be.
        """
        self._place_bytes = layout.align(page_bytes, layout.SECTION_ALIGNMENT)
        self._num_places = max(1, min(max_bytes // self._place_bytes, num_pages))
        # Some threads read at once, each into places of its own.
        self._most = max(1, min(self._num_places // 8, _MOST_PAGES))
        self._memory = np.empty((0, self._place_bytes), dtype=np.uint8)
        self._places: OrderedDict[int, int] = OrderedDict()
        self._vacant: list[int] = []
        self._num_used = self._num_filling = 0
        self._changed = threading.Condition()

    def take(self, numbers: Int64, offsets: Int64, dtype: np.dtype[Any], fill: Fill) -> NDArray[Any]:
        """Returns rows: structured array of shape (rows,).

        Args:
            numbers: of the page of each row, not falling: int64 of shape (rows,), at least one.
            offsets: place of each row in its page, likewise.
            dtype: of the rows.
            fill: reads pages that are not here. If it raises, that is raised, and none of its pages is kept.
        """
        edges = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]
        rows = np.empty(len(numbers), dtype=dtype)
        for first in range(0, len(edges) - 1, self._most):
            some = edges[first : first + self._most + 1]
            part = slice(some[0], some[-1])
            self._take(numbers[some[:-1]].tolist(), np.diff(some), offsets[part], rows[part], fill)
        return rows

    def absent(self, numbers: Int64) -> NDArray[np.bool_]:
        """Returns which pages would have to be read: bool of shape (pages,)."""
        with self._changed:
            return np.array([number not in self._places for number in numbers.tolist()], dtype=np.bool_)

    def _take(self, numbers: list[int], counts: Int64, offsets: Int64, out: NDArray[Any], fill: Fill) -> None:
        """Fills an array with rows of some pages: `counts` of each."""
        with self._changed:
            # Who waits here holds no places that another one waits for.
            self._changed.wait_for(lambda: self._has_room(numbers) and self._has_memory(numbers))
            rows, places = self._rows(out.dtype), [self._places.get(number, -1) for number in numbers]
            if max(places) >= 0:
                # At once, as they are replaced by whoever needs room; rows of pages that are not here are garbage so far.
                out[...] = rows[np.repeat(places, counts), offsets]
            missing: dict[int, int] = {}
            for number, place in zip(numbers, places, strict=True):
                if place >= 0:
                    self._places.move_to_end(number)
                else:
                    missing[number] = -1
            for number in missing:
                missing[number] = self._vacated()
            self._num_filling += bool(missing)
        if not missing:
            return
        good = False
        try:
            fill(list(missing), [self._memory[place].data for place in missing.values()])
            places = [missing.get(number, -1) for number in numbers]
            where = np.repeat(places, counts)
            late = where >= 0
            out[late] = rows[where[late], offsets[late]]
            good = True
        finally:
            self._settle(missing, good)

    def _settle(self, read: dict[int, int], good: bool) -> None:
        """Makes places that were read into known to all, or vacant."""
        with self._changed:
            self._num_filling -= 1
            for number, place in read.items():
                # Of two threads both may have read a page.
                if good and number not in self._places:
                    self._places[number] = place
                else:
                    self._vacant.append(place)
            self._changed.notify_all()

    def _has_room(self, numbers: list[int]) -> bool:
        room = len(self._vacant) + self._num_places - self._num_used + len(self._places)
        return room >= len(numbers) or room >= sum(number not in self._places for number in numbers)

    def _has_memory(self, numbers: list[int]) -> bool:
        """Tells whether there is memory for so many more pages. More of it is taken while nobody reads into what there is."""
        needed = min(self._num_used + len(numbers), self._num_places)
        if needed <= len(self._memory):
            return True
        if self._num_filling:
            return False
        num_places = self._num_places if needed > _FIRST_PLACES else min(_FIRST_PLACES, self._num_places)
        # The system gives it as it is written to.
        memory = np.empty((num_places, self._place_bytes), dtype=np.uint8)
        memory[: self._num_used] = self._memory[: self._num_used]
        self._memory = memory
        return True

    def _vacated(self) -> int:
        """Returns a place that nobody uses any more."""
        if self._vacant:
            return self._vacant.pop()
        if self._num_used < self._num_places:
            self._num_used += 1
            return self._num_used - 1
        return self._places.popitem(last=False)[1]

    def _rows(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Returns all places as rows: structured array of shape (places, rows)."""
        shape, strides = (len(self._memory), self._place_bytes // dtype.itemsize), (self._place_bytes, dtype.itemsize)
        return np.ndarray(shape, dtype, self._memory, strides=strides)
