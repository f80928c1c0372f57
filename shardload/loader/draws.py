"""Which orders a loader or sampler follows: those of what it reads, or draws by weight."""

from __future__ import annotations

from numpy.typing import ArrayLike

from shardload.order.epoch import EpochOrders
from shardload.order.shuffle import Shuffle
from shardload.order.weighted import make_weighted
from shardload.reader.source import SampleSource


def orders_of(dataset: SampleSource, shuffle: Shuffle, weights: ArrayLike | None) -> EpochOrders:
    """Returns the orders of a dataset.

    Args:
        dataset: what is read.
        shuffle: how its samples are mixed.
        weights: numbers from 0, of shape (samples,), to draw them by, with replacement; None for each of them once.

    Raises:
        ValueError: the weights are none, or do not go with the rest.
    """
    if weights is None:
        return dataset.orders(shuffle)
    if shuffle is not True:
        raise ValueError("weights= draws samples at random, and with replacement: it goes with shuffle=True")
    if dataset.names:
        raise ValueError("weights= is for the samples of one dataset: a mixture has weights of its own, one a source")
    if dataset.num_ids != len(dataset):
        raise ValueError(f"weights=: {dataset!r} has an order of its own, which draws by weight would not follow")
    return make_weighted(weights, len(dataset))
