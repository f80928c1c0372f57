"""Where the samples of a batch come from: their ids and places, and of mixtures their sources."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from shardload.loader.stand_ins import Fault
from shardload.order.cursor import RankBatch
from shardload.reader.source import SampleSource
from shardload.telemetry import LoaderStats

Int64 = NDArray[np.int64]


def named_ids(
    ids: RankBatch, faults: Sequence[Fault], epoch: int, num_positions: int, dataset: SampleSource
) -> dict[str, torch.Tensor]:
    """Returns what `with_ids` adds: int64 tensors of shape (batch,).

    Fillers have -1, so that nobody takes them for samples, and stand-ins have their own id.

    Args:
        ids: the batch.
        faults: places in it that hold a stand-in.
        epoch: its epoch.
        num_positions: positions of an epoch.
        dataset: what it is read from; `_source` is there if that has names.
    """
    sample_ids, positions = ids.sample_ids.copy(), ids.positions.copy()
    sample_ids[[fault.slot for fault in faults]] = [fault.stand_in for fault in faults]
    epochs = np.full(len(positions), epoch, np.int64)
    positions[: ids.num_before] += num_positions
    epochs[: ids.num_before] -= 1
    named = {"_sample_id": sample_ids, "_position": positions, "_epoch": epochs}
    if (sources := dataset.source_numbers(sample_ids)) is not None:
        named["_source"] = sources
    for name in ("_sample_id", "_position", "_source"):
        if name in named:
            named[name][ids.num_valid :] = -1
    return {name: torch.from_numpy(values) for name, values in named.items()}


def count_sources(stats: LoaderStats, sample_ids: Int64, dataset: SampleSource) -> None:
    """Counts samples by the source that they are from, where sources have names."""
    if not dataset.names:
        return
    # A new dict each time: one that somebody was given must not change under them.
    counts = stats.num_source_samples or dict.fromkeys(dataset.names, 0)
    numbers = dataset.source_numbers(sample_ids)
    more = np.bincount([] if numbers is None else numbers, minlength=len(counts)).tolist()
    stats.num_source_samples = {name: count + n for (name, count), n in zip(counts.items(), more, strict=True)}
