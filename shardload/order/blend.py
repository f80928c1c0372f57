"""Which of several sources stands at each position, so that every beginning of the order has them in their proportions.

`Blend` is a function of the position: nothing is kept, and nothing before it has to be gone through. With w_s the share of
source s and c_s(p) its positions among the first p, |c_s(p) - w_s p| <= 1 - 1/(2k - 2) for k sources, each of them and each p:
no rule can promise less (Tijdeman, "The chairman assignment problem", 1980), and a random choice would be off by the root of p.

The rule
--------
Position p is slot p, to be given to one source. With e = 1/(2k - 2), draw j = 1, 2, ... of a source may come as soon as
c <= w p + 1 - e allows it and must come before c >= w p - (1 - e) is broken: it has a first and a last slot. Each slot takes, of
the draws that may come, the one whose last slot is the earliest, and of equal ones that of the first source. Tijdeman shows that
some choice breaks no limit; earliest-deadline-first finds one where there is one (Horn, "Some simple scheduling algorithms",
1974), and leaves no slot empty.

A short period, repeated, would come in the same way again and again, and ranks, which take positions in turn, would each have
sources of their own: of 3 to 1 on two ranks, one would never see the second. So such periods are made into a table of up to
65,536 places: each round begins at another place of the period, one of up to 64 from which no count is off by more than one
sample either, drawn by the number of the round. Within a long period there may be nearly a short one (501 to 499), so that of those
over 128 neighbours are then exchanged by chance, in several sweeps, wherever no count comes to be off by more than that. What looks
random here are hashes of numbers of rounds and places.

At a position t
---------------
Only whole numbers within the limits are possible: let n + f = w t with 0 <= f < 1. Then c = n if f < e, c = n + 1 if f > 1 - e,
and in between draw n + 1 is open: it may have come. Which of the open draws have come follows from queues. Draws with a last
slot up to some d are served as if there were no others, so t - (those served before t) is, by Lindley's recursion, the largest
over 0 <= x <= t of x - (those that may come before slot x); and that number is x + G(x) less the open draws of later last
slots that may come before x, where

    G(x) = #{s: f_s(x) >= e} - sum_s f_s(x),    an integer.

So with A the open draws of the latest last slots, b_l the first x before which draw l may come, the number of them that have
come is the largest of 0 and, over l in A,

    #{m in A: b_m <= b_l} - min(G(b_l), ..., G(t)).

Adding one draw after the other to A, from the latest last slot on, tells of each whether it has come. What is looked back upon
is one gap of the rarest source. All of it is arithmetic on integers, equal on every machine.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from shardload.order.selection import mixed

Int64 = NDArray[np.int64]

MAX_SOURCES = 64
TABLE_MAX = 1 << 16
"""Longest period that is held as a table."""
FINE_BITS = 40
FINE = 1 << FINE_BITS
"""Parts of shares that no short period gives exactly. A share is off by less than one part, which p positions make p / 2^40
samples of: while p <= 2^40 / (2k - 2), it is within the bound of one sample."""
LEAST_SHARE = 1 << 20
"""A share is at least one in so many: the rarest source's gaps are looked back upon."""
_HALF_BITS = FINE_BITS // 2
_CHUNK = 1 << 12
_MAX_LOOKED_AT = 1 << 20
_NEVER = np.int64(1 << 62)
_MAX_TURNS = 64
_LONG, _SWEEPS = 128, 32


@dataclass(frozen=True, slots=True)
class Blend:
    """Shares of sources, and which source stands where. A value."""

    parts: tuple[int, ...]
    """Share of each source, as its parts of `period`; 0 for one that never comes."""

    def __post_init__(self) -> None:
        least = min((part for part in self.parts if part), default=0)
        if not 1 <= len(self.parts) <= MAX_SOURCES or min(self.parts) < 0 or not least:
            raise ValueError(f"no shares of 1 to {MAX_SOURCES} sources: {self.parts!r:.200}")
        if least * LEAST_SHARE < self.period:
            raise ValueError(f"a share is less than 1 / {LEAST_SHARE} of all: {self.parts!r:.200}")
        if self.period > TABLE_MAX and self.period != FINE:
            raise ValueError(f"shares are {FINE} parts together, or at most {TABLE_MAX}, not {self.period}")

    @classmethod
    def of(cls, weights: Sequence[float | Fraction]) -> Blend:
        """Returns the blend of weights, which are made to sum to one: exact if that takes at most 65,536 parts, else of 2^40.

        Args:
            weights: finite numbers, none below 0 and not all 0.

        Raises:
            ValueError: there are too many, or one is too small beside the others.
        """
        exact = [Fraction(weight) for weight in weights]
        shares = [weight / sum(exact) for weight in exact]
        found = _short_period([float(share) for share in shares])
        if found is not None:
            return cls(found)
        parts = [math.floor(share * FINE) for share in shares]
        rests = [part - share * FINE for part, share in zip(parts, shares, strict=True)]
        for number in sorted(range(len(parts)), key=rests.__getitem__)[: FINE - sum(parts)]:
            parts[number] += 1
        return cls(tuple(parts))

    @property
    def period(self) -> int:
        """Positions after which the sources come in the same turn again, each as often as its parts say."""
        return sum(self.parts)

    def draws(self, positions: Int64) -> tuple[Int64, Int64]:
        """Returns what stands at positions.

        Args:
            positions: int64 of shape (positions,), from 0.

        Returns:
            The source at each, and how many positions before have the same source: int64 of shape (positions,).
        """
        coming = self._coming
        if self.period <= TABLE_MAX:
            table = _table(coming)
            rounds, places = np.divmod(positions, len(table[0]))
            numbers, before = (column[places] for column in table)
            rounds *= len(table[0]) // self.period
        else:
            rounds, places = np.divmod(positions, self.period)
            numbers, before = _computed(_Rule(coming), places)
        before += rounds * np.array(coming, dtype=np.int64)[numbers]
        return np.flatnonzero(self.parts)[numbers], before

    def counts(self, position: int) -> list[int]:
        """Returns how many of the positions before one have each source."""
        coming = self._coming
        if self.period <= TABLE_MAX:
            sources, _ = _table(coming)
            rounds, place = divmod(position, len(sources))
            rounds *= len(sources) // self.period
            counts = np.bincount(sources[:place], minlength=len(coming))
        else:
            rounds, place = divmod(position, self.period)
            counts = _counts(_Rule(coming), np.array([place], dtype=np.int64)).come[:, 0]
        of_coming = iter(counts.tolist())
        return [rounds * part + next(of_coming) if part else 0 for part in self.parts]

    @property
    def _coming(self) -> tuple[int, ...]:
        return tuple(part for part in self.parts if part)


def _short_period(shares: Sequence[float]) -> tuple[int, ...] | None:
    """Returns the parts of the shortest period that gives all shares as exactly as the fine one, None if it is too long."""
    periods = np.arange(1, TABLE_MAX + 1)
    good = np.ones(TABLE_MAX, dtype=np.bool_)
    for share in shares:
        parts = share * periods
        good &= np.abs(parts - np.rint(parts)) <= periods / (2 * FINE)
    if not good.any():
        return None
    period = int(periods[good.argmax()])
    return tuple(round(share * period) for share in shares)


class _Rule:
    """The numbers of a blend that its arithmetic uses, as columns of shape (sources, 1)."""

    def __init__(self, parts: Sequence[int]) -> None:
        gap = max(1, 2 * len(parts) - 2)
        # So that the margin e is a whole number of parts. That of fine parts is less by a fraction of one, which widens the limits.
        scale = gap if sum(parts) <= TABLE_MAX else 1
        self.period = sum(parts) * scale
        self.margin = self.period // gap
        self.parts: Int64 = np.array(parts, dtype=np.int64)[:, None] * scale
        self.fine = scale == 1 and self.period == FINE

    def split(self, places: Int64) -> tuple[Int64, Int64]:
        """Returns whole draws and rest (in parts) due before places below the period: int64 of shape (sources, places)."""
        if not self.fine:
            whole, rest = np.divmod(self.parts * places, self.period)
            return whole, rest
        high, low = places >> _HALF_BITS, places & ((1 << _HALF_BITS) - 1)
        whole = (self.parts * high + (self.parts * low >> _HALF_BITS)) >> _HALF_BITS
        return whole, self.rests(places)

    def rests(self, places: Int64) -> Int64:
        """Returns the rests alone."""
        products = self.parts.view(np.uint64) * places.view(np.uint64)
        # What is lost of a product are multiples of 2^64, and so of the fine period.
        return (products & np.uint64(FINE - 1) if self.fine else products % np.uint64(self.period)).view(np.int64)


@dataclass(frozen=True, slots=True)
class _Counted:
    """Draws of each source before places, and what is due beyond them."""

    come: Int64
    """Draws that have come: int64 of shape (sources, places)."""
    lag: Int64
    """What is due beyond them, in parts; below 0 for one that came early: as `come`."""


def _computed(rule: _Rule, places: Int64) -> tuple[Int64, Int64]:
    """Returns source and draw at places below the period."""
    sources, draws = np.empty_like(places), np.empty_like(places)
    order = np.argsort(places)
    for slots in _chunks(places[order], rule):
        chosen = order[slots]
        counted = _counts(rule, places[chosen])
        sources[chosen] = numbers = _chosen(rule, counted)
        draws[chosen] = counted.come[numbers, np.arange(len(numbers))]
    return sources, draws


def _chunks(places: Int64, rule: _Rule) -> list[slice]:
    """Returns sorted places in pieces for which little has to be looked at: each looks back on a gap of the rarest source."""
    look_back = rule.period // int(rule.parts.min()) + 1
    starts = [0] if len(places) else []
    while (start := starts[-1] if starts else len(places)) < len(places):
        few = max(1, _MAX_LOOKED_AT // look_back)
        near = int(np.searchsorted(places, places[start] + _MAX_LOOKED_AT))
        starts.append(min(max(start + few, near), start + _CHUNK, len(places)))
    return [slice(start, stop) for start, stop in itertools.pairwise(starts)]


@functools.lru_cache(maxsize=8)
def _table(parts: tuple[int, ...]) -> tuple[Int64, Int64]:
    """Returns source and draw at each place of some rounds of a short period: read-only, at most 1 MiB."""
    period = sum(parts)
    base, _ = _computed(_Rule(parts), np.arange(period, dtype=np.int64))
    begins = _begins(base, parts)
    rounds = np.arange(TABLE_MAX // period, dtype=np.int64)
    turns = begins[(mixed(rounds.astype(np.uint64)) % np.uint64(len(begins))).astype(np.int64)]
    sources = base[(turns[:, None] + np.arange(period)) % period].reshape(-1)
    if period > _LONG:
        sources = _loosened(sources, parts)
    draws = np.empty_like(sources)
    for number in range(len(parts)):
        mine = np.flatnonzero(sources == number)
        draws[mine] = np.arange(len(mine))
    sources.flags.writeable = draws.flags.writeable = False
    return sources, draws


def _begins(sources: Int64, parts: Sequence[int]) -> Int64:
    """Returns places of a period at which a round of it may begin: int64 of shape (begins,)."""
    ahead = _ahead(sources[:-1], parts)
    most, least = ahead.max(axis=1, keepdims=True), ahead.min(axis=1, keepdims=True)
    # From there on each is ahead by so much less.
    good = np.flatnonzero(((most - ahead <= len(sources)) & (ahead - least <= len(sources))).all(axis=0))
    return good[:: -(-len(good) // _MAX_TURNS)]


def _loosened(sources: Int64, parts: Sequence[int]) -> Int64:
    """Returns the sources at places with neighbours exchanged by chance, where no count comes to be off by more than one sample."""
    sources, period, ahead = sources.copy(), sum(parts), _ahead(sources, parts)
    for sweep in range(_SWEEPS):
        first = np.arange(sweep % 2, len(sources) - 1, 2)
        chance = mixed((first + (sweep << 32)).astype(np.uint64)) >> np.uint64(63) == 1
        one, other = sources[first], sources[first + 1]
        fits = (ahead[one, first + 1] >= 0) & (ahead[other, first + 1] <= 0)
        chosen = np.flatnonzero(chance & fits & (one != other))
        first, one, other = first[chosen], one[chosen], other[chosen]
        sources[first], sources[first + 1] = other, one
        ahead[one, first + 1] -= period
        ahead[other, first + 1] += period
    return sources


def _ahead(sources: Int64, parts: Sequence[int]) -> Int64:
    """Returns how far each source is ahead of its share before places: in parts of a sample, of shape (sources, places + 1)."""
    counts = np.zeros((len(parts), len(sources) + 1), dtype=np.int64)
    np.cumsum(sources == np.arange(len(parts))[:, None], axis=1, out=counts[:, 1:])
    return counts * sum(parts) - np.array(parts, dtype=np.int64)[:, None] * np.arange(len(sources) + 1)


def _chosen(rule: _Rule, counted: _Counted) -> Int64:
    """Returns the source at places: of the draws that may come there, the one whose last slot is the earliest."""
    slots_left = (rule.period - rule.margin - counted.lag) // rule.parts
    size = len(rule.parts)
    keys = slots_left * size + np.arange(size)[:, None]
    first: Int64 = np.where(counted.lag + rule.parts >= rule.margin, keys, _NEVER).min(axis=0)
    return first % size


def _counts(rule: _Rule, places: Int64) -> _Counted:
    """Returns how many draws of each source came before sorted places."""
    whole, rest = rule.split(places)
    is_open = (rest >= rule.margin) & (rest <= rule.period - rule.margin)
    come = whole + (rest > rule.period - rule.margin)
    if is_open.any():
        since = np.where(is_open, places - (rest - rule.margin) // rule.parts, _NEVER)
        last = np.where(is_open, (rule.period - rule.margin - rest) // rule.parts, -1)
        come += _come(since, last, _least(rule, places, since))
    return _Counted(come, rest + (whole - come) * rule.period)


def _come(since: Int64, last: Int64, least: Int64) -> Int64:
    """Returns which open draws have come, as 0 and 1 of shape (sources, places).

    Args:
        since: the first x before which each may come; `_NEVER` for those not open.
        last: slots from here to its last one; -1 for those not open.
        least: the least G from there on.
    """
    # Of equal last slots that of the first source comes first, so that here it is the last one.
    latest_first = np.argsort(last, axis=0, kind="stable")[::-1]
    columns = np.arange(since.shape[1])
    since, least = since[latest_first, columns], least[latest_first, columns]
    come, waiting = np.zeros_like(since), np.zeros_like(since)
    before = np.zeros(since.shape[1], dtype=np.int64)
    for number in range(len(since)):
        waiting[:number] += since[number] <= since[:number]
        waiting[number] = 1 + (since[:number] <= since[number]).sum(axis=0)
        after = np.maximum((waiting[: number + 1] - least[: number + 1]).max(axis=0), 0)
        come[number] = after - before
        before = after
    result = np.empty_like(come)
    result[latest_first, columns] = come
    return result


def _least(rule: _Rule, places: Int64, since: Int64) -> Int64:
    """Returns the least G from `since` to the sorted places: int64 of shape (sources, places); large where never."""
    first = np.minimum.accumulate(np.minimum(since.min(axis=0), places)[::-1])[::-1]
    # What is looked at, without what lies between far places: each adds what its neighbour before has not.
    starts = np.maximum(first, np.concatenate([first[:1], places[:-1] + 1]))
    lengths = places + 1 - starts
    ends = lengths.cumsum()
    looked_at = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    heights = _heights(rule, looked_at)
    spans = np.where(since == _NEVER, 1, places - since + 1)
    levels = np.frexp(spans)[1] - 1
    result = np.full(since.shape, len(since) + 1, dtype=np.int64)
    wanted = since != _NEVER
    stops = np.broadcast_to(ends, since.shape)
    for level in range(int(levels.max()) + 1):
        mine = wanted & (levels == level)
        size, stop = 1 << level, stops[mine]
        result[mine] = np.minimum(heights[stop - spans[mine]], heights[stop - size])
        # Now the least of twice as many from each on.
        heights = np.minimum(heights[:-size], heights[size:]) if len(heights) > size else heights
    return result


def _heights(rule: _Rule, places: Int64) -> NDArray[np.int8]:
    """Returns G: int8 of shape (places,)."""
    heights = np.empty(len(places), dtype=np.int8)
    for start in range(0, len(places), _CHUNK):
        rest = rule.rests(places[start : start + _CHUNK])
        heights[start : start + _CHUNK] = (rest >= rule.margin).sum(axis=0) - rest.sum(axis=0) // rule.period
    return heights
