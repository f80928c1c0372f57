"""One thread that works ahead, bounded in items and bytes."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from shardload.errors import LoaderClosedError

Item = TypeVar("Item")

_CHECK_SECONDS = 5.0
_JOIN_SECONDS = 2.0


class Prefetcher(Generic[Item]):
    """Runs an iterator in a thread of its own, a bounded number of items and bytes ahead of who takes them.

    Errors of the iterator are raised by `take` in their turn, after the items that came before them. The thread holds
    the iterator but not this object, and ends when `close` is called: its owner sees to that, also when it is dropped.
    """

    def __init__(self, items: Iterator[Item], num_bytes: Callable[[Item], int], max_items: int, max_bytes: int) -> None:
        """Starts the thread.

        Args:
            items: what is run ahead.
            num_bytes: size of an item.
            max_items: most finished items that wait.
            max_bytes: most bytes that wait; one item may always wait.
        """
        self._queue: _Queue[Item] = _Queue(num_bytes, max_items, max_bytes)
        self._thread = threading.Thread(target=_run, args=(items, self._queue), name="shardload-prefetch", daemon=True)
        self._thread.start()

    def take(self) -> Item:
        """Returns the next item.

        Raises:
            StopIteration: there are no more.
            LoaderClosedError: closed.
        """
        return self._queue.take(self._thread)

    def close(self) -> None:
        """Ends the thread and drops what waits. A read under way is not cut short: then the thread ends right after it."""
        self._queue.close()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)


class _Queue(Generic[Item]):
    def __init__(self, num_bytes: Callable[[Item], int], max_items: int, max_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: collections.deque[tuple[Item, int]] = collections.deque()
        self._bytes = 0
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> bool:
        """Adds an item when there is room; returns False once closed."""
        size = self._num_bytes(item)
        with self._changed:
            while not self._closed and (
                len(self._items) >= self._max_items or (self._items and self._bytes + size > self._max_bytes)
            ):
                self._changed.wait(_CHECK_SECONDS)
            if self._closed:
                return False
            self._items.append((item, size))
            self._bytes += size
            self._changed.notify_all()
            return True

    def finish(self, error: BaseException) -> None:
        """Ends the items with an error, StopIteration for a plain end."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def take(self, thread: threading.Thread) -> Item:
        with self._changed:
            while not self._items and self._error is None and not self._closed:
                if not self._changed.wait(_CHECK_SECONDS) and not thread.is_alive():
                    raise LoaderClosedError(
                        "the prefetch thread has ended without a word; this is a bug, or the process forked"
                    )
            if self._closed:
                raise LoaderClosedError("this iterator is closed: the loader was closed, or a newer iterator took over")
            if self._items:
                item, size = self._items.popleft()
                self._bytes -= size
                self._changed.notify_all()
                return item
            assert self._error is not None
            raise self._error

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


def _run(items: Iterator[Item], queue: _Queue[Item]) -> None:
    """Body of the thread: module level, so that it keeps neither loader nor iterator alive."""
    try:
        for item in items:
            if not queue.put(item):
                return
            # The item must not live on in this frame while the next one is made: its buffer would not come back.
            del item
        queue.finish(StopIteration())
    # Whatever went wrong is raised in the training loop, which waits for it.
    except BaseException as error:
        queue.finish(error)
