"""The thread that works ahead is woken in time, whatever bounds what waits. The looks it takes by itself are put off here."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardload.errors import LoaderClosedError
from shardload.loader import prefetch as module
from shardload.loader.prefetch import Prefetcher

LONG = 60.0
PAUSE = module.pause


@pytest.fixture(autouse=True, scope="module")
def nobody_looks_by_itself() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHECK_SECONDS", LONG)
        patch.setattr(module, "pause", lambda *facts: LONG)
        yield


def within(work: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `work` returns; fails where it has not ended after so many seconds."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "nobody was woken"
    return result[0]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(0, 60), max_size=80),
    st.integers(1, 9),
    st.integers(0, 120),
    st.sampled_from(["even", "slow maker", "slow taker", "in turns"]),
)
def test_all_items_come(sizes: list[int], max_items: int, max_bytes: int, pace: str) -> None:
    rng = random.Random(len(sizes))

    def items() -> Iterator[tuple[int, int]]:
        for number, size in enumerate(sizes):
            if pace == "slow maker" or (pace == "in turns" and rng.random() < 0.1):
                time.sleep(0.0005)
            yield number, size

    prefetcher = Prefetcher(items(), lambda item: item[1], max_items, max_bytes)

    def taken() -> list[tuple[int, int]]:
        found = []
        while True:
            if pace == "slow taker" or (pace == "in turns" and len(found) % 7 == 3):
                time.sleep(0.0005)
            try:
                found.append(prefetcher.take())
            except StopIteration:
                return found

    assert within(taken) == list(enumerate(sizes))
    prefetcher.close()


@pytest.mark.parametrize("max_items", [1, 2, 3, 4, 8, 32])
@pytest.mark.parametrize(("size", "max_bytes"), [(1, 1 << 20), (10, 35), (10, 10), (10, 5), (30, 100)])
def test_work_begins_again_before_the_last_item_is_taken(max_items: int, size: int, max_bytes: int) -> None:
    """Wherever two or more may wait, a loop that takes them one by one finds another when it comes back."""
    num_made = 0

    def items() -> Iterator[int]:
        nonlocal num_made
        while True:
            num_made += 1
            yield num_made

    prefetcher = Prefetcher(items(), lambda item: size, max_items, max_bytes)
    most = max(1, min(max_items, max_bytes // size))

    def waiting(num_taken: int) -> int:
        # One more than may wait is in the hand of who makes them.
        return num_made - 1 - num_taken

    def filled(num_taken: int) -> bool:
        """Whether there is no room, or less than half of what bounds it: then nobody need be woken yet."""
        return waiting(num_taken) > most // 2

    for num_taken in range(2 * most + 2):
        end = time.monotonic() + 20
        while not filled(num_taken) and time.monotonic() < end:
            time.sleep(0.001)
        assert filled(num_taken), "nobody was woken"
        assert waiting(num_taken) <= most
        assert prefetcher.take() == num_taken + 1
    within(lambda: prefetcher.close() or True)


@pytest.mark.parametrize(("max_items", "num_takes"), [(1, 1), (2, 1), (3, 2), (4, 2), (8, 4), (32, 16)])
def test_a_loop_wakes_nobody_before_it_has_taken_half(max_items: int, num_takes: int) -> None:
    """To wake a thread takes longer than all else that it waits for in `next`."""
    woken: list[int] = []

    class Room:
        """As the queue's own; each `get` ends at once, as if it was time for a look."""

        def put(self, word: None) -> None:
            woken.append(items._num_taken)

        def get(self, timeout: float) -> None:
            looked.set()
            done.wait(LONG)

    looked, done = threading.Event(), threading.Event()
    items = module._Queue[int](lambda item: 1, max_items, 1000)
    items._room = Room()  # type: ignore[assignment]
    maker = threading.Thread(target=lambda: [items.put(i) for i in range(max_items + 1)], daemon=True)
    maker.start()
    assert looked.wait(20)
    for _ in range(num_takes):
        assert not woken
        items.take(maker)
    assert woken == [num_takes]
    done.set()


def test_a_look_is_due_half_way_between_two_takes() -> None:
    assert PAUSE(0.0, 1.0, 4) == 1.5 and PAUSE(0.5, 1.0, 4) == 1.0
    assert PAUSE(0.0, 1.0, 1) == 1.5 and PAUSE(0.25, 0.5, 32) == 4.0


@given(st.floats(0, 1e3), st.floats(0, 1e3), st.integers(1, 64))
def test_looks_at_a_loop_that_is_late_come_ever_more_seldom(since_taken: float, pace: float, num_waiting: int) -> None:
    assert PAUSE(since_taken, pace, num_waiting) >= since_taken
    assert PAUSE(2000 + since_taken, pace / 100, num_waiting) == 2000 + since_taken


def test_the_pace_is_that_of_the_takes_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, float, int]] = []
    monkeypatch.setattr(module, "pause", lambda *facts: told.append(facts) or LONG)
    now = 100.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    items = module._Queue[int](lambda item: 1, 8, 1000)
    for item in range(8):
        items.put(item)
    items._pause()
    for now in (101.0, 103.0, 106.0):  # noqa: B007
        items.take(threading.current_thread())
    now = 108.0
    items._pause()
    for now in (109.0, 114.0):  # noqa: B007
        items.take(threading.current_thread())
    items._pause()
    assert told == [(0.0, 0.0, 8), (2.0, 2.0, 5), (0.0, 4.0, 3)]


@pytest.mark.parametrize("max_items", [1, 2, 3])
def test_closing_wakes_both_sides(max_items: int) -> None:
    blocked = Prefetcher(iter(range(100)), lambda item: 1, max_items, 1000)
    time.sleep(0.02)
    within(lambda: blocked.close() or True)
    assert not blocked._thread.is_alive()

    never = threading.Event()

    def none() -> Iterator[int]:
        never.wait(20)
        yield from ()

    starving = Prefetcher(none(), lambda item: 1, max_items, 1000)

    def refused() -> bool:
        with pytest.raises(LoaderClosedError):
            starving.take()
        return True

    closing = threading.Timer(0.05, starving.close)
    closing.start()
    try:
        assert within(refused)
    finally:
        never.set()
        closing.join()


@pytest.mark.parametrize("max_items", [1, 2, 3, 8])
def test_an_error_comes_in_its_turn(max_items: int) -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise OSError("broken")

    prefetcher = Prefetcher(items(), lambda item: 1, max_items, 3)

    def taken() -> list[int]:
        found = []
        with pytest.raises(OSError, match="broken"):
            while True:
                found.append(prefetcher.take())
        return found

    assert within(taken) == list(range(10))
    prefetcher.close()


def test_who_waits_is_told_of_the_end_whatever_is_put_meanwhile() -> None:
    """Closed by another thread right before an item is put: what tells the waiting loop must not go with the item."""

    class Closing(module._Queue[int]):
        def _full(self, size: int) -> bool:
            self.close()
            return False

    items = Closing(lambda item: 1, 3, 1000)
    assert not items.put(1)
    assert isinstance(items._items.get_nowait(), module._End)
