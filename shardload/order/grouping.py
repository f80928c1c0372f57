"""What the samples of a block of an order are put together to, from their lengths alone: packed sequences, or batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardload.errors import ShardloadError
from shardload.order.best_fit import best_fit

Int64 = NDArray[np.int64]
Overlong = Literal["error", "truncate", "split", "drop"]

_MOST_PIECES = 1 << 16
"""Pieces a sample, in the mean over a block, that `split` has room for in a cursor."""


@dataclass(frozen=True, slots=True, eq=False)
class UnitBlock:
    """The units of a block, in their order. Each has some samples, or pieces of such, in the order of the block."""

    slots: Int64
    """The samples' places in the block, unit after unit: int64 of shape (members,)."""
    starts: Int64
    """First item of each that the unit has: int64 of shape (members,)."""
    lengths: Int64
    """Items of each that the unit has: int64 of shape (members,)."""
    edges: Int64
    """Where each unit's members start, and the end of the last: int64 of shape (units + 1,)."""
    places: Int64
    """Items that each unit takes when it is filled up: int64 of shape (units,)."""

    @property
    def num_units(self) -> int:
        """How many there are."""
        return len(self.edges) - 1


class Grouping(ABC):
    """A rule by which the samples of a block are put together to units. A value; it depends on lengths only."""

    lookahead: int
    """Samples of a block."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How states name it, with all that it depends on."""

    @property
    def stride(self) -> int:
        """Units that a block has room for: a cursor counts so many a block."""
        return self.lookahead

    @abstractmethod
    def arrange(self, lengths: Int64, sample_ids: Int64) -> UnitBlock:
        """Returns the units of a block.

        Args:
            lengths: items of its samples, in the order of the epoch: int64 of shape (samples,).
            sample_ids: their ids, for messages.

        Raises:
            ShardloadError: a sample is too long.
        """


@dataclass(frozen=True, slots=True)
class Packing(Grouping):
    """Sequences of a fixed length, filled by best fit."""

    fields: tuple[str, ...]
    """The fields that are packed, by the lengths of the first."""
    length: int
    """Items of a sequence."""
    lookahead: int
    """Samples of a block."""
    overlong: Overlong
    """What becomes of a sample with more items than `length`: an error, its first ones, all in pieces, or nothing."""

    @property
    def name(self) -> str:
        """Rule and version, all settings."""
        return f"packed/1 of {'+'.join(self.fields)} length={self.length} lookahead={self.lookahead} overlong={self.overlong}"

    @property
    def stride(self) -> int:
        """More than samples where one can be in several sequences."""
        return self.lookahead * (_MOST_PIECES if self.overlong == "split" else 1)

    def arrange(self, lengths: Int64, sample_ids: Int64) -> UnitBlock:
        """Returns the sequences, ordered by the sample that opened each, its longest: lengths do not show in the order.

        Samples without items are in none.
        """
        slots, starts, sizes = self._pieces(lengths, sample_ids)
        bins, openers = best_fit(sizes, self.length)
        if len(openers) > self.stride:
            raise ShardloadError(
                f"{len(openers):,} sequences of length {self.length:,} come of {len(lengths):,} samples, and a block has room "
                f"for {self.stride:,}: make length larger"
            )
        return _in_order(bins, openers, slots, starts, sizes, np.full(len(openers), self.length, dtype=np.int64))

    def _pieces(self, lengths: Int64, sample_ids: Int64) -> tuple[Int64, Int64, Int64]:
        """Returns what is to be packed: place in the block, first item, and number of items of each piece."""
        slots = np.flatnonzero(lengths)
        sizes = lengths[slots]
        long = sizes > self.length
        if not long.any():
            return slots, np.zeros(len(slots), dtype=np.int64), sizes
        if self.overlong == "error":
            first = int(slots[np.argmax(long)])
            raise ShardloadError(
                f"sample {sample_ids[first]} has {lengths[first]:,} items, and a sequence holds {self.length:,}: say what to do "
                "with such samples by overlong='truncate', 'split' or 'drop'",
                sample_id=int(sample_ids[first]),
            )
        if self.overlong == "drop":
            slots, sizes = slots[~long], sizes[~long]
        if self.overlong != "split":
            return slots, np.zeros(len(slots), dtype=np.int64), np.minimum(sizes, self.length)
        counts = -(-sizes // self.length)
        ends = np.cumsum(counts)
        starts = (np.arange(ends[-1]) - np.repeat(ends - counts, counts)) * self.length
        return np.repeat(slots, counts), starts, np.minimum(np.repeat(sizes, counts) - starts, self.length)


@dataclass(frozen=True, slots=True)
class TokenBudget(Grouping):
    """Batches of samples of similar length, each within a budget when it is padded to its longest sample."""

    field: str
    """The field whose items are counted."""
    max_tokens: int
    """Most items of a batch, padding included: its samples times the longest of them."""
    lookahead: int
    """Samples of a block."""
    max_samples: int | None = None
    """Most samples of a batch."""

    @property
    def name(self) -> str:
        """Rule and version, all settings."""
        most = "" if self.max_samples is None else f" max_samples={self.max_samples}"
        return f"batch_tokens/1 of {self.field!r} max_tokens={self.max_tokens} lookahead={self.lookahead}{most}"

    def arrange(self, lengths: Int64, sample_ids: Int64) -> UnitBlock:
        """Returns the batches, ordered by the longest sample of each: lengths do not show in the order."""
        if len(lengths) and lengths.max() > self.max_tokens:
            first = int(np.argmax(lengths > self.max_tokens))
            raise ShardloadError(
                f"sample {sample_ids[first]} has {lengths[first]:,} items, and a batch may have {self.max_tokens:,} "
                "(batch_tokens=): give a larger budget, or leave such samples out",
                sample_id=int(sample_ids[first]),
            )
        decreasing = np.argsort(-lengths, kind="stable")
        # Samples without items take a place all the same.
        sizes = np.maximum(lengths[decreasing], 1).tolist()
        edges, places = [0], []
        while (start := edges[-1]) < len(sizes):
            count = min(self.max_tokens // sizes[start], len(sizes) - start, self.max_samples or len(sizes))
            edges.append(start + count)
            places.append(count * sizes[start])
        bins = np.empty(len(lengths), dtype=np.int64)
        bins[decreasing] = np.repeat(np.arange(len(places)), np.diff(edges))
        nothing, slots = np.zeros_like(bins), np.arange(len(lengths), dtype=np.int64)
        return _in_order(bins, decreasing[edges[:-1]], slots, nothing, lengths, np.array(places, dtype=np.int64))


def _in_order(bins: Int64, openers: Int64, slots: Int64, starts: Int64, sizes: Int64, places: Int64) -> UnitBlock:
    """Returns the block of what is in bins: the bins by what opened each, the pieces in each as they came."""
    by_opener = np.argsort(openers, kind="stable")
    ranks = np.empty_like(by_opener)
    ranks[by_opener] = np.arange(len(by_opener))
    units = ranks[bins]
    members = np.argsort(units, kind="stable")
    edges = np.zeros(len(openers) + 1, dtype=np.int64)
    np.cumsum(np.bincount(units, minlength=len(openers)), out=edges[1:])
    return UnitBlock(slots[members], starts[members], sizes[members], edges, places[by_opener])
