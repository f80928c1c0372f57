"""Signals held back while something must not be left half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signals_held(after: BaseException | None = None) -> Iterator[None]:
    """Holds back what Ctrl-C, a termination and a hang-up do in this process; it happens when the block is left.

    Whoever sends a second one does not want to wait: it is not held back. What the block has not done then, the next
    writer does.

    Blocking the signals would not do: in a process with threads (numpy starts some) another thread takes them, and
    Python's handler runs in the main thread all the same. In other threads than the main one this does nothing, as no
    handler runs there.

    Args:
        after: what led here; if a signal raised it, the next one counts as the second.
    """
    ended = after is not None and not isinstance(after, Exception)
    if ended or threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) > 1:
            deliver()

    def deliver() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        waiting = list(dict.fromkeys(arrived))
        arrived.clear()
        for one in waiting:
            signal.raise_signal(one)

    # A handler that was not set by Python (None) could not be put back. What is ignored, as under nohup, stays so: processes
    # started meanwhile inherit that, but not a handler.
    kept = (None, signal.SIG_IGN)
    before = {number: handler for number in _HELD if (handler := signal.getsignal(number)) not in kept}
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        deliver()
