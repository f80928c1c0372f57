"""How samples are mixed, as a user says it."""

from __future__ import annotations

import re
from typing import Literal

from shardload.order.blocks import Blocked, BlockShuffle, usual_blocks
from shardload.order.epoch import EpochOrders, InOrder, Permuted

Shuffle = bool | Literal["block"] | BlockShuffle
"""A new permutation of all samples each epoch (True), their own order (False), or blocks of neighbours mixed within a window."""


def check_shuffle(shuffle: object) -> Shuffle:
    """Returns what was asked for.

    Raises:
        ValueError: there is no such way.
    """
    if isinstance(shuffle, BlockShuffle) or shuffle == "block":
        return shuffle
    if isinstance(shuffle, str):
        raise ValueError(f"shuffle must be True, False, 'block' or a BlockShuffle, not {shuffle!r}")
    return bool(shuffle)


def make_orders(num_samples: int, num_bytes: int, shuffle: Shuffle) -> EpochOrders:
    """Returns the orders of so many samples of so many bytes, mixed as it was asked for."""
    if shuffle == "block":
        shuffle = usual_blocks(num_samples, num_bytes)
    if isinstance(shuffle, BlockShuffle):
        return Blocked(num_samples, shuffle)
    return Permuted(num_samples) if shuffle else InOrder(num_samples)


def orders_named(name: object, num_samples: int) -> EpochOrders:
    """Returns the orders of so many samples that have a name in states.

    Raises:
        ValueError: no orders of samples by themselves have that name.
    """
    if isinstance(name, bool):
        return Permuted(num_samples) if name else InOrder(num_samples)
    sizes = re.fullmatch(r"block\(([1-9][0-9]{0,17})x([1-9][0-9]{0,17})\)", str(name), re.ASCII)
    if sizes is None:
        raise ValueError(
            f"an order of the kind {name!r:.80} is none of single samples in full, block or no shuffle: what a step of it "
            "has, only the loader that it belongs to knows"
        )
    return Blocked(num_samples, BlockShuffle(int(sizes[1]), int(sizes[2])))
