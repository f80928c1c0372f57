"""Bytes that were announced: on their way from a store, or there and waiting to be read. Bounded; what was read is dropped."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from shardload.errors import StorageError
from shardload.planner import join_ranges, plan_requests
from shardload.reader.announced import Announced
from shardload.reader.extents import Keeper
from shardload.reader.gauge import Gauge
from shardload.reader.requests import (
    DONE,
    RUNNING,
    WAITING,
    Place,
    Request,
    Span,
    columns_of,
    current_turn,
    giving_way,
)
from shardload.storage.answers import UnavailableError
from shardload.storage.stopping import Stop, current_stop, heeding

Int64 = NDArray[np.int64]
Fetch = Callable[[int, int, memoryview], None]
"""Shard, first byte, memory to be filled; raises what is wrong."""

MAX_REQUESTS = 64
"""Requests at a time: so many hide a latency that is as many times the time of one."""
MAX_HELD_BYTES = 256 << 20
"""Bytes that were announced and may be held or on their way; twice the largest announcement if that is more."""
_IDLE_SECONDS = 0.2
_CHECK_SECONDS = 5.0
_PASSED_READS = 16
"""What was announced before all of the last so many reads' bytes has been passed over."""
_PART_PLACES = 512
_PAUSE_SECONDS = 0.003
"""Ranges that are planned together, which takes some milliseconds, and the pause after them."""
_COPY_PART = 0.5
"""Of a request with less than this part needed, or still to be read, only that is kept."""
_GOLDEN = 0.6180339887498949
"""Multiples of it lie far apart modulo 1, of numbers that follow each other, too."""
_FAILED_SECONDS = 60.0
"""How long what was announced and could not be had is not asked for again."""


class Arrivals:
    """Fetches what is announced by threads that end when there is nothing to do. Safe for several threads."""

    def __init__(
        self,
        fetch: Fetch,
        max_held_bytes: int = MAX_HELD_BYTES,
        max_requests: int = MAX_REQUESTS,
        keeper: Keeper | None = None,
    ) -> None:
        self.gauge = Gauge()
        self.num_requests = self.requested_bytes = 0
        self._fetch = fetch
        self._max_held_bytes = max_held_bytes
        self._max_requests = max_requests
        self._largest_bytes = 0
        self._changed = threading.Condition()
        self._keeper = keeper
        self._announced = Announced()
        self._urgent: deque[Request] = deque()
        self._later: deque[Request] = deque()
        self._arrived: dict[Request, None] = {}
        """Those with spans that were not read, in the order in which they came."""
        self._held_bytes = 0
        """Of what is there or on its way."""
        self._serial = 0
        self._passed: deque[int] = deque(maxlen=_PASSED_READS)
        self._num_threads = self._num_idle = self._num_running = 0
        self._closed = False
        self._stop = Stop()
        self._process_id = os.getpid()

    def announce(self, shard_ids: Int64, starts: Int64, lengths: Int64, *, urgent: bool) -> None:
        """Has ranges fetched that are not on their way yet: at once if urgent, else as soon as there is room.

        Args:
            shard_ids: of each range.
            starts: first byte.
            lengths: bytes; not 0.
            urgent: whether somebody waits for them.
        """
        joined = join_ranges(shard_ids, starts, lengths, max_gap_bytes=0)
        places = [(g, a, a + n) for g, a, n in zip(*(column.tolist() for column in joined), strict=True)]
        # Processes that share what is kept begin at different places: each then finds there what another has had fetched.
        begin = 0 if urgent or self._keeper is None else int(self._process_id * _GOLDEN % 1.0 * len(places))
        sections, num_bytes = ((begin, len(places)), (0, begin)), 0
        for number, first in enumerate(itertools.chain(*(range(*section, _PART_PLACES) for section in sections))):
            stop = min(first + _PART_PLACES, begin if first < begin else len(places))
            if number and not urgent:
                # Who reads and who fetches have their turn: each would wait long for the interpreter, again and again.
                time.sleep(_PAUSE_SECONDS)
            with self._changed:
                # Announcements are made beside who asks for them, and may come late.
                if not urgent and current_stop(self._stop).is_set():
                    return
                self._serial += not urgent and not number
                num_bytes += self._announce(places[first:stop], urgent)
                if not urgent:
                    self._largest_bytes = max(self._largest_bytes, num_bytes)

    def _announce(self, places: list[Place], urgent: bool) -> int:
        """Has what is missing of ranges fetched, which are in the order of the files; returns the bytes that are missing."""
        turn = current_turn()
        missing, whole = list[Place](), list[Place]()
        for place in giving_way(places):
            parts, known = self._announced.wanted(place, turn)
            # Of what comes in part the rest is fetched, too: who reads it finds all of it in one place.
            (missing if known or urgent or self._keeper is None else whole).extend(parts)
            for request in known:
                self._want(request, urgent)
        if whole and self._keeper is not None:
            # What is not on its way any more is kept by now. Who waits for something has to find it here all the same.
            missing = sorted([*missing, *self._keeper.lacking(whole)])
        if not missing:
            self._wake(len(self._urgent))
            return 0
        columns = np.array(missing, dtype=np.int64).T
        planned = plan_requests(columns[0], columns[1], columns[2] - columns[1], worth := self.gauge.worth)
        ends = [(g, a, a + n) for g, a, n in zip(*(column.tolist() for column in planned), strict=True)]
        if self._keeper is not None:
            ends = self._keeper.reached(ends, worth)
        requests = [Request(place, self._serial, urgent, current_stop(self._stop)) for place in ends]
        self._announced.add(missing, requests, turn)
        (self._urgent if urgent else self._later).extend(requests)
        self._wake(len(self._urgent) if urgent else len(requests))
        return sum(stop - start for _, start, stop in missing)

    def views(self, places: Sequence[Place]) -> tuple[list[list[memoryview]], list[tuple[Span, int, int]]]:
        """Returns the pieces of ranges, one after another; what is missing is fetched, and waited for.

        Returns:
            Of each range its pieces, and what is to be given to `used` once they were copied.

        Raises:
            StorageError, FormatError: what `fetch` raised for it.
        """
        found, taken, hurried = [], [], False
        for number, (shard_id, start, stop) in enumerate(giving_way(places)):
            pieces = []
            while start < stop:
                there = self._there(shard_id, start, hurried)
                if there is None:
                    # Of all at once; where all of it is there nothing is to be planned.
                    self.announce(*columns_of([(shard_id, start, stop), *places[number + 1 :]]), urgent=True)
                    hurried = True
                    continue
                span, data = there
                end = min(stop, span.stop)
                pieces.append(data[start - span.start : end - span.start])
                taken.append((span, start, end))
                start = end
            found.append(pieces)
        return found, taken

    def holds(self, places: Iterable[Place]) -> list[bool]:
        """Tells of which ranges the first byte is there or on its way."""
        with self._changed:
            return [bool(self._announced.overlapping(shard_id, start, start + 1)) for shard_id, start, _ in places]

    def used(self, taken: list[tuple[Span, int, int]]) -> None:
        """Notes parts as read, and drops what was read as a whole."""
        if not taken:
            return
        turn = current_turn()
        with self._changed:
            for span, start, stop in giving_way(taken):
                if span.read(turn, start, stop):
                    self._remove(span)
            # What was only asked for now tells nothing of what was announced before.
            announced = [span.request.serial for span, _, _ in taken if span.request.announced]
            self._passed.append(max(announced, default=self._serial))
            self._wake(self._num_fitting())

    def discard(self, shard_id: int, start: int, stop: int) -> None:
        """Drops what is there of a range."""
        with self._changed:
            for span in self._announced.distrusted(shard_id, start, stop):
                if span.request.state == DONE:
                    self._remove(span)

    def close(self) -> None:
        """Fetches nothing more; threads give up what they are at. Nothing to do in a forked child, whose lock may be held."""
        if os.getpid() != self._process_id:
            return
        with self._changed:
            self._closed = True
            self._stop.set()
            self._changed.notify_all()

    def _want(self, request: Request, urgent: bool) -> None:
        """Notes that a request that there was brings something that is wanted now."""
        if not urgent:
            # Announced once more it is not passed over.
            request.serial = self._serial
        elif request.state == WAITING and not request.hurried:
            request.hurried = True
            self._urgent.append(request)

    def _remove(self, span: Span) -> None:
        """Drops a span, and with its last one what is held for a request."""
        if not self._announced.remove(span):
            return
        request = span.request
        span.data, span.needs = None, {}
        if request.state == DONE and request.error is None:
            request.needed -= span.stop - span.start
            if not request.copied and request.needed < _COPY_PART * request.cost:
                request.copy_spans()
            self._hold(request, request.needed if request.copied else request.cost)
        if not request.spans:
            self._arrived.pop(request, None)

    def _hold(self, request: Request, num_bytes: int) -> None:
        self._held_bytes += num_bytes - request.cost
        request.cost = num_bytes

    def _there(self, shard_id: int, start: int, wait: bool) -> tuple[Span, memoryview] | None:
        """Returns the span that has a byte, once it is there; None if it is to be asked for, or hurried, or not waited for."""
        while True:
            with self._changed:
                found = self._announced.overlapping(shard_id, start, start + 1)
                if not found:
                    return None
                data, request = found[0].data, found[0].request
                if request.error is not None:
                    self._remove(found[0])
                    # Another loader, or who comes back later, may fare better.
                    late = time.monotonic() - request.failed_at > _FAILED_SECONDS
                    if not late and request.stop is current_stop(self._stop):
                        raise request.error
                    continue
                if data is not None:
                    return found[0], data
                if not wait or (request.state == WAITING and not request.hurried):
                    return None
                done = threading.Event()
                request.waiting.append(done)
            with current_stop().calling(done.set):
                while not done.wait(_CHECK_SECONDS):
                    if not self._num_threads:
                        raise StorageError("the threads that fetch have ended; this is a bug, or the process forked")
            current_stop().check()
            # Another loader that wanted it, too, was closed: then it is asked for anew.
            if request.error is not None and not request.stop.is_set():
                raise request.error

    def _num_fitting(self) -> int:
        """Returns how many of the requests that wait for room have it now."""
        room, count = self._room() - self._held_bytes, 0
        for request in itertools.islice(self._later, self._max_requests):
            room -= request.num_bytes
            if room < 0:
                break
            count += 1
        return count

    def _wake(self, count: int) -> None:
        self._changed.notify(count)
        if self._closed:
            return
        while self._num_threads < self._max_requests and self._num_idle < count and self._num_threads < self._work():
            self._num_threads += 1
            self._num_idle += 1
            try:
                threading.Thread(target=self._run, name="shardload-fetch", daemon=True).start()
            except RuntimeError as error:
                # The system, or an interpreter that ends, gives no more threads.
                self._num_threads -= 1
                self._num_idle -= 1
                if not self._num_threads:
                    raise StorageError(f"no thread can be started to fetch with: {error}") from error
                return

    def _work(self) -> int:
        return self._num_running + len(self._urgent) + len(self._later)

    def _run(self) -> None:
        """Body of a thread."""
        with self._changed:
            idle_since = time.monotonic()
            while not self._closed:
                request = self._next()
                if request is None:
                    rest = idle_since + _IDLE_SECONDS - time.monotonic()
                    if rest <= 0:
                        break
                    # Whoever brings work counts this thread as idle until it has looked once more.
                    self._changed.wait(rest)
                    continue
                request.state = RUNNING
                self._hold(request, request.num_bytes)
                self._num_idle -= 1
                self._num_running += 1
                self._changed.release()
                try:
                    data = self._fetched(request)
                finally:
                    self._changed.acquire()
                    self._num_running -= 1
                    self._num_idle += 1
                self._arrive(request, data)
                del data
                idle_since = time.monotonic()
            self._num_threads -= 1
            self._num_idle -= 1

    def _next(self) -> Request | None:
        """Returns what is to be fetched now."""
        while self._urgent:
            request = self._urgent.popleft()
            if request.state == WAITING and request.spans and not self._given_up(request):
                return request
        passed = min(self._passed) if len(self._passed) == _PASSED_READS else -1
        while self._later:
            request = self._later[0]
            if request.state != WAITING or request.hurried or not request.spans or self._given_up(request):
                self._later.popleft()
            elif request.serial < passed:
                # Announced for a run that was left: whoever reads it nevertheless will ask for it.
                self._later.popleft()
                self._forget(request)
            elif not self._held_bytes or self._held_bytes + request.num_bytes <= self._room():
                return self._later.popleft()
            elif not self._drop_passed(passed):
                return None
        return None

    def _given_up(self, request: Request) -> bool:
        """Drops a request that nobody wants any more; returns whether it is such a one."""
        if request.stop.is_set():
            self._forget(request)
            for done in request.waiting:
                done.set()
        return request.stop.is_set()

    def _room(self) -> int:
        return max(self._max_held_bytes, 2 * self._largest_bytes)

    def _drop_passed(self, passed: int) -> bool:
        """Drops what was announced and passed over, or for a loader that is closed; returns whether there was any."""
        old = [request for request in self._arrived if request.serial < passed or request.stop.is_set()]
        for request in old:
            self._forget(request)
        return bool(old)

    def _forget(self, request: Request) -> None:
        for span in list(request.spans):
            self._remove(span)

    def _fetched(self, request: Request) -> NDArray[np.uint8] | Exception:
        start = time.perf_counter()
        try:
            data = np.empty(request.num_bytes, dtype=np.uint8)
            with heeding(request.stop):
                self._fetch(request.shard_id, request.start, data.data)
        except Exception as error:
            return error
        self.gauge.note(request.num_bytes, time.perf_counter() - start)
        return data

    def _arrive(self, request: Request, data: NDArray[np.uint8] | Exception) -> None:
        self.num_requests += 1
        request.state = DONE
        self._announced.ended(request)
        if isinstance(data, Exception):
            request.error = data
            self._hold(request, 0)
            if request.waiting or request.stop.is_set() or not isinstance(request.error, UnavailableError):
                self._forget(request)
            else:
                # It was asked for as often as there may be attempts: who reads it is told so, and does not ask again.
                request.failed_at = time.monotonic()
                self._arrived[request] = None
        else:
            self.requested_bytes += request.num_bytes
            request.fill(data)
            if request.needed < _COPY_PART * request.num_bytes:
                request.copy_spans()
                self._hold(request, request.needed)
            if request.spans:
                self._arrived[request] = None
        for done in request.waiting:
            done.set()
        self._wake(1)
