"""What requests to a store cost, found from those that were made."""

from __future__ import annotations

import threading

from shardload.planner import Worth

_KEPT = 0.98
"""Weight of what was known beside one more request: about the last fifty count."""
_GUESSED = ((0.0, 0.03), (float(1 << 20), 0.05))
"""Bytes and seconds of requests that are taken to have been made before: 30 ms to answer, and then 50 MB a second."""
_GUESS_WEIGHT = 1.0
_LEAST_SECONDS, _MOST_BYTES_PER_SECOND = 1e-4, 2e9
_LEAST_REQUEST, _MOST_REQUEST = 1 << 20, 8 << 20
_PARTS = 4
"""A request takes at most this many times as long to come as to be answered, so that several share the way."""


class Gauge:
    """The line of least squares through bytes and seconds of requests, the last of which count most. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = [0.0] * 5
        for num_bytes, seconds in _GUESSED:
            self._add(num_bytes, seconds, _GUESS_WEIGHT)

    def note(self, num_bytes: int, seconds: float) -> None:
        """Notes a request that was made beside others."""
        with self._lock:
            self._sums = [one * _KEPT for one in self._sums]
            self._add(num_bytes, seconds, 1.0)

    def _add(self, num_bytes: float, seconds: float, weight: float) -> None:
        x, y = num_bytes, seconds
        self._sums = [one + weight * more for one, more in zip(self._sums, (1.0, x, y, x * x, x * y), strict=True)]

    @property
    def latency_seconds(self) -> float:
        """Time until an answer comes."""
        return self._line()[0]

    @property
    def bytes_per_second(self) -> float:
        """What one request brings in a second from then on, beside the others that run."""
        return self._line()[1]

    @property
    def worth(self) -> Worth:
        """What a request costs, for `plan_requests`."""
        latency, speed = self._line()
        request_bytes = latency * speed
        return Worth(request_bytes, int(min(_MOST_REQUEST, max(_LEAST_REQUEST, _PARTS * request_bytes))))

    def _line(self) -> tuple[float, float]:
        with self._lock:
            w, x, y, xx, xy = self._sums
        spread = w * xx - x * x
        slope = max((w * xy - x * y) / spread if spread > 0 else 0.0, 1 / _MOST_BYTES_PER_SECOND)
        return max(_LEAST_SECONDS, (y - slope * x) / w), 1 / slope
