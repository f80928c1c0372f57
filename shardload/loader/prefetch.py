"""One thread that works ahead, bounded in items and bytes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from shardload.errors import LoaderClosedError
from shardload.storage.stopping import Stop, heed

Item = TypeVar("Item")

_CHECK_SECONDS = 5.0
_JOIN_SECONDS = 10.0
_NOBODY_WAITS = -1


class Prefetcher(Generic[Item]):
    """Runs an iterator in a thread of its own, a bounded number of items and bytes ahead of who takes them.

    Errors of the iterator are raised by `take` in their turn, after the items that came before them. The thread holds
    the iterator but not this object, and ends when `close` is called: its owner sees to that, also when it is dropped.
    """

    def __init__(
        self,
        items: Iterator[Item],
        num_bytes: Callable[[Item], int],
        max_items: int,
        max_bytes: int,
        stop: Stop | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            items: what is run ahead.
            num_bytes: size of an item.
            max_items: most finished items that wait.
            max_bytes: most bytes that wait; one item may always wait.
            stop: what ends the thread's waits, and all that it has had begun; None for its own.
        """
        self._queue: _Queue[Item] = _Queue(num_bytes, max_items, max_bytes)
        self._stop = Stop() if stop is None else stop
        work = items, self._queue, self._stop
        self._thread = threading.Thread(target=_run, args=work, name="shardload-prefetch", daemon=True)
        self.take: Callable[[], Item] = partial(self._queue.take, self._thread)
        """Returns the next item. Raises StopIteration where there are no more, and LoaderClosedError once closed."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and drops what waits.

        A read of a file under way is not cut short: then the thread ends right after it. One from a store far away is, with all its
        retries. Where the iterator had come to its end what it has had begun goes on: that is what comes after it.
        """
        self._queue.close()
        if not self._queue.ended:
            self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)


@dataclass(frozen=True, slots=True)
class _End:
    """What stands in the queue after the last item."""

    error: BaseException
    """What `take` raises; StopIteration for a plain end."""


class _Queue(Generic[Item]):
    """Items from one thread to another.

    No lock is taken where nobody has to wait: at each one the interpreter may go to the other thread, and a training loop that
    computes in Python keeps it for milliseconds. Each counter has a single writer instead.

    Nor is a thread woken where it can be helped: the call that does it takes longer than all else that the training loop waits
    for in `next`. Who waits for room looks again at the loop's own pace, and is woken only once half of what waited was taken.
    """

    def __init__(self, num_bytes: Callable[[Item], int], max_items: int, max_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: queue.SimpleQueue[tuple[Item, int] | _End] = queue.SimpleQueue()
        self._num_put = self._num_taken = 0
        self._bytes_put = self._bytes_taken = 0
        self._taken_at = time.perf_counter()
        """When an item was taken last, or this was made."""
        self._seen = 0, self._taken_at
        """How many were taken, and when the last of them, as who puts items has seen it last."""
        self._pace = 0.0
        """Seconds between two takes then."""
        self.ended = False
        """Whether the items came to their end by themselves."""
        self._closed = False
        self._wake_at = _NOBODY_WAITS
        """Whoever takes an item wakes who waits for room when no more than so many are left."""
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()

    def put(self, item: Item) -> bool:
        """Adds an item when there is room; returns False once closed."""
        size = self._num_bytes(item)
        while not self._closed and self._full(size):
            self._wake_at = (self._num_put - self._num_taken) // 2
            # Room that was made before the wish was seen brings no word of it.
            if self._full(size) and not self._closed:
                with contextlib.suppress(queue.Empty):
                    self._room.get(timeout=min(self._pause(), _CHECK_SECONDS))
        self._wake_at = _NOBODY_WAITS
        self._num_put += 1
        self._bytes_put += size
        self._items.put((item, size))
        if self._closed:
            self._drop()
            # What `close` left for whoever waits was dropped with it.
            self.finish(StopIteration())
        return not self._closed

    def _pause(self) -> float:
        """Returns in how many seconds to look for room."""
        num_taken, taken_at = self._num_taken, self._taken_at
        seen, seen_at = self._seen
        if num_taken > seen:
            self._pace = (taken_at - seen_at) / (num_taken - seen)
            self._seen = num_taken, taken_at
        return pause(time.perf_counter() - taken_at, self._pace, self._num_put - num_taken)

    def finish(self, error: BaseException) -> None:
        """Ends the items with an error, StopIteration for a plain end."""
        self._items.put(_End(error))

    def take(self, thread: threading.Thread) -> Item:
        while not self._closed:
            try:
                entry = self._items.get(timeout=_CHECK_SECONDS)
            except queue.Empty:
                if not thread.is_alive() and self._items.empty():
                    raise LoaderClosedError(
                        "the prefetch thread has ended without a word; this is a bug, or the process forked"
                    ) from None
                continue
            if isinstance(entry, _End):
                # For whoever asks once more.
                self._items.put(entry)
                if self._closed:
                    break
                raise entry.error
            item, size = entry
            self._num_taken += 1
            self._bytes_taken += size
            self._taken_at = time.perf_counter()
            if self._num_put - self._num_taken <= self._wake_at:
                self._room.put(None)
            return item
        raise LoaderClosedError("this iterator is closed: the loader was closed, or a newer iterator took over")

    def close(self) -> None:
        self._closed = True
        self._drop()
        # Whoever waits on either side looks again.
        self.finish(StopIteration())
        self._room.put(None)

    def _full(self, size: int) -> bool:
        waiting, num_bytes = self._num_put - self._num_taken, self._bytes_put - self._bytes_taken
        return waiting >= self._max_items or (waiting > 0 and num_bytes + size > self._max_bytes)

    def _drop(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._items.get_nowait()


def pause(since_taken: float, pace: float, num_waiting: int) -> float:
    """Returns in how many seconds to look for room, so that a quarter of what waits is likely to be taken by then.

    That is half-way between two takes, as they are foreseen. Where they are late a look is taken after twice as long each time.

    Args:
        since_taken: seconds since an item was taken.
        pace: seconds between the takes before it; 0 if there were none.
        num_waiting: items that wait.
    """
    return max((max(1, num_waiting // 4) + 0.5) * pace - since_taken, since_taken)


def _run(items: Iterator[Item], queue: _Queue[Item], stop: Stop) -> None:
    """Body of the thread: module level, so that it keeps neither loader nor iterator alive."""
    heed(stop)
    try:
        for item in items:
            if not queue.put(item):
                return
            # The item must not live on in this frame while the next one is made: its buffer would not come back.
            del item
        queue.ended = True
        queue.finish(StopIteration())
    # Whatever went wrong is raised in the training loop, which waits for it.
    except BaseException as error:
        queue.finish(error)
