"""Announcements beside the caller, and reads that come after those of their samples."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from shardload.reader import later as later_module
from shardload.reader.later import Later
from shardload.reader.requests import in_turn
from shardload.storage.stopping import Stop, heeding

WAIT = 20


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@contextmanager
def held(turn: int = 1) -> Iterator[tuple[Later, threading.Event]]:
    """One that is announcing samples 3 and 1 in a turn until an event is set."""
    later, begun, go_on = Later(), threading.Event(), threading.Event()

    def announce() -> None:
        begun.set()
        assert go_on.wait(WAIT)
        raise OSError("which is dropped")

    with in_turn(turn):
        later.call(ids(3, 1), announce)
    assert begun.wait(WAIT)
    try:
        yield later, go_on
    finally:
        go_on.set()
        assert later.settle(WAIT)
        later.close()


def reading(later: Later, sample_ids: np.ndarray, turn: int = 1, stop: Stop | None = None) -> threading.Thread:
    """A thread that reads; it waits when this returns, or has ended."""

    def read() -> None:
        with in_turn(turn), heeding(stop or Stop()):
            later.let_pass(sample_ids)

    thread = threading.Thread(target=read)
    thread.start()
    # A wait is known by its place in the condition's list.
    while thread.is_alive() and not later._changed._waiters:  # type: ignore[attr-defined]
        thread.join(0.001)
    return thread


def test_a_read_waits_until_its_samples_were_announced_even_in_vain() -> None:
    with held() as (later, go_on):
        thread = reading(later, ids(0, 1, 9))
        assert thread.is_alive()
        go_on.set()
        thread.join(WAIT)
        assert not thread.is_alive()


def test_others_do_not_wait() -> None:
    with held() as (later, _):
        for sample_ids, turn in ((ids(0, 2, 4, 9), 1), (ids(3), 2), (ids(), 1)):
            thread = reading(later, sample_ids, turn)
            thread.join(WAIT)
            assert not thread.is_alive()


def test_nor_does_who_reads_what_nobody_announced_take_a_lock() -> None:
    later = Later()
    with later._changed:
        thread = threading.Thread(target=later.let_pass, args=(ids(1),))
        thread.start()
        thread.join(WAIT)
        assert not thread.is_alive()


ENDS: dict[str, Callable[[Later, Stop], object]] = {
    "the loader is closed": lambda later, stop: stop.set(),
    "nothing more is announced": lambda later, stop: later.close(),
    "it is left out": lambda later, stop: [later.call(ids(7), int) for _ in range(later_module._MOST_WAITING)],
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_nobody_waits_for_what_will_not_be_announced(end: Callable[[Later, Stop], object]) -> None:
    with held() as (later, _):
        stop = Stop()
        with in_turn(1):
            later.call(ids(5), int)
        thread = reading(later, ids(5), stop=stop)
        assert thread.is_alive()
        end(later, stop)
        thread.join(WAIT)
        assert not thread.is_alive()


def test_a_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_module, "_MOST_SECONDS", 0.01)
    with held() as (later, _):
        thread = reading(later, ids(1))
        thread.join(WAIT)
        assert not thread.is_alive()


def test_without_a_thread_nothing_is_announced_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    later = Later()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        later.call(ids(1), int)
    later.let_pass(ids(1))
    called = threading.Event()
    later.call(ids(1), called.set)
    assert called.wait(WAIT)
    later.close()
