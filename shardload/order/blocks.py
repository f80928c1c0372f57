"""Orders for storage whose random reads are dear: blocks of neighbours, mixed within a window. Computed, never stored.

The samples are cut into blocks of neighbours, the blocks are permuted, and each `window_blocks` of them in that order make a
window, whose samples are permuted among themselves. Whoever reads a window has only whole blocks to read. It is a permutation of
all samples, but not a true shuffle: a batch has samples of at most `window_blocks` blocks.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardload.order.epoch import EpochOrders, Inverse, Order, Reseed, WindowEnd, reseeded, reseeded_inverse, seed_at
from shardload.order.permutation import RECIPE, Permutation
from shardload.quantities import as_integer

Int64 = NDArray[np.int64]

BLOCK_BYTES = 4 << 20
"""What a block is to have unless it is told: of this size on a read from a disk or an object store costs by its bytes."""
WINDOW_BLOCKS = 64
_KEPT_WINDOWS = 4


@dataclass(frozen=True, slots=True)
class BlockShuffle:
    """Blocks of neighbours mixed within a window, for `shuffle=`."""

    block_samples: int
    """Neighbours that stay together until they are mixed with those of other blocks; 4 MiB of them with `shuffle="block"`."""
    window_blocks: int = WINDOW_BLOCKS
    """Blocks that are mixed with each other; a batch has samples of at most so many."""

    def __post_init__(self) -> None:
        as_integer(self.block_samples, "block_samples", 1)
        as_integer(self.window_blocks, "window_blocks", 1)


def usual_blocks(num_samples: int, num_bytes: int) -> BlockShuffle:
    """Returns the blocks for samples of some number and size: a function of the dataset alone, as orders must be."""
    return BlockShuffle(max(1, BLOCK_BYTES * num_samples // max(1, num_bytes)))


@dataclass(frozen=True, slots=True)
class Blocked(EpochOrders):
    """Blocks of neighbours mixed within a window, in each epoch anew."""

    num_positions: int
    shuffle: BlockShuffle

    @property
    def name(self) -> str:
        """The sizes: with others it is another order."""
        return f"block({self.shuffle.block_samples}x{self.shuffle.window_blocks})"

    def window_end(self, epoch: int, seed: int) -> WindowEnd:
        """Returns where the windows of an epoch end."""
        layout = _Layout.of(self.num_positions, self.shuffle, seed, epoch)
        return lambda position: layout.window(int(layout.slots(np.array([position]))[0]) // layout.window_blocks)[1]

    def order(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Order:
        """Returns the order of an epoch; see `block_order`."""

        def part(num_positions: int, seed: int) -> Order:
            return block_order(num_positions, self.shuffle, seed, epoch, recipe)

        return reseeded(part, self.num_positions, seed_at(seed, reseeds, epoch, 0), epoch, reseeds)

    def inverse(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Inverse:
        """Returns the inverse of the order of an epoch."""

        def part(num_positions: int, seed: int) -> Inverse:
            return block_inverse(num_positions, self.shuffle, seed, epoch, recipe)

        return reseeded_inverse(part, self.num_positions, seed_at(seed, reseeds, epoch, 0), epoch, reseeds)


def block_order(num_samples: int, shuffle: BlockShuffle, seed: int, epoch: int, recipe: int = RECIPE) -> Order:
    """Returns the order of one epoch.

    With n samples, blocks of B and windows of W: block k, of samples from k B on, stands at slot s, where
    k = Permutation(ceil(n / B), seed, epoch)(s). A window is W slots from a multiple of W on. Of its samples, laid end to end in
    the order of their slots, the i-th stands at its position j, where i = Permutation(its samples, seed_w, epoch)(j). The seed of
    window w is the first 8 bytes, little-endian, of the BLAKE2b of "shardload window <seed> <w>".
    """
    layout = _Layout.of(num_samples, shuffle, seed, epoch, recipe)
    mixed = _mixed_windows(layout, seed, epoch, recipe)

    def order(positions: Int64) -> Int64:
        places = np.empty_like(positions)
        for mine, start, permutation in mixed(positions):
            places[mine] = start + permutation.sample_ids(positions[mine] - start)
        slots = layout.slots(places)
        return layout.blocks.sample_ids(slots) * layout.block_samples + places - layout.starts(slots)

    return order


def block_inverse(num_samples: int, shuffle: BlockShuffle, seed: int, epoch: int, recipe: int = RECIPE) -> Inverse:
    """Returns the inverse of `block_order`, with the same arguments."""
    layout = _Layout.of(num_samples, shuffle, seed, epoch, recipe)
    mixed = _mixed_windows(layout, seed, epoch, recipe)

    def inverse(sample_ids: Int64) -> Int64:
        numbers, inside = np.divmod(sample_ids, layout.block_samples)
        places = layout.starts(layout.blocks.positions(numbers)) + inside
        positions = np.empty_like(places)
        for mine, start, permutation in mixed(places):
            positions[mine] = start + permutation.positions(places[mine] - start)
        return positions

    return inverse


def _mixed_windows(
    layout: _Layout, seed: int, epoch: int, recipe: int
) -> Callable[[Int64], Iterator[tuple[NDArray[np.bool_], int, Permutation]]]:
    """Returns what yields the windows of some positions: which of them lie in it, its first position, and how it is mixed."""

    @functools.lru_cache(maxsize=_KEPT_WINDOWS)
    def mixed(number: int) -> tuple[int, Permutation]:
        start, stop = layout.window(number)
        key = hashlib.blake2b(f"shardload window {seed} {number}".encode(), digest_size=8).digest()
        return start, Permutation(stop - start, seed=int.from_bytes(key, "little"), epoch=epoch, recipe=recipe)

    def windows(positions: Int64) -> Iterator[tuple[NDArray[np.bool_], int, Permutation]]:
        numbers = layout.slots(positions) // layout.window_blocks
        for number in np.unique(numbers).tolist():
            yield numbers == number, *mixed(number)

    return windows


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the blocks of an epoch lie among its positions."""

    num_samples: int
    block_samples: int
    window_blocks: int
    num_blocks: int
    blocks: Permutation
    """Slots to blocks."""
    short_slot: int
    """Where the last block stands, which may be short: then those after it start earlier."""
    lacking: int
    """By how many samples it is short."""

    @classmethod
    def of(cls, num_samples: int, shuffle: BlockShuffle, seed: int, epoch: int, recipe: int = RECIPE) -> _Layout:
        size, num_blocks = shuffle.block_samples, -(-num_samples // shuffle.block_samples)
        blocks = Permutation(num_blocks, seed=seed, epoch=epoch, recipe=recipe)
        short_slot = int(blocks.positions([num_blocks - 1])[0]) if num_blocks else 0
        lacking = num_blocks * size - num_samples
        return cls(num_samples, size, shuffle.window_blocks, num_blocks, blocks, short_slot, lacking)

    def starts(self, slots: Int64) -> Int64:
        """Returns the position at which the block of each slot starts."""
        starts = slots * self.block_samples
        return starts - np.where(slots > self.short_slot, self.lacking, 0)

    def slots(self, positions: Int64) -> Int64:
        """Returns the slot that each position lies in."""
        short_stop = (self.short_slot + 1) * self.block_samples - self.lacking
        return np.where(positions < short_stop, positions, positions + self.lacking) // self.block_samples

    def window(self, number: int) -> tuple[int, int]:
        """Returns the first position of a window, and the one after its last."""
        slots = np.minimum(np.array([number, number + 1], dtype=np.int64) * self.window_blocks, self.num_blocks)
        start, stop = self.starts(slots).tolist()
        return start, stop
