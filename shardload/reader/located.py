"""Samples and where they are."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.table import ShardTable

Int64 = NDArray[np.int64]
Kind = TypeVar("Kind", bound=FormatError)


class Located:
    """Some samples, where they are, and their packed rows: arrays of shape (samples,)."""

    __slots__ = ("_rows", "_store", "dataset", "local_ids", "sample_ids", "shard_ids", "table")

    def __init__(
        self,
        sample_ids: Int64,
        shard_ids: Int64,
        local_ids: Int64,
        rows: NDArray[Any] | None,
        dataset: str,
        table: ShardTable,
        store: NDArray[Any] | None = None,
    ) -> None:
        """Describes samples.

        Args:
            sample_ids: int64.
            shard_ids: int64.
            local_ids: numbers of the samples in their shards: int64.
            rows: their packed rows; None to take them from the store when somebody asks.
            dataset: directory of the dataset, for messages.
            table: what is known of its shards.
            store: the packed rows of all samples of the dataset.
        """
        self.sample_ids = sample_ids
        self.shard_ids = shard_ids
        self.local_ids = local_ids
        self.dataset = dataset
        self.table = table
        self._rows = rows
        self._store = store

    @property
    def rows(self) -> NDArray[Any]:
        """Packed rows of the dataset's whole schema: structured array. Wide values that were checked need none."""
        if self._rows is None:
            assert self._store is not None
            self._rows = self._store[self.sample_ids]
        return self._rows

    def __getitem__(self, slots: Any) -> Located:
        ids, rows = (self.sample_ids[slots], self.shard_ids[slots], self.local_ids[slots]), self._rows
        return Located(*ids, None if rows is None else rows[slots], self.dataset, self.table, self._store)

    def __len__(self) -> int:
        return len(self.sample_ids)


def damaged(
    kind: type[Kind], samples: Located, slot: int, detail: str, start: int | None = None, stop: int | None = None
) -> Kind:
    """Returns an error that names shard, bytes and sample of a slot."""
    name, sample_id = samples.table[int(samples.shard_ids[slot])].name, int(samples.sample_ids[slot])
    where = "" if start is None else f" at bytes {start} to {stop}"
    return kind(
        f"{samples.dataset}: {name} is damaged{where}: {detail} (sample {sample_id})",
        dataset=samples.dataset,
        shard=name,
        start=start,
        stop=stop,
        sample_id=sample_id,
    )
