"""Whether somebody else in this process computes in Python all the time."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

_OWN_THREADS = ("shardload-", "fsspecIO")
"""Beginnings of the names of threads that fetch and read for us."""

_MOST_OWN = 0.75
"""Part of the processor time that is ours where others are busy all the time."""


def interpreter_busy() -> bool:
    """Tells whether another thread of this process, none of ours, holds the interpreter for as long as it may.

    A thread that computes in Python gives it up after the switch interval, one that calls into libraries within microseconds. On
    a machine with more to do than cores this thread may wait as long for a core; then the process uses no processor time. Nor do
    others where it waits for the many threads that fetch from a store: whoever reads in their place would do their work.
    """
    ours, used, start = _own_seconds(), time.process_time(), time.perf_counter()
    time.sleep(0)
    waited = time.perf_counter() - start
    if waited <= 0.8 * sys.getswitchinterval():
        return False
    used = time.process_time() - used
    mine = sum(seconds - ours.get(number, 0.0) for number, seconds in _own_seconds().items())
    return used > waited / 2 and mine < _MOST_OWN * used


def _own_seconds() -> dict[int, float]:
    """Returns the processor time of each of our threads, by the system's numbers of them."""
    found = {}
    for thread in threading.enumerate():
        if thread.name.startswith(_OWN_THREADS) and (number := thread.native_id) is not None:
            # It may have ended. The clock of a thread by Linux's own numbering: Python's name for it may be used of live ones only.
            with contextlib.suppress(OSError):
                found[number] = time.clock_gettime((~number << 3) | 6)
    return found
