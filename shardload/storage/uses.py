"""When blocks of a cache are used next, as far as anyone knows, and which give way to others. Pure: no I/O.

A job that reads in a known order tells for each block at which position of its order it is needed next, and in a table how far it
has come. Of others, only the time of the last use is known; they are expected to be needed after as long again. So blocks of
several jobs are compared by the same thing, the expected seconds until the next use.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

MAX_JOBS = 31
NEVER = (1 << 56) - 1
"""The position of what a job will not use in any epoch that it looks at."""

_SHIFT = np.uint64(56)
_VALUE = np.uint64(NEVER)
DEAD_SECONDS = 900.0
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
        gone = (silence > DEAD_SECONDS) | (jobs.keys[mine] == 0)
        planned = np.where(gone, _GONE + np.clip(silence, 0, _GONE), planned)
        waits = np.where(told, np.minimum(planned, _NO_MORE), waits)
    return waits


def joined_uses(old: UInt64, new: UInt64, current: NDArray[np.int64], first: int) -> UInt64:
    """Returns the uses of blocks of which one use is past, or needs them no more, and another becomes known.

    Where another sample, or another rank, will need the block sooner that is kept, if it is still to come.

    Args:
        old: what was known.
        new: what is known beyond the use that is past.
        current: the position of that use: int64 of shape (blocks,).
        first: the position up to which all processes of the job have read what they need.
    """
    same = (old >> _SHIFT == new >> _SHIFT) & (new >> _SHIFT != 0)
    before = (old & _VALUE).astype(np.int64)
    # A rank that is ahead, or has announced much, must not make the others' use of the block forgotten.
    sooner: UInt64 = np.where(same & (before >= first) & (before != current), np.minimum(old, new), new)
    return sooner


class ExpectedUses:
    """What was announced of blocks until they are used: where that is, and where they are used after it.

    A block may be announced for several uses, of which each is taken by itself: windows reach beyond the end of an epoch.
    """

    def __init__(self) -> None:
        self.job = 0
        """Whose positions they are."""
        self.first = 0
        """The position up to which all is read."""
        self.usual: int | None = None
        """The position for blocks that nothing was announced of. None while nothing ever was."""
        self._expected: dict[int, tuple[int, ...]] = {}
        """Of each block, rising: where it is used by others or after what is announced, as `~position`; where it was announced."""
        self._coming: set[int] = set()
        """Those whose next use takes them from elsewhere."""
        self._done: dict[int, int] = {}
        """Of blocks that were used lately where that was; of those that nothing was known of, `~` a position near to it."""
        self._cursor = self._last = 0
        """Where something was used last."""

    def tell(self, job: int, cursor: int, first: int, usual: int) -> None:
        """Takes in whose positions come.

        Args:
            job: the job's number.
            cursor: the position up to which this process has read all.
            first: the one up to which all processes of the job have.
            usual: the one for blocks that nothing was announced of.
        """
        if job != self.job or cursor < self._cursor:
            # Another order, or the same from an earlier place.
            self._done.clear()
            self._last = cursor
        self.job, self._cursor, self.first, self.usual = job, cursor, first, usual

    def add(
        self, tags: UInt64, current: NDArray[np.int64], following: NDArray[np.int64], near: int
    ) -> NDArray[np.bool_]:
        """Takes in what is known of blocks: arrays of shape (uses,); a block may stand several times.

        Announcements are made beside the reads, and may come after them; what follows the end of an epoch is announced twice.

        Args:
            tags: of the blocks.
            current: where each is used.
            following: where it is used after that.
            near: positions by which reads may be ahead of announcements.

        Returns:
            Which of them were used before anybody had told of it: bool of shape (uses,).
        """
        expected, done = self._expected, self._done
        late = np.zeros(len(tags), dtype=np.bool_)
        for i, (tag, now, then) in enumerate(zip(tags.tolist(), current.tolist(), (~following).tolist(), strict=True)):
            used = done.get(tag)
            if used is not None:
                if used >= now:
                    continue
                if used < 0 and abs(now - ~used) <= near:
                    late[i], done[tag], self._last = True, now, now
                    continue
            known = expected.get(tag)
            if known is None:
                expected[tag] = (then, now)
            else:
                # What is long past was never read, or not known to be.
                expected[tag] = (*sorted({then, now, *(one for one in known if max(one, ~one) >= self.first)}),)
        # What was announced and never read is forgotten at last.
        self._coming.difference_update(_shorten(expected, _MAX_EXPECTED))
        return late

    def come(self, tags: UInt64) -> None:
        """Notes that the next use of blocks takes them from elsewhere."""
        self._coming.update(tag for tag in tags.tolist() if tag in self._expected)

    def next_of(self, tags: UInt64) -> tuple[UInt64, NDArray[np.int64]]:
        """Returns uses of blocks that come now, 0 where nothing is known, and which use does not need them, below 0 if none.

        Returns:
            uint64 and int64 of shape (blocks,).
        """
        found = []
        for tag in tags.tolist():
            known = self._expected.get(tag)
            if known is None:
                found.append(_UNKNOWN)
            elif tag in self._coming:
                found.append(_after_first(known)[:2])
            else:
                # It comes only because it lies between others: whoever needs it will look for it here.
                found.append((-1, next(position for position in known if position >= 0)))
        return self._as_uses(found)

    def take(self, tags: UInt64) -> tuple[UInt64, NDArray[np.int64]] | None:
        """Returns uses of blocks that are used now, 0 where nothing is known, and where that is, below 0; that use is forgotten.

        Returns:
            uint64 and int64 of shape (blocks,); None if nothing is known of any.
        """
        expected, done = self._expected, self._done
        found = []
        for tag in tags.tolist():
            known = expected.pop(tag, None)
            # What was used last is forgotten last.
            done.pop(tag, None)
            if known is None:
                done[tag] = ~self._last
                found.append(_UNKNOWN)
                continue
            self._coming.discard(tag)
            current, following, rest = _after_first(known)
            done[tag] = self._last = current
            if rest[-1] >= 0:
                expected[tag] = rest
            found.append((current, following))
        _shorten(done, _MAX_DONE)
        if all(facts is _UNKNOWN for facts in found):
            return None
        return self._as_uses(found)

    def _as_uses(self, found: list[tuple[int, int]]) -> tuple[UInt64, NDArray[np.int64]]:
        current, following = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return np.where(following >= 0, used_next(self.job, np.maximum(following, 0)), np.uint64(0)), current


_MAX_EXPECTED = 1 << 20
_MAX_DONE = 1 << 16
_UNKNOWN = (-1, -1)


def _shorten(entries: dict[int, Any], most: int) -> list[int]:
    """Drops the oldest quarter of more than so many entries; returns which."""
    old = list(itertools.islice(entries, len(entries) // 4)) if len(entries) > most else []
    for tag in old:
        del entries[tag]
    return old


def _after_first(known: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    """Returns the first use that was announced, the one after it, below 0 if none is known, and what is left without the first."""
    if len(known) == 2 and known[0] < 0:
        return known[1], ~known[0], known[:1]
    current = next(position for position in known if position >= 0)
    rest = tuple(position for position in known if position != current and max(position, ~position) > current)
    return current, min((max(position, ~position) for position in rest), default=-1), rest or _UNKNOWN


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
