"""Threads that carry out requests beside each other, each its own, until a time or a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stream:
    """One thread's requests."""

    num_bytes: int = 0
    seconds: list[float] = field(default_factory=list)
    """Of each request."""
    start: float = 0.0
    stop: float = 0.0

    def timed(self, request: Callable[[], None], num_bytes: int) -> None:
        """Carries out a request and notes it."""
        start = time.perf_counter()
        request()
        self.stop = time.perf_counter()
        self.start = self.start or start
        self.seconds.append(self.stop - start)
        self.num_bytes += num_bytes


class Limit:
    """When to stop: at a time, or when told to."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._ended = threading.Event()

    def reached(self) -> bool:
        """Tells whether it is time to stop."""
        return self._ended.is_set() or time.monotonic() >= self._deadline

    @property
    def ended(self) -> bool:
        """Whether it was told to, so that nothing more is worth while."""
        return self._ended.is_set()

    def end(self) -> None:
        """Tells all to stop."""
        self._ended.set()


def run_streams(streams: Sequence[Stream], work: Callable[[int, Stream], None], limit: Limit) -> None:
    """Runs a thread for each stream, and ends them all when one fails or this one is interrupted."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number, streams[number])
        except BaseException as error:
            failures.append(error)
            limit.end()

    threads = [
        threading.Thread(target=guarded, args=(number,), name=f"shardload-plan-{number}", daemon=True)
        for number in range(len(streams))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        limit.end()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if failures:
        raise failures[0]
