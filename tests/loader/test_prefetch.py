"""The thread that works ahead is woken in time, whatever bounds what waits. Its own look every few seconds is put off here."""

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


@pytest.fixture(autouse=True, scope="module")
def nobody_looks_by_itself() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHECK_SECONDS", LONG)
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
        """Whether there is no room, or less than a quarter of what bounds it: then nobody need be woken yet."""
        found = waiting(num_taken)
        few = found <= max_items - max(1, max_items // 4) and found * size <= max_bytes - max_bytes // 4
        return found == most or (found > 0 and not few)

    for num_taken in range(2 * most + 2):
        end = time.monotonic() + 20
        while not filled(num_taken) and time.monotonic() < end:
            time.sleep(0.001)
        assert filled(num_taken), "nobody was woken"
        assert waiting(num_taken) <= most
        assert prefetcher.take() == num_taken + 1
    within(lambda: prefetcher.close() or True)


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
