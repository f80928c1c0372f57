"""Ranges on their way from a store, and what was announced of them."""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from operator import attrgetter
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardload.storage.stopping import Stop

Item = TypeVar("Item")

Place: TypeAlias = tuple[int, int, int]
"""Shard, first byte, byte after the last."""

WAITING, RUNNING, DONE = range(3)

UNIT_BYTES = 64 << 10
"""What else lies in a request is known by aligned units of so many bytes."""

_GIVE_WAY = 128
"""Steps of some microseconds each."""

NO_TURN = -1

_turn: ContextVar[int] = ContextVar("shardload_turn", default=NO_TURN)


def current_turn() -> int:
    """Returns which pass over the dataset this context announces and reads for; `NO_TURN` for none."""
    return _turn.get()


@contextlib.contextmanager
def in_turn(number: int) -> Iterator[None]:
    """Has what is announced and read in the block be so for a pass over the dataset, such as an epoch.

    What was announced for two passes is kept until it was read in the later one; for one, until it was read once.
    """
    token = _turn.set(number)
    try:
        yield
    finally:
        _turn.reset(token)


def giving_way(items: Iterable[Item]) -> Iterator[Item]:
    """Yields items, now and then when others had the interpreter: who only computes keeps it from them for milliseconds."""
    for number, item in enumerate(items):
        if number % _GIVE_WAY == _GIVE_WAY - 1:
            time.sleep(0)
        yield item


def columns_of(places: Sequence[Place]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns shards, first bytes and lengths of those places that have bytes."""
    columns = np.array([place for place in places if place[1] < place[2]], dtype=np.int64).T
    return columns[0], columns[1], columns[2] - columns[1]


class Request:
    """One range on its way."""

    __slots__ = (
        "announced",
        "copied",
        "cost",
        "error",
        "failed_at",
        "hurried",
        "needed",
        "num_bytes",
        "serial",
        "shard_id",
        "spans",
        "start",
        "state",
        "stop",
        "waiting",
    )

    def __init__(self, place: Place, serial: int, urgent: bool, stop: Stop) -> None:
        self.shard_id, self.start = place[:2]
        self.num_bytes = place[2] - place[1]
        self.serial = serial
        """The last announcement that it belongs to, or that there was when it was asked for."""
        self.announced = not urgent
        """Whether it was announced before anybody waited for it."""
        self.hurried = urgent
        """Whether somebody waits for it."""
        self.stop = stop
        """Set once who asked for it does not want it any more."""
        self.spans: list[Span] = []
        self.cost = 0
        """Bytes that are held for it."""
        self.needed = 0
        """Bytes of its spans, once it is there."""
        self.copied = False
        """Whether these have memory of their own, each."""
        self.state = WAITING
        self.error: Exception | None = None
        self.failed_at = 0.0
        """When that was, by `time.monotonic`, if nobody was told of it yet."""
        self.waiting: list[threading.Event] = []
        """Of those who wait for it, each its own."""

    @property
    def units(self) -> range:
        """The units of the file that lie wholly in it."""
        return range(-(-self.start // UNIT_BYTES), (self.start + self.num_bytes) // UNIT_BYTES)

    def fill(self, data: NDArray[np.uint8]) -> None:
        """Gives its spans what was fetched: uint8 of shape (num_bytes,)."""
        for span in self.spans:
            span.data = data[span.start - self.start : span.stop - self.start].data.toreadonly()
            self.needed += span.stop - span.start

    def copy_spans(self) -> None:
        """Gives each span memory of its own, so that what was fetched beside them is held no longer."""
        for span in self.spans:
            if span.data is not None:
                span.data = memoryview(bytes(span.data))
        self.copied = True


class Span:
    """A range that was announced, within one request; disjoint from all others."""

    __slots__ = ("data", "needs", "request", "start", "stop", "turn")

    def __init__(self, start: int, stop: int, request: Request, turn: int) -> None:
        self.start = start
        self.stop = stop
        self.request = request
        self.data: memoryview | None = None
        self.turn = turn
        """The turn in which all of it is to be read, as long as that is all."""
        self.needs: dict[int, Parts] | None = None
        """What is to be read in each turn; None for what `turn` tells, which is all that there is of most spans."""

    def need(self, turn: int, start: int, stop: int) -> None:
        """Notes that a range, which may reach out of this one, will be read in a turn; without one, in any."""
        if self.needs is None:
            if turn in (self.turn, NO_TURN):
                return
            self.needs = {self.turn: Parts(self.start, self.stop)}
        start, stop = max(start, self.start), min(stop, self.stop)
        if turn != NO_TURN or not any(parts.cover(start, stop) for parts in self.needs.values()):
            self.needs.setdefault(turn, Parts()).add(start, stop)

    def read(self, turn: int, start: int, stop: int) -> bool:
        """Notes a part as read in a turn, and in all before it; without one, in all. Returns whether that was the last one."""
        if self.needs is None:
            if self.turn > turn != NO_TURN:
                return False
            if start <= self.start and stop >= self.stop:
                self.needs = {}
                return True
            self.needs = {self.turn: Parts(self.start, self.stop)}
        elif not self.needs:
            return False
        for number in [number for number in self.needs if number <= turn or turn == NO_TURN]:
            self.needs[number].remove(start, stop)
            if not self.needs[number]:
                del self.needs[number]
        return not self.needs


class Parts:
    """Half-open ranges of one range: in order, and apart."""

    __slots__ = ("_starts", "_stops")

    def __init__(self, start: int = 0, stop: int = 0) -> None:
        self._starts, self._stops = ([start], [stop]) if start < stop else ([], [])

    def __len__(self) -> int:
        return len(self._starts)

    def cover(self, start: int, stop: int) -> bool:
        """Tells whether one of them holds all of a range."""
        at = bisect.bisect_right(self._starts, start) - 1
        return at >= 0 and self._stops[at] >= stop

    def add(self, start: int, stop: int) -> None:
        """Adds a range."""
        first, last = bisect.bisect_left(self._stops, start), bisect.bisect_right(self._starts, stop)
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last], self._stops[first:last] = [start], [stop]

    def remove(self, start: int, stop: int) -> None:
        """Takes a range out."""
        first, last = bisect.bisect_right(self._stops, start), bisect.bisect_left(self._starts, stop)
        if first >= last:
            return
        low, high = self._starts[first], self._stops[last - 1]
        left = [(a, b) for a, b in ((low, start), (stop, high)) if a < b]
        self._starts[first:last], self._stops[first:last] = [a for a, _ in left], [b for _, b in left]


class Spans:
    """Spans by shard, in the order of the file."""

    def __init__(self) -> None:
        self._starts: dict[int, list[int]] = {}
        self._spans: dict[int, list[Span]] = {}

    def __bool__(self) -> bool:
        return any(self._spans.values())

    def overlapping(self, shard_id: int, start: int, stop: int) -> list[Span]:
        """Returns those that have bytes of a range."""
        starts = self._starts.get(shard_id)
        if not starts:
            return []
        spans = self._spans[shard_id]
        first = max(0, bisect.bisect_right(starts, start) - 1)
        last = bisect.bisect_left(starts, stop)
        return [span for span in spans[first:last] if span.stop > start]

    def add(self, shard_id: int, spans: list[Span]) -> None:
        """Adds some of a shard, disjoint from all that there are."""
        spans = [*self._spans.get(shard_id, ()), *spans]
        spans.sort(key=attrgetter("start"))
        self._spans[shard_id] = spans
        self._starts[shard_id] = [span.start for span in spans]

    def insert(self, shard_id: int, span: Span) -> None:
        """Adds one of a shard, disjoint from all that there are."""
        starts = self._starts.setdefault(shard_id, [])
        slot = bisect.bisect_left(starts, span.start)
        starts.insert(slot, span.start)
        self._spans.setdefault(shard_id, []).insert(slot, span)

    def remove(self, span: Span) -> bool:
        """Drops one; returns False if it is not there."""
        shard_id = span.request.shard_id
        starts, spans = self._starts[shard_id], self._spans[shard_id]
        slot = bisect.bisect_left(starts, span.start)
        if slot == len(spans) or spans[slot] is not span:
            return False
        del starts[slot], spans[slot]
        return True


def given_out(missing: Sequence[Place], requests: Sequence[Request], turn: int) -> dict[int, list[Span]]:
    """Gives requests their spans: of what is missing, cut where requests end. Both are in the order of the files.

    Returns:
        The spans by shard.
    """
    at, new = 0, dict[int, list[Span]]()
    for request in requests:
        low, high = request.start, request.start + request.num_bytes
        while at < len(missing) and missing[at][0] == request.shard_id and missing[at][1] < high:
            _, start, stop = missing[at]
            span = Span(max(start, low), min(stop, high), request, turn)
            request.spans.append(span)
            new.setdefault(request.shard_id, []).append(span)
            if stop > high:
                break
            at += 1
    return new
