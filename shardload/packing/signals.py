"""Signals held back while something must not be left half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Holds back what Ctrl-C, a termination and a hang-up do in this process; it happens when the block is left.

    Blocking the signals would not do: in a process with threads (numpy starts some) another thread takes them, and
    Python's handler runs in the main thread all the same. In other threads than the main one this does nothing, as no
    handler runs there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    # A handler that was not set by Python (None) could not be put back. What is ignored, as under nohup, stays so: processes
    # started meanwhile inherit that, but not a handler.
    kept = (None, signal.SIG_IGN)
    before = {number: handler for number in _HELD if (handler := signal.getsignal(number)) not in kept}
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for held in dict.fromkeys(arrived):
            signal.raise_signal(held)
