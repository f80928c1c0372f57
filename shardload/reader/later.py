"""Things done beside the caller, one after another, by a thread that ends when there is nothing to do."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable

_IDLE_SECONDS = 0.2
_MOST_WAITING = 64


class Later:
    """Calls what it is given, in order. Of too many the oldest are left out: they are hints. Belongs to one process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque(maxlen=_MOST_WAITING)
        self._running = False
        self._busy = False
        self._closed = False
        self._process_id = os.getpid()

    def call(self, function: Callable[[], object]) -> None:
        """Has a function called; what it raises is dropped."""
        with self._changed:
            self._waiting.append(function)
            self._changed.notify_all()
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="shardload-announce", daemon=True).start()

    def settle(self, seconds: float) -> bool:
        """Waits until everything was called; returns whether it was within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def close(self) -> None:
        """Calls nothing more; the thread ends with what it is at. Nothing to do in a forked child, whose lock may be held."""
        if os.getpid() == self._process_id:
            with self._changed:
                self._closed = True
                self._waiting.clear()
                self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while self._changed.wait_for(lambda: self._waiting or self._closed, _IDLE_SECONDS) and not self._closed:
                function = self._waiting.popleft()
                self._busy = True
                self._changed.release()
                try:
                    with contextlib.suppress(Exception):
                        function()
                finally:
                    del function
                    self._changed.acquire()
                    self._busy = False
                    self._changed.notify_all()
            self._running = False
