"""Samples and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardload.errors import FormatError
from shardload.format.table import ShardTable

Int64 = NDArray[np.int64]
Kind = TypeVar("Kind", bound=FormatError)


@dataclass(frozen=True, slots=True)
class Located:
    """Some samples, where they are, and their packed rows: arrays of shape (samples,)."""

    sample_ids: Int64
    shard_ids: Int64
    local_ids: Int64
    """Numbers of the samples in their shards."""
    rows: NDArray[Any]
    """Structured array of the dataset's whole schema."""
    dataset: str
    """Directory of the dataset, for messages."""
    table: ShardTable

    def __getitem__(self, slots: Any) -> Located:
        ids, rows = (self.sample_ids[slots], self.shard_ids[slots], self.local_ids[slots]), self.rows[slots]
        return Located(*ids, rows, self.dataset, self.table)

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
