"""Drawing samples by weight, with replacement: each position by itself, from seed, epoch and position alone.

Recipe 1: weights become whole numbers, round(weight / largest * 2**bits) and at least 1 unless the weight is 0, with bits =
60 - (bits of their number) and at most 40; T is their sum. The key is SHAKE-256 of the ASCII text ``shardload weighted recipe=1
num_samples=<n> seed=<s> epoch=<e>``, read as two little-endian 64-bit words K0 and K1. With `mix` as of the permutation, position p
draws u = mix(mix(p + K0) ^ K1) modulo 2**64, and has the sample in whose part of [0, T) the number (u * T) >> 64 lies. All of it
is integer arithmetic but the scaling, a division and a product with a power of two that IEEE 754 rounds alike everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardload.order.epoch import EpochOrders, Order, Reseed, seed_at
from shardload.order.permutation import RECIPE, Permutation, mix

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

_SUM_BITS, _MAX_BITS = 60, 40
_HALF = np.uint64(32)
_LOW = np.uint64((1 << 32) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Weighted(EpochOrders):
    """So many draws an epoch as there are samples, each by weight and with replacement."""

    num_positions: int
    ends: Int64
    """Where each sample's part of [0, ends[-1]) ends: int64 of shape (samples,)."""
    digest: str
    """Names them."""

    @property
    def name(self) -> str:
        """That it is weighted, and by what."""
        return f"weighted {self.digest}"

    def order(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Order:
        """Returns what is drawn at the positions of an epoch; see `EpochOrders.order`."""
        # A seed or recipe that cannot be is told here as by other orders.
        Permutation(0, seed=seed, epoch=epoch, recipe=recipe)
        starts = [0, *(one.position for one in reseeds if one.epoch == epoch and one.position > 0)]
        keys = [_key(len(self.ends), seed_at(seed, reseeds, epoch, start), epoch) for start in starts]

        def order(positions: Int64) -> Int64:
            drawn = np.empty(len(positions), dtype=np.uint64)
            for start, (first, second) in zip(starts, keys, strict=True):
                mine = positions >= start
                drawn[mine] = mix(mix(positions[mine].astype(np.uint64) + first) ^ second)
            places = _scaled(drawn, int(self.ends[-1])).astype(np.int64)
            return np.searchsorted(self.ends, places, side="right").astype(np.int64, copy=False)

        return order


def make_weighted(weights: ArrayLike, num_samples: int) -> Weighted:
    """Returns the orders of weights.

    Args:
        weights: numbers from 0, of shape (samples,); they count beside each other.
        num_samples: samples that there are.

    Raises:
        ValueError: no such weights; says what is wrong with them.
    """
    given: NDArray[Any] = np.asarray(weights)
    if given.dtype.kind not in "biuf" or given.shape != (num_samples,):
        raise ValueError(
            f"weights must be numbers of shape ({num_samples},), one for each sample, not {given.dtype} of shape {given.shape}"
        )
    values = given.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise ValueError(f"weights must be finite numbers from 0, but that of sample {bad[0]} is {values[bad[0]]}")
    if not values.any():
        raise ValueError("all weights are 0: there is no sample that could be drawn")
    bits = min(_MAX_BITS, _SUM_BITS - num_samples.bit_length())
    parts = np.rint(values / values.max() * float(1 << bits)).astype(np.int64)
    parts = np.where(values > 0, np.maximum(parts, 1), 0)
    digest = hashlib.sha256(np.ascontiguousarray(parts, dtype="<i8").tobytes()).hexdigest()[:32]
    return Weighted(num_samples, np.cumsum(parts), digest)


def _key(num_samples: int, seed: int, epoch: int) -> tuple[np.uint64, np.uint64]:
    text = f"shardload weighted recipe=1 num_samples={num_samples} seed={seed} epoch={epoch}"
    first, second = np.frombuffer(hashlib.shake_256(text.encode("ascii")).digest(16), dtype="<u8").astype(np.uint64)
    return first, second


def _scaled(numbers: UInt64, total: int) -> UInt64:
    """Returns (numbers * total) >> 64, by halves: no product is longer than 64 bits."""
    high, low = np.uint64(total >> 32), np.uint64(total & ((1 << 32) - 1))
    upper, lower = numbers >> _HALF, numbers & _LOW
    middle = upper * low + (lower * low >> _HALF)
    carried = (middle & _LOW) + lower * high
    result: UInt64 = upper * high + (middle >> _HALF) + (carried >> _HALF)
    return result
