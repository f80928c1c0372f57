"""The part of `shardload plan` about reading a dataset from an object store."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shardload.capacity import ReadPlan, plan_reads
from shardload.cli.text import counted, echo
from shardload.order.shuffle import Shuffle
from shardload.planner import Worth, plan_requests
from shardload.quantities import format_decimal

if TYPE_CHECKING:
    from shardload.reader.dataset import ShardDataset

_WINDOW_BYTES = 64 << 20
"""What a loader announces at a time of a dataset in a store."""
_NUM_WINDOWS = 4
_WORTH = Worth(request_bytes=30e-3 * 50e6, max_request_bytes=6 << 20)
"""A store that answers after 30 ms, and brings 50 MB a second by each request: until it was measured."""


def planned_reads(dataset: ShardDataset) -> list[ReadPlan]:
    """Returns what full and block shuffle cost, from the dataset's own index: of the first windows of an epoch."""
    plan = functools.partial(plan_requests, worth=_WORTH)
    orders: tuple[tuple[str, Shuffle], ...] = (("full", True), ("block", "block"))
    return [
        plan_reads(name, _windows(dataset, shuffle), dataset.ranges, plan, dataset.num_bytes)
        for name, shuffle in orders
    ]


def reads_facts(plans: Sequence[ReadPlan]) -> list[dict[str, Any]]:
    """Returns the plans as JSON holds them."""
    return [
        dataclasses.asdict(plan)
        | {"amplification": plan.amplification, "requests_per_sample": plan.requests_per_sample}
        for plan in plans
    ]


def echo_reads(plans: Sequence[ReadPlan]) -> None:
    """Prints a line for each order."""
    echo("")
    echo("reading from the store, if it answers after 30 ms and gives 50 MB/s to each request:")
    for plan in plans:
        echo(
            f"  {plan.shuffle} shuffle: {plan.requests_per_sample:.3g} requests a sample, {plan.amplification:.2f} bytes read for "
            f"each that is needed; a cache of {format_decimal(plan.cache_bytes, 'B')} fetches each once "
            f"({counted(plan.num_samples, 'sample')} looked at)"
        )


def _windows(dataset: ShardDataset, shuffle: Shuffle) -> Iterator[NDArray[np.int64]]:
    orders = dataset.orders(shuffle)
    order, end = orders.order(0, 0), orders.window_end(0, 0)
    size = max(1, _WINDOW_BYTES * len(dataset) // max(1, dataset.num_bytes))
    start = 0
    for _ in itertools.repeat(None, _NUM_WINDOWS):
        if start >= len(dataset):
            return
        stop = min(len(dataset), start + size if end is None else end(start))
        yield order(np.arange(start, stop))
        start = stop
