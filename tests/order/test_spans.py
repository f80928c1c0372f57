"""Spans: every sample once, in order, on the grid of its range, from any cursor."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardload.order.spans import Span, Spans, even_span


@st.composite
def spans_of(draw: st.DrawFn) -> Spans:
    """Ranges that follow each other with gaps; the beginning of some is done."""
    spans, origin = [], 0
    for _ in range(draw(st.integers(0, 6))):
        origin += draw(st.integers(0, 5))
        size = draw(st.integers(0, 30))
        spans.append(Span(origin + draw(st.integers(0, size)), origin + size, origin))
        origin += size
    return Spans(tuple(spans), draw(st.integers(1, 9)))


def by_hand(spans: Spans) -> list[list[int]]:
    """The batches of ranges, worked out sample by sample."""
    batches: list[list[int]] = []
    for start, stop, origin in spans.spans:
        last = None
        for sample in range(start, stop):
            number = (sample - origin) // spans.batch_size
            if number != last:
                batches.append([])
            batches[-1].append(sample)
            last = number
    return batches


@given(spans_of(), st.data())
def test_batches_from_any_cursor_are_the_rest(spans, data):
    wanted = by_hand(spans)
    cursor = data.draw(st.integers(0, spans.num_samples))
    left, skipped = [], 0
    for batch in wanted:
        kept = batch[max(0, cursor - skipped) :]
        skipped += len(batch)
        left += [kept] if kept else []
    found = list(spans.batches(cursor, lambda positions: positions * 3))
    assert [batch.positions.tolist() for batch in found] == left
    assert [batch.sample_ids.tolist() for batch in found] == [[3 * i for i in batch] for batch in left]
    assert [batch.cursor for batch in found] == (cursor + np.cumsum([len(batch) for batch in left])).tolist()
    assert spans.num_batches(cursor) == len(left)
    assert spans.num_samples == sum(map(len, wanted))


@given(st.integers(0, 10**12), st.integers(1, 300), st.data())
def test_even_spans_are_all_samples_and_differ_by_one(num_samples, num_replicas, data):
    rank = data.draw(st.integers(0, num_replicas - 1))
    span = even_span(num_samples, num_replicas, rank)
    assert span.origin == span.start
    assert (span.stop - span.start) in (num_samples // num_replicas, num_samples // num_replicas + 1)
    before = even_span(num_samples, num_replicas, rank - 1).stop if rank else 0
    assert span.start == before and (rank < num_replicas - 1 or span.stop == num_samples)
