"""Which samples of a source a view has, as a range or an array of their ids, and how they are chosen by hash."""

from __future__ import annotations

import contextlib
import hashlib
import operator
from collections.abc import Sequence
from numbers import Real

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

Selection = range | Int64
"""Ids in the order of the view: a range, which takes no memory, or int64 of shape (samples,)."""


def select_from(selection: Selection, chosen: Selection) -> Selection:
    """Returns the selection that is made of some of another one's samples.

    Args:
        selection: the ids of a view.
        chosen: places in it, each from 0 to its length.
    """
    if isinstance(chosen, range):
        stop = chosen.stop if chosen.stop >= 0 else None
        return selection[chosen.start : stop : chosen.step] if len(chosen) else selection[:0]
    return ids_at(selection, chosen)


def ids_at(selection: Selection, places: Int64) -> Int64:
    """Returns the ids at places of a selection: int64 of the same shape."""
    if isinstance(selection, range):
        return places * selection.step + selection.start
    return selection[places]


def selection_digest(selection: Selection) -> str:
    """Returns what names a selection: equal for equal ids in equal order, whether a range or an array has them."""
    if not isinstance(selection, range) and len(selection):
        step = int(selection[1] - selection[0]) if len(selection) > 1 else 1
        first = int(selection[0])
        if step and bool((np.diff(selection) == step).all()):
            selection = range(first, first + step * len(selection), step)
    if len(selection) == 0:
        return "none"
    if isinstance(selection, range):
        step = selection.step if len(selection) > 1 else 1
        return f"{selection.start}+{step}x{len(selection)}"
    return hashlib.sha256(np.ascontiguousarray(selection, dtype="<i8").tobytes()).hexdigest()


def resolve_indices(
    indices: Sequence[int] | Int64, num_samples: int, location: str, num_ids: int | None = None
) -> Int64:
    """Returns indices as ids from 0, those below 0 counted from the end: int64 of shape (indices,).

    Args:
        indices: integers in any form.
        num_samples: how many there are.
        location: where, for messages.
        num_ids: how many ids there are, where those from `num_samples` on may be told too.

    Raises:
        IndexError: one is outside; names it.
    """
    if isinstance(indices, np.ndarray) and indices.dtype.kind == "i" and indices.ndim == 1:
        ids = indices.astype(np.int64)
    else:
        ids = _as_integers(indices)
    out = (ids < -num_samples) | (ids >= (num_samples if num_ids is None else num_ids))
    if out.any():
        raise IndexError(f"{location}: sample {ids[out][0]} is out of range: there are {num_samples}")
    return np.where(ids < 0, ids + num_samples, ids)


def _as_integers(indices: Sequence[int] | Int64) -> Int64:
    with contextlib.suppress(ValueError):
        # What numpy takes for whole numbers are some, and it takes a fifth of the time; others are looked at one by one.
        found = np.asarray(indices)
        if found.dtype.kind == "i" and found.ndim == 1:
            return found.astype(np.int64, copy=False)
        # A mask would pass for ones and zeros, and give those two samples over and over.
        if found.dtype.kind == "b" and found.size:
            raise TypeError(
                "sample ids are integers, not a mask of bools: give the ids at which it is True (np.flatnonzero)"
            )
    try:
        return np.array([operator.index(index) for index in indices], dtype=np.int64)
    except TypeError:
        raise TypeError(f"sample ids are integers, not {indices!r}"[:200]) from None
    except OverflowError:
        raise IndexError(f"a sample id in {indices!r} is out of range"[:200]) from None


def chosen_by_hash(numbers: UInt64, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Returns which of some numbers fall into a fraction: bool of the same shape, each by its own number and the seed only.

    A number is hashed by two rounds of the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", 2014) with the two halves of a key, which is the BLAKE2b of the seed.
    """
    if not isinstance(fraction, Real) or not 0.0 <= fraction <= 1.0:
        raise ValueError(f"the fraction must be from 0 to 1, not {fraction!r}")
    key = hashlib.blake2b(f"shardload split {seed}".encode(), digest_size=16).digest()
    first, second = np.frombuffer(key, dtype="<u8").astype(np.uint64)
    hashed = mixed(mixed(numbers ^ first) ^ second)
    # The upper 53 bits, so that the comparison with a float is exact.
    return (hashed >> np.uint64(11)) < np.uint64(int(fraction * (1 << 53)))


def mixed(z: UInt64) -> UInt64:
    """Returns numbers well mixed, by a bijection: the finaliser of SplitMix64 after one step of its counter."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
