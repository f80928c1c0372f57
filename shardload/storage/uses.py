"""When blocks of a cache are used next, as far as anyone knows, and which give way to others. Pure: no I/O.

A job that reads in a known order tells for each block at which position of its order it is needed next, and in a table how far it
has come. Of others, only the time of the last use is known; they are expected to be needed after as long again. So blocks of
several jobs are compared by the same thing, the expected seconds until the next use.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

MAX_JOBS = 31
NEVER = (1 << 56) - 1
"""The position of what a job will not use in any epoch that it looks at."""

_SHIFT = np.uint64(56)
_VALUE = np.uint64(NEVER)
_DEAD_SECONDS = 900.0
"""A job that has told nothing for so long has ended, or nearly so."""
_LATE, _GONE, _NO_MORE = 1e9, 2e9, 4e9
"""Waits of what a job has passed by, of what jobs that have ended had asked for, and of what is not needed any more."""
_PACE = 1000.0
"""Positions a second of a job before it has come anywhere."""


@dataclass(frozen=True, slots=True)
class Jobs:
    """How far jobs have come: arrays of shape (MAX_JOBS,)."""

    keys: UInt64
    """What tells them apart; 0 where there is none."""
    cursors: NDArray[np.int64]
    """The position each is at, counted over all epochs."""
    times: NDArray[np.float64]
    """When it was there, in seconds."""
    first_cursors: NDArray[np.int64]
    """Where it was when it began."""
    first_times: NDArray[np.float64]
    """When that was."""
    graces: NDArray[np.int64]
    """Positions by which some of its processes may be behind."""

    def paces(self) -> NDArray[np.float64]:
        """Returns positions a second."""
        seconds, done = self.times - self.first_times, self.cursors - self.first_cursors
        known = (seconds > 0) & (done > 0)
        return np.where(known, done / np.where(known, seconds, 1.0), _PACE)


def used_at(seconds: float) -> int:
    """Returns the use of a block of which nothing is known but that it was used now."""
    return int(seconds * 1000) & NEVER


def used_next(job: int, positions: NDArray[np.int64]) -> UInt64:
    """Returns the uses of blocks that a job needs next at positions, counted over all epochs.

    Args:
        job: its number, from 0 to `MAX_JOBS`.
        positions: int64 of shape (blocks,), from 0 to `NEVER`.
    """
    uses: UInt64 = np.uint64(job + 1) << _SHIFT | positions.astype(np.uint64)
    return uses


def waits_of(uses: UInt64, jobs: Jobs, seconds: float) -> NDArray[np.float64]:
    """Returns the expected seconds until blocks are used next: float64 of the same shape, finite.

    Within one job they rise with the position.

    Args:
        uses: what `used_at` and `used_next` gave.
        jobs: how far jobs are.
        seconds: the time now.
    """
    values = uses & _VALUE
    numbers = (uses >> _SHIFT).astype(np.int64) - 1
    waits = np.maximum(seconds - values / 1000.0, 0.0)
    told = numbers >= 0
    if told.any():
        mine = np.clip(numbers, 0, MAX_JOBS - 1)
        left = values.astype(np.int64) - jobs.cursors[mine]
        planned = left / jobs.paces()[mine]
        planned = np.where(left < 0, np.where(left >= -jobs.graces[mine], 0.0, _LATE - left), planned)
        planned = np.where(values == _VALUE, _NO_MORE, planned)
        silence = seconds - jobs.times[mine]
        gone = (silence > _DEAD_SECONDS) | (jobs.keys[mine] == 0)
        planned = np.where(gone, _GONE + np.clip(silence, 0, _GONE), planned)
        waits = np.where(told, np.minimum(planned, _NO_MORE), waits)
    return waits


def joined_uses(old: UInt64, new: UInt64, current: NDArray[np.int64]) -> UInt64:
    """Returns the uses of blocks of which one use is past, and another becomes known.

    Where another sample will need the block sooner that is kept, if it is still to come.

    Args:
        old: what was known.
        new: what is known of the sample that is used now.
        current: the position at which it is used: int64 of shape (blocks,).
    """
    same = (old >> _SHIFT == new >> _SHIFT) & (new >> _SHIFT != 0)
    sooner: UInt64 = np.where(same & ((old & _VALUE).astype(np.int64) > current), np.minimum(old, new), new)
    return sooner


class ExpectedUses:
    """What was announced of blocks until they are used: where that is, and where they are used after it."""

    def __init__(self) -> None:
        self.job = 0
        """Whose positions they are."""
        self.usual: int | None = None
        """The position for blocks that nothing was announced of. None while nothing ever was."""
        self._expected: dict[int, tuple[int, int]] = {}

    def add(self, tags: UInt64, current: NDArray[np.int64], following: NDArray[np.int64]) -> None:
        """Takes in what is known of blocks: arrays of shape (uses,); a block may stand several times."""
        expected = self._expected
        for tag, now, then in zip(tags.tolist(), current.tolist(), following.tolist(), strict=True):
            known = expected.get(tag)
            expected[tag] = (now, then) if known is None else (max(now, known[0]), min(then, known[1]))
        # What was announced and never read is forgotten at last.
        while len(expected) > _MAX_EXPECTED:
            for tag in list(itertools.islice(expected, _MAX_EXPECTED // 4)):
                expected.pop(tag, None)

    def knows(self, tags: UInt64) -> NDArray[np.bool_]:
        """Tells of which blocks something is known: bool of shape (blocks,)."""
        expected = self._expected
        return np.array([tag in expected for tag in tags.tolist()], dtype=np.bool_)

    def take(self, tags: UInt64) -> tuple[UInt64, NDArray[np.int64]] | None:
        """Returns uses of blocks, 0 where nothing is known, and where they are used now, below 0; they are forgotten then.

        Returns:
            uint64 and int64 of shape (blocks,); None if nothing is known of any.
        """
        expected = self._expected
        if not expected:
            return None
        found = [expected.pop(tag, _UNKNOWN) for tag in tags.tolist()]
        current, following = np.array(found, dtype=np.int64).reshape(-1, 2).T
        known = following >= 0
        if not known.any():
            return None
        return np.where(known, used_next(self.job, np.maximum(following, 0)), np.uint64(0)), current


_MAX_EXPECTED = 1 << 20
_UNKNOWN = (-1, -1)


SPLIT, OUTSIDE = -1, -2


def choose_rows(waits: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns where runs of blocks go that lie nowhere yet, each of one stripe; what is there gives way.

    A row of free slots is taken first, in the set that has more of them. Then a row gives way whose blocks all wait long.

    Args:
        waits: expected seconds until the block in each slot is used next, infinite for free slots: float64 of shape (runs,
            choices, rows, blocks of a run).
        own: seconds until those that come are used: float64 of shape (runs,).

    Returns:
        For each run choice * rows + row; `SPLIT` where its blocks had better go to different rows, since slots are free, but
        none side by side; `OUTSIDE` where they would wait longer than all that would have to give way: int64 of shape (runs,).
    """
    num_runs, _, num_rows, num_blocks = waits.shape
    every = np.arange(num_runs)
    free: NDArray[np.bool_] = np.isinf(waits)
    whole: NDArray[np.bool_] = np.all(free, axis=3)
    emptier = np.argmax(np.sum(whole, axis=2), axis=1)
    row = np.argmax(whole[every, emptier], axis=1)
    soonest = waits.min(axis=3).reshape(num_runs, -1)
    latest = soonest.argmax(axis=1)
    chosen = np.where(soonest[every, latest] > own, latest, OUTSIDE)
    if num_blocks > 1:
        chosen = np.where(np.any(free.reshape(num_runs, -1), axis=1), SPLIT, chosen)
    return np.where(np.any(whole.reshape(num_runs, -1), axis=1), emptier * num_rows + row, chosen)
