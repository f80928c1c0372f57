"""Ranges on their way from a store, and what was announced of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeAlias

from shardload.storage.stopping import Stop

Place: TypeAlias = tuple[int, int, int]
"""Shard, first byte, byte after the last."""

WAITING, RUNNING, DONE = range(3)

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


class Request:
    """One range on its way."""

    __slots__ = (
        "announced",
        "cost",
        "error",
        "hurried",
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
        self.state = WAITING
        self.error: Exception | None = None
        self.waiting: list[threading.Event] = []
        """Of those who wait for it, each its own."""


class Span:
    """A range that was announced, within one request; disjoint from all others."""

    __slots__ = ("data", "needs", "request", "start", "stop")

    def __init__(self, start: int, stop: int, request: Request, turn: int) -> None:
        self.start = start
        self.stop = stop
        self.request = request
        self.data: memoryview | None = None
        self.needs = [(turn, start, stop)]
        """What is to be read: turn, first byte, byte after the last; those of a turn are disjoint."""

    def need(self, turn: int, start: int, stop: int) -> None:
        """Notes that a range, which may reach out of this one, will be read in a turn; without one, in any."""
        start, stop = max(start, self.start), min(stop, self.stop)
        if len(self.needs) == 1:
            ((number, low, high),) = self.needs
            if number == turn and low <= start and stop <= high:
                return
        rest = [(start, stop)]
        for number, low, high in self.needs:
            if turn in (number, NO_TURN):
                rest = [part for one in rest for part in _without(one, low, high)]
        self.needs += [(turn, low, high) for low, high in rest]

    def read(self, turn: int, start: int, stop: int) -> bool:
        """Notes a part as read in a turn, and in all before it; without one, in all. Returns whether that was all."""
        if len(self.needs) == 1:
            ((number, low, high),) = self.needs
            if low == start and high == stop and (number <= turn or turn == NO_TURN):
                self.needs = []
                return True
        left = []
        for number, low, high in self.needs:
            if number > turn != NO_TURN:
                left.append((number, low, high))
            else:
                left += [(number, a, b) for a, b in _without((low, high), start, stop)]
        self.needs = left
        return not left


def _without(range_: tuple[int, int], start: int, stop: int) -> list[tuple[int, int]]:
    """Returns what a half-open range leaves of another."""
    low, high = range_
    return [(a, b) for a, b in ((low, min(high, start)), (max(low, stop), high)) if a < b]
