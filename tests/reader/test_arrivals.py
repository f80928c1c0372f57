"""Announced bytes: right, fetched once, bounded in memory, dropped when they were read or passed over."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.errors import StorageError
from shardload.planner import CHEAP_GAP_BYTES
from shardload.reader import arrivals as arrivals_module
from shardload.reader.arrivals import Arrivals
from shardload.reader.gauge import Gauge
from shardload.reader.requests import Parts, in_turn
from shardload.storage.answers import UnavailableError
from shardload.storage.stopping import Stop, heeding

WAIT = 20
SHARD_BYTES = 4 << 20
DATA = [np.random.default_rng(number).bytes(SHARD_BYTES) for number in range(2)]


class Store:
    """What `Arrivals` fetches from; notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.error: Exception | None = None
        self.open = threading.Event()
        """Answers come while it is set."""
        self.open.set()
        self.most_held = 0
        self.most_running = self.running = 0
        self.arrivals: Arrivals | None = None
        self.lock = threading.Lock()
        self.begun = threading.Semaphore(0)

    def fetch(self, shard_id: int, start: int, data: memoryview) -> None:
        with self.lock:
            self.asked.append((shard_id, start, start + len(data)))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            assert self.arrivals is not None
            self.most_held = max(self.most_held, self.arrivals._held_bytes)
        self.begun.release()
        assert self.open.wait(3 * WAIT)
        with self.lock:
            self.running -= 1
        if self.error is not None:
            raise self.error
        data[:] = DATA[shard_id][start : start + len(data)]


@contextmanager
def arriving(**limits: int) -> Iterator[tuple[Store, Arrivals]]:
    store = Store()
    store.arrivals = Arrivals(store.fetch, **limits)
    try:
        yield store, store.arrivals
    finally:
        store.open.set()
        store.arrivals.close()


def announce(arrivals: Arrivals, places: list[tuple[int, int, int]], urgent: bool = False) -> None:
    columns = np.array(places, dtype=np.int64).reshape(-1, 3).T
    arrivals.announce(columns[0], columns[1], columns[2] - columns[1], urgent=urgent)


def read(arrivals: Arrivals, places: list[tuple[int, int, int]]) -> list[bytes]:
    if places:
        announce(arrivals, places, urgent=True)
    found, taken = arrivals.views(places)
    copied = [b"".join(pieces) for pieces in found]
    arrivals.used(taken)
    return copied


PLACES = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, SHARD_BYTES - 1), st.integers(1, 90_000)).map(
        lambda place: (place[0], place[1], min(SHARD_BYTES, place[1] + place[2]))
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["announce", "read", "discard"]), PLACES), max_size=12))
def test_any_reads_give_the_bytes_of_the_store(steps: list[tuple[str, list[tuple[int, int, int]]]]) -> None:
    with arriving(max_held_bytes=300_000, max_requests=8) as (store, arrivals):
        for what, places in steps:
            if what == "announce":
                # So that what is announced next, or read, may be on its way by what was announced before.
                store.open.clear()
                announce(arrivals, places)
            elif what == "discard":
                for place in places:
                    arrivals.discard(*place)
            else:
                store.open.set()
                assert read(arrivals, places) == [DATA[shard_id][start:stop] for shard_id, start, stop in places]
        assert store.most_running <= 8
        # What is there is disjoint, and in order.
        announced = arrivals._announced._spans
        for shard_id, starts in announced._starts.items():
            spans = announced._spans[shard_id]
            assert starts == [span.start for span in spans] == sorted(starts)
            assert all(a.stop <= b.start for a, b in itertools.pairwise(spans))


def test_what_was_announced_is_fetched_once_and_dropped_when_it_was_read() -> None:
    places = [(0, start, start + 100_000) for start in range(0, 3_000_000, 250_000)]
    with arriving() as (store, arrivals):
        announce(arrivals, places)
        announce(arrivals, places)
        got: list[list[bytes]] = []
        threads = [threading.Thread(target=lambda: got.append(read(arrivals, places))) for _ in range(4)]
        store.open.clear()
        for thread in threads:
            thread.start()
        store.open.set()
        for thread in threads:
            thread.join(WAIT)
        assert got == [[DATA[0][start:stop] for _, start, stop in places]] * 4
        assert sum(stop - start for _, start, stop in store.asked) <= 4 * 1.1 * sum(b - a for _, a, b in places)
        assert not arrivals._held_bytes and not arrivals._arrived and not arrivals._announced


def test_of_what_is_there_nothing_is_planned_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [(0, start, start + 50_000) for start in range(0, 500_000, 50_000)]
    with arriving() as (store, arrivals):
        announce(arrivals, places)
        read(arrivals, places[:1])
        arrivals.views(places[1:])
        num_asked, planned = len(store.asked), list[int]()
        real = arrivals._announce
        monkeypatch.setattr(
            arrivals, "_announce", lambda some, urgent: (planned.append(len(some)), real(some, urgent))[1]
        )
        for place in places[1:]:
            found, taken = arrivals.views([place])
            assert b"".join(found[0]) == DATA[0][place[1] : place[2]]
            arrivals.used(taken)
        assert not planned and len(store.asked) == num_asked
        # What is not there is asked for together, from the first of it on.
        found, taken = arrivals.views([(1, 0, 0), *((1, start, start + 10) for start in range(0, 3 << 20, 1 << 18))])
        assert [len(b"".join(pieces)) for pieces in found] == [0] + 12 * [10]
        assert planned == [12]
        arrivals.used(taken)


def test_parts_that_were_read_leave_the_rest() -> None:
    with arriving() as (store, arrivals):
        announce(arrivals, [(0, 1000, 5000)])
        for place in [(0, 3000, 4000), (0, 1000, 2000), (0, 3500, 5000), (0, 1500, 2500)]:
            assert read(arrivals, [place]) == [DATA[0][place[1] : place[2]]]
        assert arrivals._held_bytes == 4000
        assert read(arrivals, [(0, 2500, 3000)]) == [DATA[0][2500:3000]]
        assert not arrivals._held_bytes and len(store.asked) == arrivals.num_requests == 1


def test_gaps_are_not_kept() -> None:
    gap = CHEAP_GAP_BYTES // 2
    with arriving() as (store, arrivals):
        announce(arrivals, [(1, 0, 100), (1, 100 + gap, 200 + gap)])
        assert read(arrivals, [(1, 50, 100)]) == [DATA[1][50:100]]
        assert store.asked == [(1, 0, 200 + gap)]
        assert arrivals._held_bytes == 200 and arrivals.requested_bytes == 200 + gap


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("urgent", [True, False])
def test_what_lies_in_a_request_on_its_way_comes_by_it(waits: bool, urgent: bool) -> None:
    with arriving(max_requests=1 if waits else 8) as (store, arrivals):
        store.open.clear()
        announce(arrivals, [(1, 0, 10)])
        assert store.begun.acquire(timeout=WAIT)
        # Between them is less than a request costs.
        announce(arrivals, [(0, 0, 10_000), (0, 70_000, 200_000)])
        assert waits or store.begun.acquire(timeout=WAIT)
        # Of the last some bytes lie beyond it.
        announce(arrivals, [(0, 20_000, 50_000), (0, 60_000, 70_000), (0, 190_000, 210_000)], urgent=urgent)
        store.open.set()
        for place in [(0, 20_000, 50_000), (0, 0, 10_000), (0, 60_000, 200_000), (0, 200_000, 210_000), (1, 0, 10)]:
            assert read(arrivals, [place]) == [DATA[place[0]][place[1] : place[2]]]
        asked = sorted(store.asked)
        assert asked == [(0, 0, 200_000), (0, 200_000, 210_000), (1, 0, 10)]
        assert not arrivals._announced and not arrivals._held_bytes


@pytest.mark.parametrize("waits", [True, False])
def test_nothing_is_left_to_a_request_that_nobody_wants_any_more(waits: bool) -> None:
    stop = Stop()
    with arriving(max_requests=1) as (store, arrivals):
        store.open.clear()
        announce(arrivals, [(1, 0, 10)])
        assert store.begun.acquire(timeout=WAIT)
        with heeding(stop):
            announce(arrivals, [(0, 0, 10_000), (0, 70_000, 200_000)])
        if not waits:
            # It has its turn, is found to be unwanted, and goes.
            store.open.set()
            read(arrivals, [(1, 0, 10)])
        stop.set()
        store.open.set()
        assert read(arrivals, [(0, 20_000, 50_000)]) == [DATA[0][20_000:50_000]]
        read(arrivals, [(1, 0, 10)])


class Kept:
    """Keeps everything before a place, and has requests reach to the ends of what is twice as long."""

    def __init__(self, stop: int) -> None:
        self.stop = stop
        self.asked: list[list[tuple[int, int, int]]] = []

    def lacking(self, places):
        self.asked.append(list(places))
        return [place for place in places if place[2] > self.stop]

    def reached(self, requests, worth):
        return [(shard_id, start, stop + (stop - start)) for shard_id, start, stop in requests]


def test_what_is_kept_meanwhile_is_not_fetched_but_for_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals_module, "_PART_PLACES", 2)
    monkeypatch.setattr(arrivals_module, "_GOLDEN", 0.0)
    places, keeper = [(0, start, start + 100) for start in range(0, 1_200_000, 200_000)], Kept(500_000)
    store = Store()
    store.arrivals = arrivals = Arrivals(store.fetch, keeper=keeper)
    announce(arrivals, places)
    assert keeper.asked == [places[:2], places[2:4], places[4:]]
    others = places[3:]
    assert read(arrivals, others) == [DATA[0][start:stop] for _, start, stop in others]
    # Each reaches as far as it was told to.
    assert sorted(store.asked) == [(0, start, start + 200) for _, start, _ in others]
    assert read(arrivals, places[:3]) == [DATA[0][start:stop] for _, start, stop in places[:3]]
    assert sorted(store.asked) == [(0, start, start + 200) for _, start, _ in places] and len(keeper.asked) == 3
    assert not arrivals._held_bytes and not arrivals._announced
    arrivals.close()


def test_of_what_comes_in_part_the_rest_comes_too() -> None:
    store = Store()
    store.arrivals = arrivals = Arrivals(store.fetch, keeper=Kept(131_072))
    store.open.clear()
    announce(arrivals, [(0, 131_072, 262_144)])
    assert store.begun.acquire(timeout=WAIT)
    announce(arrivals, [(0, 130_000, 140_000)])
    assert arrivals.holds([(0, 130_000, 140_000)]) == [True]
    store.open.set()
    assert read(arrivals, [(0, 130_000, 140_000)]) == [DATA[0][130_000:140_000]]
    arrivals.close()


def test_processes_that_share_what_is_kept_begin_at_different_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals_module, "_PART_PLACES", 2)
    monkeypatch.setattr(arrivals_module, "_GOLDEN", 0.5 / os.getpid())
    places, store = [(0, start, start + 100) for start in range(0, 1_400_000, 200_000)], Store()
    store.arrivals = arrivals = Arrivals(store.fetch, max_requests=1, keeper=Kept(0))
    announce(arrivals, places)
    for _ in places:
        assert store.begun.acquire(timeout=WAIT)
    assert read(arrivals, places) == [DATA[0][start:stop] for _, start, stop in places]
    assert [start for _, start, _ in store.asked] == [start for _, start, _ in places[3:] + places[:3]]
    arrivals.close()


def test_memory_is_bounded_and_all_comes_nevertheless() -> None:
    places = [(0, start, start + 50_000) for start in range(0, 4_000_000, 200_000)]
    with arriving(max_held_bytes=120_000, max_requests=4) as (store, arrivals):
        for place in places:
            announce(arrivals, [place])
        for place in places:
            assert read(arrivals, [place]) == [DATA[0][place[1] : place[2]]]
        # What somebody waits for comes also where there is no room: one request.
        assert store.most_held <= 120_000 + 50_000
        assert len(store.asked) == len(places)


def test_all_that_has_room_again_is_fetched_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals_module, "_IDLE_SECONDS", 0.01)
    first, later = ([(shard_id, at, at + 10_000) for at in range(0, 2_000_000, 200_000)] for shard_id in (0, 1))
    with arriving(max_held_bytes=100_000, max_requests=16) as (store, arrivals):
        # By halves: there is room for twice the largest announcement in any case.
        for half in (first[:5], first[5:]):
            announce(arrivals, half)
        _, taken = arrivals.views(first)
        for _ in first:
            assert store.begun.acquire(timeout=WAIT)
        store.open.clear()
        for half in (later[:5], later[5:]):
            announce(arrivals, half)
        assert not store.begun.acquire(blocking=False)
        for thread in threading.enumerate():
            if thread.name == "shardload-fetch":
                thread.join(WAIT)
        assert not arrivals._num_threads and not store.begun.acquire(blocking=False)
        arrivals.used(taken)
        # None of them has come yet.
        for _ in later:
            assert store.begun.acquire(timeout=WAIT)


def test_a_run_that_was_left_does_not_hold_the_room_for_ever() -> None:
    left = [(0, start, start + 50_000) for start in range(0, 1_000_000, 200_000)]
    later = [(1, start, start + 50_000) for start in range(0, 4_000_000, 200_000)]
    with arriving(max_held_bytes=100_000, max_requests=4) as (store, arrivals):
        for place in left:
            announce(arrivals, [place])
        for _ in range(2):
            assert store.begun.acquire(timeout=WAIT)
        for place in later[:17]:
            announce(arrivals, [place])
            read(arrivals, [place])
        while store.begun.acquire(blocking=False):
            pass
        # There is room again: more is fetched before anyone reads it, and the rest of what was left never.
        announce(arrivals, later[17:18])
        assert store.begun.acquire(timeout=WAIT)
        assert store.asked[-1] == later[17]
        assert sum(shard_id == 0 for shard_id, _, _ in store.asked) == 2


def test_who_reads_what_a_run_that_was_left_had_asked_for_asks_for_it_anew() -> None:
    left = [(0, start, start + 200_000) for start in range(0, 1_000_000, 200_000)]
    later = [(1, start, start + 50_000) for start in range(0, 4_000_000, 200_000)]
    with arriving(max_held_bytes=300_000, max_requests=4) as (store, arrivals):
        for place in left:
            announce(arrivals, [place])
        for place in later[:18]:
            announce(arrivals, [place])
            read(arrivals, [place])
        # Nobody has it fetched any more.
        assert left[3] not in store.asked
        assert read(arrivals, [(0, 700_000, 700_010)]) == [DATA[0][700_000:700_010]]
        assert store.asked[-1] == (0, 700_000, 700_010)


def test_failures_are_told_to_who_reads() -> None:
    places = [(0, 0, 1000)]
    with arriving() as (store, arrivals):
        store.error = StorageError("no")
        announce(arrivals, places)
        assert store.begun.acquire(timeout=WAIT)
        with pytest.raises(StorageError, match="no"):
            for _ in range(2):
                read(arrivals, places)
        assert not arrivals._announced and not arrivals._held_bytes
        store.error = None
        assert read(arrivals, places) == [DATA[0][:1000]]


def test_what_was_announced_and_could_not_be_had_is_asked_for_again_after_its_reader_was_told(monkeypatch) -> None:
    places = [(0, 0, 1000)]
    with arriving() as (store, arrivals):
        store.error = UnavailableError("gave up")
        for told in (True, False):
            announce(arrivals, places)
            assert store.begun.acquire(timeout=WAIT)
            with arrivals._changed:
                assert arrivals._changed.wait_for(lambda: not arrivals._num_running, WAIT)
            asked = len(store.asked)
            if told:
                with pytest.raises(UnavailableError, match="gave up"):
                    read(arrivals, places)
                assert len(store.asked) == asked
            else:
                # So long after that it may go well by now.
                monkeypatch.setattr("shardload.reader.arrivals._FAILED_SECONDS", 0.0)
                store.error = None
                assert read(arrivals, places) == [DATA[0][:1000]] and len(store.asked) == asked + 1
        assert not arrivals._announced and not arrivals._held_bytes and not arrivals._arrived


def test_an_error_is_told_of_no_sooner_than_its_request_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with arriving() as (store, arrivals):
        store.error, real, early = UnavailableError("gave up"), arrivals._fetched, list[Exception]()

        def fetched(request):
            data = real(request)
            try:
                arrivals._there(0, 0, False)
            except UnavailableError as error:
                early.append(error)
            return data

        monkeypatch.setattr(arrivals, "_fetched", fetched)
        announce(arrivals, [(0, 0, 1000)])
        assert store.begun.acquire(timeout=WAIT)
        with arrivals._changed:
            assert arrivals._changed.wait_for(lambda: not arrivals._num_running, WAIT)
        # One that stays with nothing to be read would never be dropped, and looked at again and again when there is no room.
        assert not early and [len(request.spans) for request in arrivals._arrived] == [1]
        with pytest.raises(UnavailableError, match="gave up"):
            read(arrivals, [(0, 0, 1000)])
        assert not arrivals._announced and not arrivals._arrived


def test_what_others_read_and_announced_anew_while_it_was_waited_for_is_hurried_again() -> None:
    with arriving(max_held_bytes=1000, max_requests=8) as (store, arrivals):
        first, second = (0, 0, 100), (1, 0, 100)
        real, answered = store.fetch, threading.Event()

        def fetch(shard_id: int, start: int, data: memoryview) -> None:
            assert shard_id or answered.wait(WAIT)
            real(shard_id, start, data)

        arrivals._fetch = fetch
        got = list[list[bytes]]()

        def read_both() -> None:
            found, taken = arrivals.views([first, second])
            got.append([b"".join(pieces) for pieces in found])
            arrivals.used(taken)

        reader = threading.Thread(target=read_both)
        reader.start()
        assert store.begun.acquire(timeout=WAIT)
        read(arrivals, [second])
        announce(arrivals, [(1, 500_000, 503_000)])
        assert store.begun.acquire(timeout=WAIT)
        # For this there is no room beside the others, nor is there for what comes after it.
        announce(arrivals, [(1, 1_000_000, 1_003_000)])
        announce(arrivals, [second])
        answered.set()
        reader.join(WAIT)
        assert not reader.is_alive() and got == [[DATA[0][:100], DATA[1][:100]]]


def test_what_was_found_damaged_does_not_come_by_a_request_that_was_on_its_way() -> None:
    with arriving() as (store, arrivals):
        announce(arrivals, [(0, 100_000, 101_000)])
        assert store.begun.acquire(timeout=WAIT)
        read(arrivals, [(0, 100_000, 100_010)])
        store.open.clear()
        announce(arrivals, [(0, 60_000, 100_000), (0, 101_000, 210_000)])
        assert store.begun.acquire(timeout=WAIT) and store.asked[1] == (0, 60_000, 210_000)
        # That one may have taken it from where the damaged bytes were kept.
        arrivals.discard(0, 100_000, 101_000)
        announce(arrivals, [(0, 100_000, 101_000)])
        assert store.begun.acquire(timeout=WAIT) and store.asked[2] == (0, 100_000, 101_000)
        store.open.set()
        assert read(arrivals, [(0, 60_000, 210_000)]) == [DATA[0][60_000:210_000]]


def test_what_is_waited_for_comes_before_what_was_announced() -> None:
    with arriving(max_requests=1) as (store, arrivals):
        store.open.clear()
        announce(arrivals, [(0, start, start + 1000) for start in range(0, 2_000_000, 500_000)])
        assert store.begun.acquire(timeout=WAIT)
        reader = threading.Thread(target=lambda: read(arrivals, [(1, 7, 9), (0, 1_500_000, 1_500_500)]))
        reader.start()
        with arrivals._changed:
            assert arrivals._changed.wait_for(lambda: len(arrivals._urgent) >= 2, WAIT) or arrivals._urgent
        store.open.set()
        reader.join(WAIT)
        assert not reader.is_alive()
        assert {place[:2] for place in store.asked[1:3]} == {(1, 7), (0, 1_500_000)}


def test_threads_end_when_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals_module, "_IDLE_SECONDS", 0.05)
    with arriving(max_requests=5) as (_, arrivals):
        read(arrivals, [(0, start, start + 10) for start in range(0, 4_000_000, 300_000)])
        threads = [thread for thread in threading.enumerate() if thread.name == "shardload-fetch"]
        assert len(threads) <= 5
        for thread in threads:
            thread.join(WAIT)
            assert not thread.is_alive()
        assert arrivals._num_threads == arrivals._num_idle == 0
        assert read(arrivals, [(1, 5, 9)]) == [DATA[1][5:9]]


def test_a_thread_that_cannot_be_started_leaves_no_reader_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    start, num_started = threading.Thread.start, itertools.count()

    def refused(thread: threading.Thread) -> None:
        if thread.name == "shardload-fetch" and next(num_started) >= most:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    places = [(0, begin, begin + 10) for begin in range(0, 4_000_000, 500_000)]
    for most in (0, 1):
        num_started = itertools.count()
        with arriving() as (_, arrivals):
            if not most:
                with pytest.raises(StorageError, match="no thread can be started to fetch with"):
                    read(arrivals, places)
                most = 1
                num_started = itertools.count()
            # One thread does what more would have done.
            assert read(arrivals, places) == [DATA[0][begin:end] for _, begin, end in places]


@pytest.mark.parametrize(("latency", "speed"), [(0.02, 100e6), (0.2, 20e6), (0.001, 1e9)])
def test_the_cost_of_requests_is_found(latency: float, speed: float) -> None:
    gauge, rng = Gauge(), np.random.default_rng(0)
    for num_bytes in rng.integers(4096, 8 << 20, 400).tolist():
        gauge.note(num_bytes, (latency + num_bytes / speed) * float(rng.uniform(0.98, 1.02)))
    assert gauge.bytes_per_second == pytest.approx(speed, rel=0.05)
    assert gauge.latency_seconds == pytest.approx(latency, rel=0.25)
    assert gauge.worth.request_bytes == pytest.approx(latency * speed, rel=0.3)


def test_what_two_passes_need_is_kept_for_both() -> None:
    place = (0, 1000, 9000)
    with arriving() as (store, arrivals):
        for turn in (3, 4):
            with in_turn(turn):
                # However often: each pass reads it once.
                announce(arrivals, [place])
                announce(arrivals, [place])
        for turn, left in ((3, 8000), (4, 0)):
            with in_turn(turn):
                for part in [(0, 1000, 4000), (0, 4000, 9000)]:
                    assert read(arrivals, [part]) == [DATA[0][part[1] : part[2]]]
            assert arrivals._held_bytes == left
        assert store.asked == [place]


def test_who_reads_for_no_pass_reads_for_all() -> None:
    with arriving() as (store, arrivals):
        for turn in (0, 1):
            with in_turn(turn):
                announce(arrivals, [(0, 0, 5000)])
        assert read(arrivals, [(0, 0, 5000)]) == [DATA[0][:5000]]
        assert not arrivals._held_bytes and len(store.asked) == 1


def test_only_what_is_still_to_be_read_is_held() -> None:
    """A request of neighbours of which most were read does not keep its memory for the others."""
    places = [(0, start, start + 1000) for start in range(0, 100_000, 1010)]
    with arriving() as (store, arrivals):
        announce(arrivals, places)
        read(arrivals, places[3:4])
        assert arrivals._held_bytes == store.asked[0][2] - store.asked[0][1]
        read(arrivals, places[4:])
        assert len(store.asked) == 1 and arrivals._held_bytes == 3000
        assert read(arrivals, places[:3]) == [DATA[0][start:stop] for _, start, stop in places[:3]]
        assert not arrivals._held_bytes


def test_all_that_somebody_waits_for_is_asked_for_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what had been announced and found no room, by when most threads had ended."""
    monkeypatch.setattr(arrivals_module, "_IDLE_SECONDS", 0.01)
    places = [(0, start, start + 10_000) for start in range(0, 4_000_000, 400_000)]
    with arriving(max_held_bytes=15_000, max_requests=16) as (store, arrivals):
        for place in places:
            announce(arrivals, [place])
        for number in range(2):
            assert store.begun.acquire(timeout=WAIT), number
        for thread in threading.enumerate():
            if thread.name == "shardload-fetch":
                thread.join(WAIT)
        store.open.clear()
        reader = threading.Thread(target=read, args=(arrivals, places))
        reader.start()
        # None of them has come yet.
        for number in range(2, len(places)):
            assert store.begun.acquire(timeout=WAIT), number
        store.open.set()
        reader.join(WAIT)
        assert not reader.is_alive() and len(store.asked) == len(places)


def test_reads_of_their_own_do_not_pass_over_what_was_announced() -> None:
    """Each read has something that was not announced; what was, a while ago, is still to come."""
    early = [(0, start, start + 1000) for start in range(0, 4_000_000, 100_000)]
    with arriving(max_held_bytes=60_000) as (store, arrivals):
        for place in early:
            announce(arrivals, [place])
        for number, place in enumerate(early[:30]):
            announce(arrivals, [(1, number * 100_000, number * 100_000 + 10)])
            read(arrivals, [place, (1, number * 100_000 + 50_000, number * 100_000 + 50_500)])
        # There is no room for all of these.
        more = [(1, start, start + 20_000) for start in (3_500_000, 3_600_000, 3_700_000)]
        for place in more:
            announce(arrivals, [place])
        read(arrivals, more)
        for place in early[30:]:
            read(arrivals, [place])
        assert all(store.asked.count(place) == 1 for place in early)


def test_what_is_announced_late_for_a_loader_that_is_closed_is_not_fetched() -> None:
    stop = Stop()
    stop.set()
    with arriving() as (store, arrivals), heeding(stop):
        announce(arrivals, [(0, 0, 1000)])
        assert not arrivals._announced and not store.asked


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(1, 9)), max_size=12))
def test_parts_are_those_that_were_added_and_not_removed(steps: list[tuple[bool, int, int]]) -> None:
    parts, want = Parts(4, 9), set(range(4, 9))
    for added, start, length in steps:
        (parts.add if added else parts.remove)(start, start + length)
        some = set(range(start, start + length))
        want = want | some if added else want - some
        found = [number for low, high in zip(parts._starts, parts._stops, strict=True) for number in range(low, high)]
        assert found == sorted(want)
        assert all(parts.cover(n, n + 2) == ({n, n + 1} <= want) for n in range(30))
