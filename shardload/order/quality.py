"""How far an order is from a true permutation: coverage, entropy of gaps, mixing within batches, correlation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

_MAX_BINS = 1 << 12
"""Bins of gaps: more would hold too few of them each for an entropy."""


@dataclass(frozen=True)
class OrderQuality:
    """What was measured of an order, or of a true permutation of the same samples."""

    num_positions: int
    """Positions that were looked at."""
    num_missing: int
    """Samples that an epoch should have and has not."""
    num_repeated: int
    """Positions whose sample came before in the epoch."""
    entropy: float
    """Entropy of the gaps between the ids of neighbours in the order, in bits."""
    displacement: float
    """Mean distance between position and id, as a part of the epoch; 1/3 of a true permutation."""
    correlation: float
    """Correlation of the ids of neighbours in the order; 0 of a true permutation."""
    epoch_correlation: float
    """Correlation of the ids at the same position of two epochs; 0 of true permutations."""
    mixing: dict[str, float] = field(default_factory=dict)
    """Mean number of different shards, and labels, in a batch, as a part of what a true permutation is expected to have."""


def measure_order(
    ids: Int64, later: Int64, num_samples: int, batch_size: int, groups: dict[str, Int64], whole: bool
) -> OrderQuality:
    """Returns what an order is like.

    Args:
        ids: samples in the order of their positions, from the epoch's start: int64 of shape (positions,).
        later: those of the next epoch at the same positions, likewise.
        num_samples: samples of the dataset.
        batch_size: samples of a batch, which are neighbours in the order.
        groups: by name, the number of the shard, label or the like of each sample: int64 of shape (samples,).
        whole: whether all positions of the epoch are there.
    """
    counts = np.bincount(ids, minlength=num_samples)
    gaps = np.abs(np.diff(ids))
    return OrderQuality(
        num_positions=len(ids),
        num_missing=int((counts == 0).sum()) if whole else 0,
        num_repeated=int(np.maximum(counts - 1, 0).sum()),
        entropy=_entropy(gaps, num_samples),
        displacement=float(np.abs(ids - np.arange(len(ids))).mean() / max(1, num_samples)) if len(ids) else 0.0,
        correlation=_correlation(ids[:-1], ids[1:]),
        epoch_correlation=_correlation(ids, later),
        mixing={name: mixing(ids, numbers, batch_size) for name, numbers in groups.items()},
    )


def mixing(ids: Int64, numbers: Int64, batch_size: int) -> float:
    """Returns the mean number of different groups in the batches, divided by what it is expected to be at random.

    Of a batch of b from n samples without replacement, a group of k is in it with probability 1 - C(n - k, b) / C(n, b).

    Args:
        ids: samples in the order of their positions.
        numbers: group of each sample of the dataset.
        batch_size: b.
    """
    num_batches = len(ids) // batch_size
    if not num_batches:
        return float("nan")
    found = np.sort(numbers[ids[: num_batches * batch_size]].reshape(num_batches, batch_size), axis=1)
    distinct = 1 + (np.diff(found, axis=1) != 0).sum(axis=1)
    return float(distinct.mean() / expected_groups(np.bincount(numbers), batch_size))


def expected_groups(sizes: Int64, batch_size: int) -> float:
    """Returns how many groups a batch has on average if it is drawn at random without replacement.

    Args:
        sizes: samples of each group: int64 of shape (groups,).
        batch_size: samples of a batch, at most all.
    """
    sizes = sizes[sizes > 0]
    num_samples = int(sizes.sum())
    drawn = np.arange(batch_size)
    absent = 0.0
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        left = np.maximum(num_samples - size - drawn, 0) / (num_samples - drawn)
        absent += float(count) * float(np.prod(left))
    return len(sizes) - absent


def stretches(num_positions: int, batch_size: int, num_bins: int) -> Iterator[slice]:
    """Yields about so many stretches of an epoch of whole batches, for pictures."""
    edges = np.linspace(0, num_positions // batch_size, min(num_bins, num_positions // batch_size) + 1).astype(np.int64)
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield slice(first * batch_size, last * batch_size)


def _entropy(gaps: Int64, num_samples: int) -> float:
    """Returns the entropy of gaps between ids, by bins of equal width over the ids and one for neighbours, in bits."""
    if not len(gaps):
        return 0.0
    num_bins = min(_MAX_BINS, max(1, len(gaps) // 8), num_samples)
    bins = np.where(gaps <= 1, 0, 1 + gaps * num_bins // num_samples)
    shares = np.bincount(bins) / len(gaps)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def _correlation(one: Int64, other: Int64) -> float:
    if len(one) < 2 or (one == one[0]).all() or (other == other[0]).all():
        return 0.0
    return float(np.corrcoef(one.astype(np.float64), other.astype(np.float64))[0, 1])
