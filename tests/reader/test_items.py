"""Whose items are: the samples of ranges of items, or an error where rows contradict each other, whatever they say."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardload.errors import FormatError
from shardload.format.rows import count_column, row_layout, start_column
from shardload.format.schema import Field, Schema
from shardload.format.table import ShardEntry, make_table
from shardload.planner import ItemRanges, cut_by_shard
from shardload.reader.items import Segments, sample_of, segments_of
from shardload.reader.located import Located

Int64 = np.ndarray[Any, np.dtype[np.int64]]
FIELD = Field("t", "uint8", starred=True)
COUNTS = [[3, 0, 5, 0, 0, 1], [0], [0, 0, 9, 2], [4]]
"""Items of the samples of each shard."""
FIRST_SAMPLES = np.cumsum([0, *map(len, COUNTS)])
FIRST_ITEMS = np.cumsum([0, *map(sum, COUNTS)])
OWNERS = np.repeat(np.arange(FIRST_SAMPLES[-1]), [count for counts in COUNTS for count in counts])
TABLE = make_table([ShardEntry(1, unit, 0, len(counts), 9, b"h" * 32, b"f" * 32) for unit, counts in enumerate(COUNTS)])


def honest() -> np.ndarray[Any, Any]:
    rows = np.zeros(len(OWNERS) and FIRST_SAMPLES[-1], row_layout(Schema((FIELD,))).dtype)
    rows[count_column(FIELD)] = [count for counts in COUNTS for count in counts]
    rows[start_column(FIELD)] = [start for counts in COUNTS for start in np.cumsum([0, *counts])[:-1]]
    return rows


def find(ranges: ItemRanges, rows: np.ndarray[Any, Any]) -> Segments:
    def locate(ids: Int64) -> Located:
        shard_ids = np.searchsorted(FIRST_SAMPLES, ids, side="right") - 1
        return Located(ids, shard_ids, ids - FIRST_SAMPLES[shard_ids], rows[ids], "there", TABLE)

    return segments_of(ranges, FIELD, np.diff(FIRST_ITEMS)[ranges.shard_ids], FIRST_SAMPLES, locate)


RANGES = st.lists(st.integers(0, len(OWNERS) - 7), min_size=1, max_size=6).map(np.array)


@settings(deadline=None)
@given(RANGES, st.integers(1, 7))
def test_segments_are_the_samples_of_items(starts: Int64, length: int) -> None:
    segments = find(cut_by_shard(starts, length, FIRST_ITEMS), honest())
    want = [
        (slot, owner) for slot, start in enumerate(starts.tolist()) for owner in OWNERS[start : start + length].tolist()
    ]
    found = zip(segments.slots.tolist(), segments.sample_ids.tolist(), segments.lengths.tolist(), strict=True)
    assert [(slot, owner) for slot, owner, size in found for _ in range(size)] == want
    assert (segments.lengths > 0).all() and len(set(zip(segments.slots, segments.sample_ids, strict=True))) == len(
        segments.slots
    )


def test_the_sample_of_an_item() -> None:
    for item, owner in enumerate(OWNERS.tolist()):
        shard_id = int(np.searchsorted(FIRST_ITEMS, item, side="right")) - 1
        assert sample_of(shard_id, item - int(FIRST_ITEMS[shard_id]), lambda ranges: find(ranges, honest())) == owner


@settings(max_examples=300, deadline=None)
@given(
    RANGES,
    st.integers(1, 7),
    st.lists(
        st.tuples(
            st.integers(0, int(FIRST_SAMPLES[-1]) - 1),
            st.integers(0, 12) | st.sampled_from([(1 << 64) - 2, 1 << 63, (1 << 64) - 1]) | st.none(),
            st.integers(0, 12) | st.sampled_from([(1 << 32) - 1]) | st.none(),
        ),
        max_size=4,
    ),
)
def test_rows_that_say_anything(starts: Int64, length: int, changes: list[tuple[int, int | None, int | None]]) -> None:
    rows = honest()
    for sample, start, count in changes:
        rows[start_column(FIELD)][sample] = rows[start_column(FIELD)][sample] if start is None else start
        rows[count_column(FIELD)][sample] = rows[count_column(FIELD)][sample] if count is None else count
    ranges = cut_by_shard(starts, length, FIRST_ITEMS)
    try:
        segments = find(ranges, rows)
    except FormatError as error:
        assert "there: shards/" in str(error) and "the items of field 't' do not follow each other (sample " in str(
            error
        )
        return
    # What is given is what the rows say, and all items of the ranges.
    assert np.bincount(segments.slots, segments.lengths).tolist() == [length] * len(starts)
    said = zip(rows[start_column(FIELD)].tolist(), rows[count_column(FIELD)].tolist(), strict=True)
    spans = [(start, start + count) for start, count in said]
    for slot, shard_id, low, high in zip(ranges.slots, ranges.shard_ids, ranges.low, ranges.high, strict=True):
        shard = range(*FIRST_SAMPLES[shard_id : shard_id + 2])
        mine = [i for i in segments.sample_ids[segments.slots == slot].tolist() if i in shard]
        place = int(low)
        for i in mine:
            assert spans[i][0] <= place < spans[i][1]
            place = min(spans[i][1], int(high))
        assert place == high
