"""Batches that a sampler has issued and that are asked for one by one, read several at a time."""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ShardloadError
from shardload.format.schema import Field
from shardload.memory.byte_strings import keep_freed_memory
from shardload.order.sample_ids import SampleIds
from shardload.reader.access import Buffers
from shardload.reader.batch import SampleBatch

Int64 = NDArray[np.int64]

_MOST_BATCHES = 8
_MOST_BYTES = 10 << 20
"""Batches are read together up to so many bytes: what a read costs beside them is then little, and they are still in the
processor's caches when they are asked for."""


class Source(Protocol):
    """What samples are read from."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all samples."""

    @property
    def num_ids(self) -> int:
        """Sample ids that its orders may give: from 0 to this."""

    @property
    def field_list(self) -> Sequence[Field]:
        """The fields that are read."""

    def __len__(self) -> int:
        """Returns the number of samples."""

    def at_hand(self, sample_ids: Int64, /) -> bool:
        """Tells whether samples are known to be in memory."""

    def read_batches(
        self, batches: Sequence[Int64], buffers: Sequence[Buffers], fields: Sequence[Field], /
    ) -> list[SampleBatch]:
        """Returns several batches as columns."""


class Issued:
    """The batches of one iteration of a sampler in this process, from the one that was issued last on."""

    def __init__(self) -> None:
        self._num_noted = 0
        self._coming: collections.deque[tuple[int, Int64]] = collections.deque()
        self._source: Source | None = None
        self._read: dict[int, SampleBatch] = {}
        self._num_read = 0
        self._lock = threading.Lock()

    def note(self, sample_ids: Int64) -> None:
        """Notes a batch that will be issued, after those that were noted before."""
        self._coming.append((self._num_noted, sample_ids))
        self._num_noted += 1

    def issue(self) -> IssuedBatch:
        """Returns the first of the batches that were noted, which is issued now."""
        return IssuedBatch(self, *self._coming.popleft())

    def batch(self, number: int, sample_ids: Int64, source: Source) -> SampleBatch | None:
        """Returns a batch that was issued; None if it had better be read alone.

        Args:
            number: its number.
            sample_ids: its samples.
            source: who is asked for it.
        """
        # Of several threads that ask one reads for all, and the others do not wait for it.
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if source is not self._source:
                self._source, self._read = source, {}
            if number not in self._read:
                self._read = self._read_from(number, sample_ids, source)
            return self._read.pop(number, None)
        finally:
            self._lock.release()

    def _read_from(self, number: int, sample_ids: Int64, source: Source) -> dict[int, SampleBatch]:
        """Reads a batch and some that follow it, by numbers; none if they are not in memory, or one of them cannot be read.

        The first ones are not kept waiting for others.
        """
        size = max(1, source.num_bytes * len(sample_ids) // max(1, len(source)))
        most = max(1, min(_MOST_BATCHES, _MOST_BYTES // size, self._num_read))
        parts = [(number, sample_ids), *itertools.islice(self._coming, most - 1)]
        self._num_read += 1
        every_id = np.concatenate([ids for _, ids in parts])
        # A sampler of something larger has numbers that are no samples here, though what this is a view of may have them.
        if len(parts) < 2 or int(every_id.max(initial=0)) >= source.num_ids:
            return {}
        try:
            if not source.at_hand(every_id):
                return {}
            # Arrays for several batches come and go together.
            keep_freed_memory()
            read = source.read_batches([ids for _, ids in parts], [{}] * len(parts), source.field_list)
        except ShardloadError:
            # Each has its own error when it is asked for.
            return {}
        self._num_read += len(parts) - 1
        return {number: batch for (number, _), batch in zip(parts, read, strict=True)}


class IssuedBatch:
    """One of them: what its ids take along in this process."""

    __slots__ = ("_issued", "_number", "_sample_ids")

    def __init__(self, issued: Issued, number: int, sample_ids: Int64) -> None:
        """Describes it."""
        self._issued = issued
        self._number = number
        self._sample_ids = sample_ids

    def read(self, ids: SampleIds, source: Source) -> SampleBatch | None:
        """Returns the batch, if its ids are as they were issued; None if it had better be read alone."""
        if not np.array_equal(np.array(ids), self._sample_ids):
            return None
        return self._issued.batch(self._number, self._sample_ids, source)


def issued_batch(source: Source, indices: Sequence[int] | Int64) -> SampleBatch | None:
    """Returns the samples of indices that a sampler has issued; None if they have to be read alone."""
    issued: Any = indices.issued if isinstance(indices, SampleIds) else None
    found: SampleBatch | None = None if issued is None else issued.read(indices, source)
    return found
