"""Which ranges become one read, and in which shards items lie. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def merge_ranges(starts: Int64, stops: Int64, *, max_gap_bytes: int, max_read_bytes: int) -> list[tuple[int, int]]:
    """Returns the half-open runs of ranges that become one read each.

    Args:
        starts: first byte of each range, not falling; int64 of shape (ranges,).
        stops: byte after each range, not falling; int64 of shape (ranges,).
        max_gap_bytes: most bytes between two ranges that are read for nothing.
        max_read_bytes: a read is ended when it would exceed this, unless it is a single range.
    """
    runs: list[tuple[int, int]] = []
    first = 0
    for i in range(1, len(starts)):
        if starts[i] - stops[i - 1] > max_gap_bytes or stops[i] - starts[first] > max_read_bytes:
            runs.append((first, i))
            first = i
    if len(starts):
        runs.append((first, len(starts)))
    return runs


def join_ranges(groups: Int64, starts: Int64, lengths: Int64, *, max_gap_bytes: int) -> tuple[Int64, Int64, Int64]:
    """Returns ranges in the order of the files, joined where they touch or overlap, or nearly do.

    Args:
        groups: number of the file of each range: int64 of shape (ranges,).
        starts: first byte in it, likewise.
        lengths: bytes, likewise. One of none is a place like others: what lies near it is joined to it.
        max_gap_bytes: most bytes between two that are joined.

    Returns:
        The same three for the joined ranges.
    """
    if len(starts) < 2:
        return groups, starts, lengths
    order = np.lexsort((starts, groups))
    groups, starts, stops = groups[order], starts[order], starts[order] + lengths[order]
    # The furthest end so far within a file: those of files before lie below all starts of it.
    first_of_file = np.concatenate([[True], np.diff(groups) != 0])
    number = np.cumsum(first_of_file) - 1
    span = int(stops.max()) + 1
    reached = np.maximum.accumulate(stops + number * span) - number * span
    breaks = np.concatenate([[True], first_of_file[1:] | (starts[1:] > reached[:-1] + max_gap_bytes)])
    firsts = np.flatnonzero(breaks)
    lasts = np.concatenate([firsts[1:], [len(starts)]]) - 1
    return groups[firsts], starts[firsts], reached[lasts] - starts[firsts]


@dataclass(frozen=True, slots=True)
class ItemRanges:
    """Ranges of items, each within the stream of one shard: arrays of shape (ranges,)."""

    slots: Int64
    """What each is for, such as the place of a window in a batch; they do not fall."""
    shard_ids: Int64
    low: Int64
    """First item in the shard's stream."""
    high: Int64
    """Item after the last; above `low`."""

    def __len__(self) -> int:
        return len(self.low)

    def of(self, first: int, stop: int) -> ItemRanges:
        """Returns those for the slots of a half-open range."""
        part = slice(*np.searchsorted(self.slots, [first, stop]).tolist())
        return ItemRanges(self.slots[part], self.shard_ids[part], self.low[part], self.high[part])


def cut_by_shard(starts: Int64, length: int, first_items: Int64) -> ItemRanges:
    """Returns where ranges of a dataset's items lie in its shards: one range each, or several at the edge of a shard.

    Args:
        starts: first item of each, in any order, counted over all shards; int64 of shape (ranges,).
        length: items of each; at least 1, and none past the last item.
        first_items: the item at which each shard starts, and the total at the end; int64 of shape (shards + 1,).
    """
    stops = starts + length
    # A shard without items starts where the next one does, and is none that an item lies in.
    first = np.searchsorted(first_items, starts, side="right") - 1
    slots, shard_ids = np.arange(len(starts)), first
    if (stops <= first_items[first + 1]).all():
        low = starts - first_items[first]
        return ItemRanges(slots, first, low, low + length)
    counts = np.searchsorted(first_items, stops, side="left") - first
    slots, shard_ids = np.repeat(slots, counts), counted(first, counts)
    edges = first_items[shard_ids]
    low = np.maximum(starts[slots] - edges, 0)
    high = np.minimum(stops[slots], first_items[shard_ids + 1]) - edges
    some = high > low
    return ItemRanges(slots[some], shard_ids[some], low[some], high[some])


def counted(firsts: Int64, counts: Int64) -> Int64:
    """Returns first, first + 1, ... for each count, one after another."""
    ends = np.cumsum(counts)
    return np.repeat(firsts - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)


def last_not_above(
    values_at: Callable[[Int64], Int64], wanted: Int64, low: Int64, high: Int64, end_values: Int64
) -> Int64:
    """Returns for each wanted value the last place whose value is not above it, in rising values that are dear to look at.

    Values that rise about evenly are found near where they would be if they did: after two looks the rest is some four roots
    of what there is, and is halved. So all looks but a few are at neighbours, which lie in one page.

    Args:
        values_at: places -> values, both int64 of shape (places,).
        wanted: int64 of shape (searches,), each at least the value at `low`, and below its end value.
        low: first place of each search.
        high: place after the last; above `low`.
        end_values: the values that would stand at `high`.
    """
    low, high = low.copy(), high.copy()
    roots = np.sqrt(high - low).astype(np.int64)
    guess = low + ((high - low) * (wanted / np.maximum(end_values, 1))).astype(np.int64)
    num_looks = 0
    while len(open_ := np.flatnonzero(high - low > 1)):
        place = np.clip(guess[open_], low[open_] + 1, high[open_] - 1)
        below = values_at(place) <= wanted[open_]
        low[open_[below]], high[open_[~below]] = place[below], place[~below]
        num_looks += 1
        if num_looks == 1:
            guess[open_] = place + np.where(below, 2, -2) * roots[open_]
        else:
            guess = (low + high) // 2
    return low


CHEAP_GAP_BYTES = 64 << 10
"""No wider gap is read only because it costs less than a request: bytes also cost whoever shares the link, and money."""
_CHEAP_PART = 8
"""Such a gap costs at most this part of a request, so that an error in what was measured does no harm."""
_MOST_WASTE = 0.05


@dataclass(frozen=True, slots=True)
class Worth:
    """What requests to a store cost, as measured."""

    request_bytes: float
    """The bytes that a running request brings in the time that another request takes to answer: latency times bandwidth."""
    max_request_bytes: int
    """Longer ranges come faster in several requests at once."""


def plan_requests(groups: Int64, starts: Int64, lengths: Int64, worth: Worth) -> tuple[Int64, Int64, Int64]:
    """Returns the requests for ranges of files in a store: merged where that costs less, in the order of the files.

    A gap between two ranges is read where it costs at most an eighth of a request and is not above `CHEAP_GAP_BYTES`. Others that
    cost less than a request are read, the smallest first, as long as they are together at most a twentieth of what is needed. So
    a file whose ranges lie near each other comes as a whole.

    Args:
        groups: number of the file of each range: int64 of shape (ranges,).
        starts: first byte in it, likewise.
        lengths: bytes, likewise.
        worth: what a request costs.

    Returns:
        The same three for the requests: disjoint, each at most `worth.max_request_bytes` long.
    """
    some = lengths > 0
    groups, starts, lengths = join_ranges(groups[some], starts[some], lengths[some], max_gap_bytes=0)
    if not len(groups):
        return groups, starts, lengths
    stops = starts + lengths
    gaps = np.where(np.diff(groups) == 0, starts[1:] - stops[:-1], np.iinfo(np.int64).max)
    closed = gaps <= min(worth.request_bytes / _CHEAP_PART, CHEAP_GAP_BYTES)
    # A quarter: so that a gap never makes a request of its own where what it joins is cut.
    rest = np.flatnonzero(~closed & (gaps <= min(worth.request_bytes, worth.max_request_bytes // 4)))
    rest = rest[np.argsort(gaps[rest], kind="stable")]
    closed[rest[np.cumsum(gaps[rest]) <= _MOST_WASTE * int(lengths.sum())]] = True
    firsts = np.concatenate([[0], np.flatnonzero(~closed) + 1])
    lasts = np.concatenate([firsts[1:], [len(groups)]]) - 1
    groups, starts, lengths = groups[firsts], starts[firsts], stops[lasts] - starts[firsts]
    counts = -(-lengths // worth.max_request_bytes)
    numbers, which = counted(np.zeros_like(counts), counts), np.repeat(np.arange(len(counts)), counts)
    lows, highs = (lengths[which] * (numbers + more) // counts[which] for more in (0, 1))
    return groups[which], starts[which] + lows, highs - lows
