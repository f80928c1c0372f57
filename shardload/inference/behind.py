"""Work that goes on behind who gives it: bounded, and its errors are raised where more is given."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Behind:
    """Calls functions in threads, and keeps who gives them waiting while too much waits. Safe for several threads."""

    def __init__(self, num_threads: int, max_waiting: int, max_bytes: int) -> None:
        """Starts no thread yet.

        Args:
            num_threads: functions that are called at a time; they begin in the order given.
            max_waiting: functions that are not done, at most.
            max_bytes: bytes that are kept for them, at most; one may take more alone.
        """
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="shardload-write")
        self._max_waiting, self._max_bytes = max_waiting, max_bytes
        self._lock = threading.RLock()
        self._waiting: collections.deque[tuple[Future[None], int]] = collections.deque()
        self._num_bytes = 0

    def __call__(self, function: Callable[[], None], num_bytes: int) -> Future[None]:
        """Has a function called, for which so many bytes are kept; raises what an earlier one has raised."""
        with self._lock:
            self.make_room(num_bytes)
            future = self._threads.submit(function)
            self._waiting.append((future, num_bytes))
            self._num_bytes += num_bytes
        return future

    def make_room(self, num_bytes: int) -> None:
        """Waits until so many bytes more may be kept; raises what a function that is done has raised."""
        with self._lock:
            while self._waiting and (
                self._waiting[0][0].done()
                or len(self._waiting) >= self._max_waiting
                or self._num_bytes + num_bytes > self._max_bytes
            ):
                self._wait_for_first()

    def wait(self) -> None:
        """Waits for all; raises what one of them has raised."""
        with self._lock:
            while self._waiting:
                self._wait_for_first()

    def close(self) -> None:
        """Waits for all, and ends the threads."""
        self._threads.shutdown()

    def _wait_for_first(self) -> None:
        future, num_bytes = self._waiting.popleft()
        self._num_bytes -= num_bytes
        future.result()
