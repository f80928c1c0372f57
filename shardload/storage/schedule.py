"""When a request that failed is made again, and when not: arithmetic alone, without clocks and waits.

A library such as tenacity would be the loop of ten lines in `retrying`; what is here it does not have: waits that depend on what
went wrong and on what is left of a deadline, and a budget that all threads share.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardload.quantities import as_integer, parse_seconds
from shardload.storage.answers import Kind

_GROWTH = 3.0
_MAX_WAIT_SECONDS = 10.0
_MIN_WAIT_SECONDS = 0.01

FINAL: frozenset[Kind] = frozenset({"access", "missing", "changed", "refused"})
"""Kinds that another attempt would not mend; `access` may be by other credentials."""

_SETTINGS = {
    "deadline": "deadline_seconds",
    "progress_timeout": "progress_seconds",
    "retries": "max_retries",
    "first_wait": "first_wait_seconds",
}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long, and how often, a range is asked for."""

    deadline_seconds: float = 60.0
    """From the first attempt to the error, all attempts and waits together."""
    progress_seconds: float = 10.0
    """An attempt that brings no byte for so long is given up."""
    max_retries: int = 5
    """Attempts after the first one. Those that found no server at all do not count: they cost nobody anything."""
    first_wait_seconds: float = 0.1
    """The longest wait before the first retry; later ones may be three times as long each. The waits themselves are drawn."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> RetryPolicy:
        """Returns the policy of the options `deadline`, `progress_timeout`, `first_wait` (times as 60 or "1min") and `retries`.

        Raises:
            ValueError: there is no such option, or it has no such value.
        """
        unknown = [name for name in options if name not in _SETTINGS]
        if unknown:
            raise ValueError(
                f"storage_options['shardload'] has no option {unknown[0]!r}: there are {', '.join(_SETTINGS)}"
            )
        settings: dict[str, Any] = {}
        for name, value in options.items():
            place = f"storage_options['shardload'][{name!r}]"
            settings[_SETTINGS[name]] = number = (as_integer if name == "retries" else parse_seconds)(value, place)
            if not number and name != "retries":
                raise ValueError(f"{place} must be a time above 0, not {value!r}"[:120])
        return cls(**settings)


def next_wait(
    policy: RetryPolicy,
    kind: Kind,
    num_attempts: int,
    num_counted: int,
    left_seconds: float,
    draw: float,
    retry_after_seconds: float | None = None,
) -> float | None:
    """Returns the seconds until the next attempt; None if there is none.

    The wait is drawn from all of the interval ("full jitter"), so that ranks which failed together do not come back together:
    M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.

    Args:
        policy: the policy.
        kind: why the last attempt failed.
        num_attempts: attempts so far.
        num_counted: retries so far that reached the store.
        left_seconds: until the deadline.
        draw: a random number from 0 to 1.
        retry_after_seconds: what the store asked for.
    """
    if kind in FINAL or left_seconds <= _MIN_WAIT_SECONDS:
        return None
    if kind != "unreachable" and num_counted >= policy.max_retries:
        return None
    after = max(0.0, retry_after_seconds or 0.0)
    if after >= left_seconds:
        return None
    longest = min(_MAX_WAIT_SECONDS, policy.first_wait_seconds * _GROWTH ** min(num_attempts - 1, 20))
    # Never past the deadline: so attempts go on, ever nearer to it.
    return after + draw * min(longest, (left_seconds - after) / 2)


class RetryBudget:
    """Bounds retries to a share of the requests in a window of time, so that a sick store is not hammered by every reader.

    A few are always allowed. Not safe for threads by itself.
    """

    def __init__(self, share: float = 0.1, always: int = 20, window_seconds: float = 10.0) -> None:
        """Starts with nothing used.

        Args:
            share: retries for each request.
            always: retries in a window that need no requests.
            window_seconds: how far back is counted.
        """
        self._share, self._always, self._window = share, always, window_seconds
        self._requests: deque[tuple[int, int]] = deque()
        """(second, requests in it), the oldest first."""
        self._num_requests = 0
        self._retries: deque[float] = deque()

    def add_request(self, now: float) -> None:
        """Counts a first attempt."""
        second = math.floor(now)
        if self._requests and self._requests[-1][0] >= second:
            last, count = self._requests.pop()
            self._requests.append((last, count + 1))
        else:
            self._requests.append((second, 1))
        self._num_requests += 1

    def take(self, now: float) -> float:
        """Takes a retry if there is one now.

        Returns:
            0 if it was taken; else the seconds until there may be one.
        """
        while self._requests and self._requests[0][0] < now - self._window - 1:
            self._num_requests -= self._requests.popleft()[1]
        while self._retries and self._retries[0] <= now - self._window:
            self._retries.popleft()
        if len(self._retries) < max(self._always, int(self._share * self._num_requests)):
            self._retries.append(now)
            return 0.0
        return max(_MIN_WAIT_SECONDS, self._retries[0] + self._window - now)
