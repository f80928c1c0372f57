"""Ranges of samples that one process goes through from front to back: what a scan has in place of a partition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardload.order.cursor import RankBatch
from shardload.order.epoch import Order

Int64 = NDArray[np.int64]


class Span(NamedTuple):
    """A range of samples, or what is left of one."""

    start: int
    """First sample."""
    stop: int
    """Sample after the last one."""
    origin: int
    """Where the whole range begins: batches begin there and every `batch_size` samples further on, wherever `start` is, so
    that the batches of a range that was cut off and gone on with are the same from the second one on."""


@dataclass(frozen=True)
class Spans:
    """Ranges of samples in batches, none of which holds samples of two ranges."""

    spans: tuple[Span, ...]
    """In the order in which they are read."""
    batch_size: int
    """Most samples of a batch."""

    @property
    def num_samples(self) -> int:
        """Samples in all of them."""
        return int(self._starts[-1])

    def num_batches(self, cursor: int = 0) -> int:
        """Returns how many batches follow after so many samples."""
        if cursor >= self.num_samples:
            return 0
        number = self._span_at(cursor)
        span = self._from(number, cursor)
        rest = self._batches[-1] - self._batches[number + 1]
        return int(rest) + _num_batches(span, self.batch_size)

    def batches(self, cursor: int, order: Order) -> Iterator[RankBatch]:
        """Yields the batches that follow after so many samples; their cursors count samples too.

        Args:
            cursor: samples that are passed over.
            order: what stands at the positions that the ranges mean.
        """
        if cursor >= self.num_samples:
            return
        first = self._span_at(cursor)
        for number in range(first, len(self.spans)):
            start, stop, origin = self._from(number, cursor)
            while start < stop:
                end = min(stop, start + self.batch_size - (start - origin) % self.batch_size)
                positions = np.arange(start, end, dtype=np.int64)
                cursor += end - start
                yield RankBatch(cursor, positions, order(positions), len(positions))
                start = end

    def _from(self, number: int, cursor: int) -> Span:
        span = self.spans[number]
        return span._replace(start=span.start + max(0, cursor - int(self._starts[number])))

    def _span_at(self, cursor: int) -> int:
        return int(np.searchsorted(self._starts, cursor, side="right")) - 1

    @cached_property
    def _starts(self) -> Int64:
        """Samples before each range, and all: int64 of shape (spans + 1,)."""
        return _summed([span.stop - span.start for span in self.spans])

    @cached_property
    def _batches(self) -> Int64:
        """Batches before each range, and all: int64 of shape (spans + 1,)."""
        return _summed([_num_batches(span, self.batch_size) for span in self.spans])


def even_span(num_samples: int, num_replicas: int, rank: int) -> Span:
    """Returns a rank's part of all samples, one range; the parts of two ranks differ by one sample at most."""
    start, stop = (num_samples * number // num_replicas for number in (rank, rank + 1))
    return Span(start, stop, start)


def _num_batches(span: Span, batch_size: int) -> int:
    if span.start >= span.stop:
        return 0
    return -(-(span.stop - span.origin) // batch_size) - (span.start - span.origin) // batch_size


def _summed(counts: Sequence[int]) -> Int64:
    sums = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums
