"""Threads that wait for a store far away: for how long, and how they are told that nobody wants its answer any more."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from shardload.errors import LoaderClosedError


class Stop:
    """Tells whoever reads on somebody's behalf that the answer is not wanted any more. Set once, for good."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._calls: dict[int, Callable[[], object]] = {}
        self._number = 0

    def set(self) -> None:
        """Ends all waits, and calls what wants to be called."""
        with self._lock:
            self._event.set()
            calls = list(self._calls.values())
            self._calls.clear()
        for call in calls:
            call()

    def is_set(self) -> bool:
        """Tells whether it was set."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits so long, or until it is set; returns whether it is."""
        return self._event.wait(seconds)

    @contextlib.contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        """Calls a function, such as the `cancel` of a future, when this is set while the block runs; at once if it is set."""
        with self._lock:
            self._number += 1
            number, is_set = self._number, self._event.is_set()
            if not is_set:
                self._calls[number] = call
        if is_set:
            call()
        try:
            yield
        finally:
            with self._lock:
                self._calls.pop(number, None)

    def check(self) -> None:
        """Raises LoaderClosedError if it was set."""
        if self._event.is_set():
            raise LoaderClosedError("the read was given up: who asked for it was closed")


_current: ContextVar[Stop | None] = ContextVar("shardload_stop", default=None)
_never = Stop()


def _renew_never() -> None:
    """A lock that another thread of the parent held when it forked is never released in the child."""
    _never._lock, _never._event, _never._calls = threading.Lock(), threading.Event(), {}


os.register_at_fork(after_in_child=_renew_never)


def current_stop(otherwise: Stop = _never) -> Stop:
    """Returns what may end the waits of this thread; where nothing was said, one that is given, or that nobody sets.

    Threads that work on behalf of others get it from those.
    """
    return _current.get() or otherwise


def heed(stop: Stop) -> None:
    """Has this thread's waits, or those of this context, end when something is set: for threads that read for one loader."""
    _current.set(stop)


@contextlib.contextmanager
def heeding(stop: Stop) -> Iterator[None]:
    """Has this thread's waits end when something is set, for as long as the block runs."""
    token = _current.set(stop)
    try:
        yield
    finally:
        _current.reset(token)


_seconds: ContextVar[float | None] = ContextVar("shardload_seconds", default=None)


def attempt_seconds() -> float | None:
    """Returns how long the attempt that this thread is making may take in all; None where nothing bounds it.

    A storage that makes one attempt a call raises `Kind.STALLED` when they are over.
    """
    return _seconds.get()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Bounds what one attempt may take, for as long as the block runs."""
    token = _seconds.set(seconds)
    try:
        yield
    finally:
        _seconds.reset(token)
