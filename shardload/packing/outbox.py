"""What a unit tells, in order, while its last shard is still on its way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from shardload.format.table import ShardEntry
from shardload.packing.progress import Count
from shardload.packing.step import Step
from shardload.storage import Stop, heed

_MAX_WAITING = 16
"""Steps that wait for a shard before them, at most."""


class Outbox:
    """Passes steps on, each when its shard and all before it were delivered. Delivering goes on in a thread meanwhile.

    Used by one thread, which is also the one that passes on. One shard is on its way at a time, so that one more than the shard
    that is being made takes room.
    """

    def __init__(self, deliver: Callable[[ShardEntry], None], tell: Callable[[Step | Count], None]) -> None:
        """Starts with nothing under way.

        Args:
            deliver: brings a finished shard to where it will stay.
            tell: takes each step.
        """
        self._deliver = deliver
        self._tell = tell
        self._stop = Stop()
        self._waiting: deque[tuple[Step, Future[None] | None]] = deque()
        self._pool = ThreadPoolExecutor(1, "shardload-upload", initializer=heed, initargs=(self._stop,))

    def __call__(self, news: Step | Count) -> None:
        """Takes a step, or a count, which is passed on if nothing is under way.

        Raises:
            PackError: a shard before could not be delivered.
        """
        if isinstance(news, Count):
            self._settle(wait=False)
            if not self._waiting:
                self._tell(news)
            return
        self._settle(wait=news.entry is not None or len(self._waiting) >= _MAX_WAITING)
        future = None if news.entry is None else self._pool.submit(self._deliver, news.entry)
        self._waiting.append((news, future))
        self._settle(wait=False)

    def finish(self) -> None:
        """Waits for what is under way, and passes all on; raises as a call does."""
        self._settle(wait=True)

    def close(self) -> None:
        """Gives up what is under way, at once."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _settle(self, wait: bool) -> None:
        while self._waiting:
            step, future = self._waiting[0]
            if future is not None and not wait and not future.done():
                return
            if future is not None:
                future.result()
            self._waiting.popleft()
            self._tell(step)
