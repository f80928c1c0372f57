"""Ranges on their way from a store, and what was announced of them."""

from __future__ import annotations

import threading
from typing import TypeAlias

from shardload.storage.stopping import Stop

Place: TypeAlias = tuple[int, int, int]
"""Shard, first byte, byte after the last."""

WAITING, RUNNING, DONE = range(3)


class Request:
    """One range on its way."""

    __slots__ = (
        "cost",
        "error",
        "failed_at",
        "num_bytes",
        "serial",
        "shard_id",
        "spans",
        "start",
        "state",
        "stop",
        "waiting",
    )

    def __init__(self, place: Place, serial: int, stop: Stop) -> None:
        self.shard_id, self.start = place[:2]
        self.num_bytes = place[2] - place[1]
        self.serial = serial
        """The announcement that it belongs to."""
        self.stop = stop
        """Set once who asked for it does not want it any more."""
        self.spans: list[Span] = []
        self.cost = 0
        """Bytes that are held for it."""
        self.state = WAITING
        self.error: Exception | None = None
        self.failed_at = 0.0
        """When that was, by `time.monotonic`, if nobody was told of it yet."""
        self.waiting: list[threading.Event] = []
        """Of those who wait for it, each its own."""


class Span:
    """A range that was announced, within one request; disjoint from all others."""

    __slots__ = ("data", "request", "start", "stop", "unread")

    def __init__(self, start: int, stop: int, request: Request) -> None:
        self.start = start
        self.stop = stop
        self.request = request
        self.data: memoryview | None = None
        self.unread = [(start, stop)]

    def read(self, start: int, stop: int) -> bool:
        """Notes a part as read; returns whether that was the last one."""
        if self.unread == [(start, stop)]:
            self.unread = []
            return True
        rest = []
        for low, high in self.unread:
            rest += [(a, b) for a, b in ((low, min(high, start)), (max(low, stop), high)) if a < b]
        self.unread = rest
        return not rest
