"""What is announced beside the caller, in order, by a thread that ends when there is nothing to do; and how reads come after it."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shardload.reader.requests import current_turn
from shardload.storage.stopping import current_stop

Int64 = NDArray[np.int64]

_IDLE_SECONDS = 0.2
_MOST_WAITING = 64
_MOST_SECONDS = 5.0
"""How long a read waits for what it was announced by: then it asks for itself."""


class Announcement:
    """One that is to be made, or is being made."""

    def __init__(self, ids: Int64, turn: int, make: Callable[[], object]) -> None:
        self.make = make
        self._ids = ids
        self._turn = turn
        self._sorted: Int64 | None = None

    def covers(self, ids: Int64, turn: int) -> bool:
        """Tells whether it is of any of some samples that are read in a turn."""
        if turn != self._turn or not len(self._ids):
            return False
        if self._sorted is None:
            self._sorted = np.sort(self._ids)
        places = np.searchsorted(self._sorted, ids)
        return bool((self._sorted[np.minimum(places, len(self._sorted) - 1)] == ids).any())


class AtOnce:
    """Makes announcements where they are asked for: of what is near they take no requests."""

    def call(self, ids: Int64, announce: Callable[..., object], *arguments: object) -> None:
        """Calls a function that announces samples."""
        announce(*arguments)

    def let_pass(self, ids: Int64) -> None:
        """Returns: all that were asked for have been made."""


class Later:
    """Makes what announcements it is given, in order. Of too many the oldest are left out: they are hints. Of one process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Announcement] = deque(maxlen=_MOST_WAITING)
        self._made: Announcement | None = None
        """The one that is being made."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self._process_id = os.getpid()

    def call(self, ids: Int64, announce: Callable[..., object], *arguments: object) -> None:
        """Has a function called that announces samples, in the caller's context; what it raises is dropped.

        Args:
            ids: the samples.
            announce: the function.
            arguments: what it is given.
        """
        # In the caller's context: what is closed there ends it here, too.
        make = functools.partial(contextvars.copy_context().run, announce, *arguments)
        with self._changed:
            if self._closed:
                return
            self._waiting.append(Announcement(ids, current_turn(), make))
            self._changed.notify_all()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="shardload-announce", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    # The system, or an interpreter that ends, gives no more threads.
                    self._waiting.clear()
                    return
                self._thread = thread

    def let_pass(self, ids: Int64) -> None:
        """Waits until samples that were announced are so: who reads them before asks for each by itself.

        Not longer than some seconds, nor once the caller's loader is closed. Where nothing is to be announced it takes no lock.
        """
        if (not self._waiting and self._made is None) or threading.current_thread() is self._thread:
            return
        stop, turn = current_stop(), current_turn()
        with stop.calling(self._look), self._changed:
            before = [one for one in (self._made, *self._waiting) if one is not None and one.covers(ids, turn)]
            self._changed.wait_for(
                lambda: stop.is_set() or not any(one is self._made or one in self._waiting for one in before),
                _MOST_SECONDS,
            )

    def settle(self, seconds: float) -> bool:
        """Waits until everything was called; returns whether it was within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and self._made is None, seconds)

    def close(self) -> None:
        """Calls nothing more; the thread ends with what it is at. Nothing to do in a forked child, whose lock may be held."""
        if os.getpid() == self._process_id:
            with self._changed:
                self._closed = True
                self._waiting.clear()
                self._changed.notify_all()

    def _look(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while self._changed.wait_for(lambda: self._waiting or self._closed, _IDLE_SECONDS) and not self._closed:
                # Never out of both: who looks without the lock would take it for done.
                self._made = one = self._waiting[0]
                self._waiting.popleft()
                self._changed.release()
                try:
                    with contextlib.suppress(Exception):
                        one.make()
                finally:
                    self._changed.acquire()
                    self._made = None
                    del one
                    self._changed.notify_all()
            self._thread = None


def announcer(owner: object, far: bool) -> Later | AtOnce:
    """Returns what makes announcements until its owner is gone: beside who asks for them where they take requests."""
    if not far:
        return AtOnce()
    later = Later()
    weakref.finalize(owner, later.close).atexit = False
    return later
