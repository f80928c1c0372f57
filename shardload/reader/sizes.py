"""How large samples are, before they are read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardload.order.selection import ids_at
from shardload.reader.dataset import ShardDataset
from shardload.reader.source import SampleSource, View

Int64 = NDArray[np.int64]


def sample_sizes(source: SampleSource, sample_ids: Int64) -> Int64:
    """Returns about the bytes of samples, decompressed: int64 of shape (samples,).

    Where only the size of all is known, each is given its share of that.

    Args:
        source: a dataset or a view of one, whose row tables tell; or another source.
        sample_ids: int64 of shape (samples,).
    """
    if isinstance(source, View):
        return sample_sizes(source.source, np.asarray(ids_at(source.selection, sample_ids), dtype=np.int64))
    if isinstance(source, ShardDataset):
        return source.sample_sizes(sample_ids)
    return np.full(len(sample_ids), -(-source.num_bytes // max(1, len(source))), dtype=np.int64)
