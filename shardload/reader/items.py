"""Whose the items of a stream are: from ranges of items to the samples that lie in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.rows import count_column, start_column
from shardload.format.schema import Field
from shardload.planner import ItemRanges, counted, last_not_above
from shardload.reader.located import Located, damaged

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segments:
    """Parts of samples that together are some ranges of items, one after another: arrays of shape (segments,)."""

    slots: Int64
    """What each is a part of, as the slots of the ranges."""
    sample_ids: Int64
    """The samples that they are part of."""
    lengths: Int64
    """Items of each; at least 1."""


NO_SEGMENTS = Segments(*np.zeros((3, 0), dtype=np.int64))


def segments_of(
    ranges: ItemRanges,
    field: Field,
    num_items: Int64,
    first_sample_ids: Int64,
    locate: Callable[[Int64], Located],
) -> Segments:
    """Returns the parts of samples that ranges of a stream's items consist of.

    Of each range the samples at both ends are searched for; packed rows are looked at for that, and of all between them.

    Args:
        ranges: the ranges.
        field: the field.
        num_items: items of the whole stream that each range is in.
        first_sample_ids: the sample at which each shard starts, and the total at the end.
        locate: gives the packed rows of samples.

    Raises:
        FormatError: the items of samples do not follow each other; names shard and sample.
    """
    shard_ids, size = ranges.shard_ids, len(ranges)
    first, stop = first_sample_ids[shard_ids], first_sample_ids[shard_ids + 1]
    wanted = np.concatenate([ranges.low, ranges.high - 1])
    # Places are samples: that of an item is the last one that starts at it or before.
    ends = last_not_above(
        lambda ids: _starts(locate(ids), field), wanted, np.tile(first, 2), np.tile(stop, 2), np.tile(num_items, 2)
    )
    counts = np.maximum(ends[size:] - ends[:size] + 1, 1)
    numbers = np.repeat(np.arange(size), counts)
    samples = locate(counted(ends[:size], counts))
    low, high = ranges.low[numbers], ranges.high[numbers]
    starts = np.clip(_starts(samples, field), low, high)
    stops = np.clip(_starts(samples, field) + samples.rows[count_column(field)], low, high)
    edges = np.cumsum(counts)
    before, after = np.concatenate([[0], stops[:-1]]), np.zeros(len(stops), dtype=np.bool_)
    before[edges - counts] = ranges.low
    after[edges - 1] = stops[edges - 1] != ranges.high
    wrong = (starts != before) | after
    if wrong.any():
        detail = f"the items of field {field.name!r} do not follow each other"
        raise damaged(FormatError, samples, int(np.argmax(wrong)), detail)
    some = stops > starts
    return Segments(ranges.slots[numbers[some]], samples.sample_ids[some], (stops - starts)[some])


def sample_of(shard_id: int, item: int, find: Callable[[ItemRanges], Segments]) -> int:
    """Returns the sample that has an item of a shard's stream.

    Args:
        shard_id: the shard.
        item: the item.
        find: gives the segments of ranges.
    """
    alone = ItemRanges(*(np.array([n], dtype=np.int64) for n in (0, shard_id, item, item + 1)))
    return int(find(alone).sample_ids[0])


def _starts(samples: Located, field: Field) -> Int64:
    """Returns the items before samples' own, none above what a shard can have: sums of it and a length do not wrap."""
    starts: Int64 = np.minimum(samples.rows[start_column(field)], np.uint64(1 << 48)).astype(np.int64)
    return starts
