"""A storage over a storage whose requests may fail: it makes them again where that helps, within a deadline.

It is the only layer that does so; the libraries below are set to one attempt, for retries of several layers multiply.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from shardload.storage.answers import AnswerError, UnavailableError
from shardload.storage.base import Storage, StoredFile
from shardload.storage.schedule import RetryBudget, RetryPolicy, next_wait
from shardload.storage.stopping import current_stop, within

Result = TypeVar("Result")

_MIN_SECONDS = 0.001
_OF_ONE_FILE = {"missing", "changed"}
_random = random.SystemRandom()
"""Without a state that forked processes would share: they are not to retry in step."""


def _wait(seconds: float) -> None:
    """Waits; ends at once when nobody wants the answer any more."""
    stop = current_stop()
    stop.wait(seconds)
    stop.check()


@dataclass(slots=True)
class _Tries:
    """How far the attempts at one thing are."""

    start: float
    deadline: float
    num_renewed: int
    """How often credentials were read anew when the last attempt began."""
    num_attempts: int = 0
    num_counted: int = 0
    """Retries that count against the most."""
    was_denied: bool = False


class Retries:
    """Makes attempts, and counts those that were not the first. Safe for several threads."""

    def __init__(
        self,
        policy: RetryPolicy,
        renew: Callable[[], None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = _random.random,
        wait: Callable[[float], None] = _wait,
        budget: RetryBudget | None = None,
    ) -> None:
        """Starts with nothing counted.

        Args:
            policy: how long and how often.
            renew: has credentials read anew; None if there are none.
            clock: seconds that never go back.
            draw: gives random numbers from 0 to 1.
            wait: waits for some seconds; may raise to end the attempts.
            budget: bounds the retries of all threads; None for the usual one.
        """
        self.policy = policy
        self._renew = renew
        self._clock, self._draw, self._wait = clock, draw, wait
        self._budget = RetryBudget() if budget is None else budget
        self._lock = threading.Lock()
        self._num_renewed = 0
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """Retries by the kind of failure that came before each."""
        with self._lock:
            return dict(self._counts)

    def call(self, attempt: Callable[[], Result]) -> Result:
        """Returns what an attempt gives, the first or a later one.

        Raises:
            AnswerError: of the last attempt, with how many there were; within the deadline.
            LoaderClosedError: nobody wants the answer any more.
        """
        now = self._clock()
        with self._lock:
            self._budget.add_request(now)
            tries = _Tries(now, now + self.policy.deadline_seconds, self._num_renewed)
        while True:
            try:
                with within(max(_MIN_SECONDS, tries.deadline - self._clock())):
                    return attempt()
            except AnswerError as error:
                failure = error
            tries.num_attempts += 1
            if not self._goes_on(failure, tries):
                raise _given_up(failure, tries.num_attempts, self._clock() - tries.start)

    def _goes_on(self, error: AnswerError, tries: _Tries) -> bool:
        """Waits as long as fits a failure; returns whether there is to be another attempt."""
        wait: float | None
        if error.kind == "access":
            wait = 0.0 if not tries.was_denied and self._renewed(tries.num_renewed) else None
            tries.was_denied = True
        else:
            left, after = tries.deadline - self._clock(), error.retry_after_seconds
            wait = next_wait(self.policy, error.kind, tries.num_attempts, tries.num_counted, left, self._draw(), after)
        if wait is None or not self._wait_for_turn(wait, tries.deadline):
            return False
        tries.num_counted += error.kind != "unreachable"
        with self._lock:
            self._counts[error.kind] += 1
            tries.num_renewed = self._num_renewed
        return True

    def _wait_for_turn(self, seconds: float, deadline: float) -> bool:
        """Waits, then for the budget; returns whether there is a retry before the deadline."""
        self._wait(seconds)
        while True:
            now = self._clock()
            with self._lock:
                wait = self._budget.take(now)
            if not wait:
                return True
            wait += self._draw() * self.policy.first_wait_seconds
            if now + wait >= deadline:
                return False
            self._wait(wait)

    def _renewed(self, seen: int) -> bool:
        """Has credentials read anew, unless another thread did so since this one looked; returns whether there are any."""
        if self._renew is None:
            return False
        with self._lock:
            if self._num_renewed == seen:
                self._renew()
                self._num_renewed += 1
        return True


def _given_up(error: AnswerError, num_attempts: int, seconds: float) -> AnswerError:
    message = error.message
    if num_attempts > 1:
        message += f"; gave up after {num_attempts} attempts in {seconds:.1f} s"
    failed = AnswerError if error.kind in _OF_ONE_FILE else UnavailableError
    place = {name: getattr(error, name) for name in ("dataset", "shard", "start", "stop", "sample_id")}
    return failed(message, kind=error.kind, retry_after_seconds=error.retry_after_seconds, **place)


class RetryingFile:
    """A file whose reads are made again where that helps."""

    def __init__(self, file: StoredFile, retries: Callable[[], Retries]) -> None:
        self._file = file
        self._retries = retries
        """Gives those of the process that asks."""

    @property
    def dataset(self) -> str:
        """Root of the storage, as messages name it."""
        return self._file.dataset

    @property
    def name(self) -> str:
        """Name of the file below the root."""
        return self._file.name

    @property
    def num_bytes(self) -> int:
        """Its length."""
        return self._file.num_bytes

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills a buffer; each call has a deadline of its own."""
        self._retries().call(lambda: self._file.read_into(buffer, start))

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes of a half-open range."""
        return self._retries().call(lambda: self._file.read(start, stop))

    def will_need(self, start: int, num_bytes: int) -> None:
        """Passes on that a range will be read soon."""
        self._file.will_need(start, num_bytes)

    def discard(self, start: int, stop: int) -> bool:
        """Drops copies of a range whose content was found damaged; returns whether another read may give other bytes."""
        return self._file.discard(start, stop)


class RetryingStorage:
    """Another storage's files, by as many attempts as it takes within a deadline. Picklable if that one is."""

    def __init__(self, storage: Storage, policy: RetryPolicy | None = None, retries: Retries | None = None) -> None:
        """Describes it.

        Args:
            storage: makes one attempt a call, and raises `AnswerError` where another one may help.
            policy: how long and how often; None for the defaults.
            retries: what makes the attempts, with clock and waits of its own, in the place of a policy.
        """
        self.inner = storage
        """The storage that makes each attempt."""
        self.policy = retries.policy if retries is not None else policy or RetryPolicy()
        renew = getattr(storage, "renew", None)
        self._retries = retries or Retries(self.policy, renew)
        self._process_id = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "policy": self.policy}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["inner"], state["policy"])  # type: ignore[misc]

    @property
    def root(self) -> str:
        """Where it is, as messages name it."""
        return self.inner.root

    @property
    def num_retries(self) -> dict[str, int]:
        """Retries made so far in this process, by the kind of failure that came before each."""
        return self._process_retries().counts

    def open(self, name: str, num_bytes: int | None = None) -> RetryingFile:
        """Opens a file; `num_bytes` is the length it must have."""
        file = self._process_retries().call(lambda: self.inner.open(name, num_bytes))
        return RetryingFile(file, self._process_retries)

    def read_small(self, name: str, max_bytes: int) -> bytes:
        """Returns a whole file that may not be longer than `max_bytes`."""
        return self._process_retries().call(lambda: self.inner.read_small(name, max_bytes))

    def exists(self, name: str) -> bool:
        """Tells whether a name is there."""
        return self._process_retries().call(lambda: self.inner.exists(name))

    def list(self, name: str) -> list[str]:
        """Returns the names in a directory, sorted; none if it is not there."""
        return self._process_retries().call(lambda: self.inner.list(name))

    def _process_retries(self) -> Retries:
        """Returns what this process counts; a forked child must not share a lock in mid-change."""
        if self._process_id != os.getpid():
            self.__setstate__(self.__getstate__())
        return self._retries
