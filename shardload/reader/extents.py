"""How far requests reach where all that they bring is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardload.planner import Worth
from shardload.reader.requests import UNIT_BYTES, Place

MAX_EXTENT_BYTES = 1 << 20
"""Longer ones would keep whoever waits for little of them, where answers come late, and a link is wide."""


class Keeper(Protocol):
    """What keeps all that is fetched, such as a cache."""

    def lacking(self, places: Sequence[Place], /) -> list[Place]:
        """Returns the places that it does not have, in the order given."""
        ...

    def reached(self, requests: Sequence[Place], worth: Worth, /) -> list[Place]:
        """Returns requests that reach further than what they are for: disjoint, and in the order of the files."""
        ...


class Extents:
    """Makes requests reach to the ends of aligned extents, once for each part of a file.

    For where whatever comes is kept, and needed one day: so few large requests bring what many small ones would. An extent takes
    at most as long to come as a request takes to be answered, so that none takes more than twice as long as without.
    """

    def __init__(self, num_bytes: Callable[[int], int]) -> None:
        """Describes them.

        Args:
            num_bytes: returns the length of a file.
        """
        self._num_bytes = num_bytes
        self._asked: dict[int, NDArray[np.bool_]] = {}
        """By file, the units that requests have reached over."""

    def reached(self, requests: Sequence[Place], worth: Worth) -> list[Place]:
        """Returns requests that reach further: disjoint, and in the order of the files as those that are given.

        Args:
            requests: what is to be asked for.
            worth: what a request costs.
        """
        size = extent_bytes(worth)
        if size < UNIT_BYTES:
            return list(requests)
        found: list[Place] = []
        for shard_id, start, stop in requests:
            low, high = self._reach(shard_id, start, stop, size)
            if found and found[-1][0] == shard_id:
                low = max(low, found[-1][2])
            if low < high:
                found.append((shard_id, low, high))
        return found

    def _reach(self, shard_id: int, start: int, stop: int, size: int) -> tuple[int, int]:
        """Returns how far a request reaches: over units that none has reached over before."""
        num_bytes = self._num_bytes(shard_id)
        if stop > num_bytes:
            # Whoever reads it tells what is wrong.
            return start, stop
        asked = self._asked.get(shard_id)
        if asked is None:
            asked = self._asked[shard_id] = np.zeros(-(-num_bytes // UNIT_BYTES), dtype=np.bool_)
        first, last = start // UNIT_BYTES, -(-stop // UNIT_BYTES)
        low, high = start // size * size // UNIT_BYTES, min(-(-stop // size) * size // UNIT_BYTES, len(asked))
        if not asked[first]:
            before = np.flatnonzero(asked[low:first])
            low += int(before[-1]) + 1 if len(before) else 0
            start = low * UNIT_BYTES
        if not asked[last - 1]:
            after = np.flatnonzero(asked[last:high])
            high = last + int(after[0]) if len(after) else high
            stop = min(high * UNIT_BYTES, num_bytes)
        asked[-(-start // UNIT_BYTES) : len(asked) if stop == num_bytes else stop // UNIT_BYTES] = True
        return start, stop


def extent_bytes(worth: Worth) -> int:
    """Returns how long extents are where requests cost so much: a power of two; below `UNIT_BYTES` they had better be exact."""
    most = min(MAX_EXTENT_BYTES, int(worth.request_bytes))
    return 1 << most.bit_length() - 1 if most > 0 else 0
