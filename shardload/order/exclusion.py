"""Orders that pass samples over: those of some ids, or those that stand at some positions.

A sample that is left out comes in no epoch; the others come in the order that they have anyway, and positions count them alone.
States count all samples, so that one that was saved before samples were left out tells the same place after that.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.order.epoch import EpochOrders, Inverse, Order, Reseed, WindowEnd
from shardload.order.permutation import RECIPE
from shardload.quantities import as_integer

Int64 = NDArray[np.int64]

LEFT_OUT = " without "
"""What the names of orders have that pass samples over."""
_KEPT_EPOCHS = 4


@dataclass(frozen=True, slots=True)
class Exclude:
    """Samples to be left out of an order, for `exclude=`."""

    ids: Sequence[int | range] | NDArray[Any] = ()
    """Their ids, single ones or ranges; kept as ranges that rise and do not touch."""
    positions: Sequence[tuple[int, int, int]] = ()
    """Or the samples that stand there: epoch, first position and the one after the last, as a run without this counts them, in
    the order of the loader's seed. What a run had after its seed was changed, say by ids."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", _runs(self.ids))
        try:
            ranges = [tuple(as_integer(n, "positions: each number") for n in one) for one in self.positions]
        except TypeError:
            raise ValueError(f"exclude: positions are (epoch, start, stop), not {self.positions!r:.80}") from None
        for one in ranges:
            if len(one) != 3 or one[1] >= one[2]:
                raise ValueError(
                    f"exclude: positions are (epoch, start, stop) with start less than stop, not {one!r:.80}"
                )
        object.__setattr__(self, "positions", tuple(sorted(set(ranges))))

    def facts(self) -> dict[str, Any]:
        """Returns what JSON can hold of it; `from_facts` takes it back."""
        ids = [[one.start, one.stop] for one in self.ids if isinstance(one, range)]
        return {"ids": ids, "positions": [list(one) for one in self.positions]}

    @classmethod
    def from_facts(cls, facts: Any) -> Exclude:
        """Returns what JSON says: ids alone or as [start, stop], positions as [epoch, start, stop].

        Raises:
            ValueError: it says something else.
        """
        if not isinstance(facts, dict) or not facts.keys() <= {"ids", "positions"}:
            raise ValueError(f'exclude: what is left out is {{"ids": ..., "positions": ...}}, not {facts!r:.80}')
        try:
            ids = [_range(*one) if isinstance(one, list) else one for one in facts.get("ids", ())]
            return cls(ids, [(epoch, start, stop) for epoch, start, stop in facts.get("positions", ())])
        except TypeError as error:
            raise ValueError(f"exclude: {error}") from None


def _range(start: int, stop: int) -> range:
    return range(start, stop)


def _runs(ids: Sequence[int | range] | NDArray[Any]) -> tuple[range, ...]:
    if isinstance(ids, range):
        ids = [ids]
    starts, stops = [], []
    for one in ids.tolist() if isinstance(ids, np.ndarray) else ids:
        if isinstance(one, range) and (one.step != 1 or one.start < 0 or not one):
            raise ValueError(f"exclude: {one!r} is no range of ids from 0 that rises by 1")
        starts.append(one.start if isinstance(one, range) else as_integer(one, "exclude: each id"))
        stops.append(one.stop if isinstance(one, range) else starts[-1] + 1)
    joined: list[range] = []
    for start, stop in sorted(zip(starts, stops, strict=True)):
        if joined and start <= joined[-1].stop:
            joined[-1] = range(joined[-1].start, max(stop, joined[-1].stop))
        else:
            joined.append(range(start, stop))
    return tuple(joined)


Excludes = Exclude | Sequence[Exclude] | Sequence[int | range] | NDArray[Any]
"""What is left out: at once, or in the order in which a run left out more and more."""


def left_out(orders: EpochOrders, excludes: Excludes, seed: int) -> EpochOrders:
    """Returns orders that pass samples over, or the same if there are none.

    Args:
        orders: those of all samples.
        excludes: what is left out; several where a run left out more and more, in that order. Ids alone are one.
        seed: seed of the run, for those that are told by their positions.

    Raises:
        ValueError: an id or position is not there, nothing is left, or it is not known of the orders where a sample stands.
    """
    parts = parts_of(excludes)
    whole, ids = orders, np.empty(0, dtype=np.int64)
    if parts and not whole.invertible:
        raise ValueError(
            f"exclude= goes with the samples of a dataset in full, block or no shuffle, not with an order of the kind "
            f"{whole.name!r}: read a view without those samples (select, filter_by), or draw them with weight 0"
        )
    for number, part in enumerate(parts, 1):
        ids = np.union1d(ids, _ids_of(part, orders, whole.num_positions, seed))
        if len(ids) >= whole.num_positions:
            raise ValueError(f"exclude= leaves none of the {whole.num_positions} samples")
        orders = Excluding(whole, ids, orders, parts[:number], seed)
    return orders


def parts_of(excludes: Excludes) -> tuple[Exclude, ...]:
    """Returns what is left out, in the order in which it came; empty if nothing is."""
    if isinstance(excludes, Exclude):
        return (excludes,)
    if isinstance(excludes, np.ndarray | range):
        return (Exclude(excludes),) if len(excludes) else ()
    if not isinstance(excludes, Iterable):
        raise ValueError(f"exclude= takes ids, or an Exclude, or a list of them, not {excludes!r:.80}")
    # Once only: from an iterator there would be nothing left to take.
    every = list(excludes)
    parts = tuple(one for one in every if isinstance(one, Exclude))
    ids = [one for one in every if not isinstance(one, Exclude)]
    if parts and ids:
        raise ValueError("exclude= is an Exclude, several of them, or ids, and not both in one list")
    return (Exclude(ids),) if ids else parts


def _ids_of(part: Exclude, orders: EpochOrders, num_samples: int, seed: int) -> Int64:
    """Returns the ids of what is left out, in any order."""
    found = []
    for one in part.ids:
        assert isinstance(one, range)
        if one.stop > num_samples:
            raise ValueError(f"exclude: there is no sample {max(one.start, num_samples)}: there are {num_samples}")
        found.append(np.arange(one.start, one.stop, dtype=np.int64))
    for epoch, start, stop in part.positions:
        if stop > orders.num_positions:
            raise ValueError(f"exclude: positions {start} to {stop} are not in an epoch of {orders.num_positions}")
        found.append(orders.order(epoch, seed)(np.arange(start, stop, dtype=np.int64)))
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Excluding(EpochOrders):
    """Orders without some samples. Made by `left_out`."""

    whole: EpochOrders
    """The orders of all samples."""
    ids: Int64
    """Those that are left out; they rise."""
    before: EpochOrders
    """The orders before the last of `parts` was added."""
    parts: tuple[Exclude, ...]
    """What they were told by."""
    seed: int
    """The seed that positions in them are of."""
    _holes: Callable[[int, int, tuple[Reseed, ...], int], Int64] = field(init=False, repr=False)
    """Epoch, seed, later seeds, recipe -> where in the order of all samples those stand that are left out; they rise."""

    def __post_init__(self) -> None:
        whole, ids = self.whole, self.ids

        @functools.lru_cache(maxsize=_KEPT_EPOCHS)
        def holes(epoch: int, seed: int, reseeds: tuple[Reseed, ...], recipe: int) -> Int64:
            return np.sort(whole.inverse(epoch, seed, reseeds, recipe)(ids))

        object.__setattr__(self, "_holes", holes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.whole, self.ids, self.before, self.parts, self.seed)

    @property
    def num_positions(self) -> int:  # type: ignore[override]
        """Samples that are left."""
        return self.whole.num_positions - len(self.ids)

    @property
    def num_places(self) -> int:
        """Samples, with those that are left out."""
        return self.whole.num_places

    @property
    def name(self) -> str:
        """That of the orders, and what names the samples that are left out."""
        name = self.whole.name
        digest = hashlib.sha256(np.ascontiguousarray(self.ids, dtype="<i8").tobytes()).hexdigest()
        plain = name if isinstance(name, str) else "full" if name else "none"
        return f"{plain}{LEFT_OUT}{len(self.ids)} samples {digest[:16]}"

    def order(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Order:
        """Returns the order of all samples, with those left out passed over."""
        whole, holes = self.whole.order(epoch, seed, reseeds, recipe), self._holes(epoch, seed, tuple(reseeds), recipe)
        return lambda positions: whole(_with_holes(positions, holes))

    def inverse(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Inverse:
        """Returns at which position of an epoch each sample stands; -1 for one that is left out."""
        whole, holes = (
            self.whole.inverse(epoch, seed, reseeds, recipe),
            self._holes(epoch, seed, tuple(reseeds), recipe),
        )

        def inverse(sample_ids: Int64) -> Int64:
            positions = whole(sample_ids)
            return np.where(np.isin(sample_ids, self.ids), -1, positions - np.searchsorted(holes, positions))

        return inverse

    def window_end(self, epoch: int, seed: int) -> WindowEnd | None:
        """Returns where windows end: those of the orders of all samples, without what is passed over."""
        end, holes = self.whole.window_end(epoch, seed), self._holes(epoch, seed, (), RECIPE)
        if end is None:
            return None

        def passed(position: int) -> int:
            whole_end = end(int(_with_holes(np.array([position]), holes)[0]))
            return whole_end - int(np.searchsorted(holes, whole_end))

        return passed

    def stored(self, epoch: int, position: int, seed: int, reseeds: Sequence[Reseed], recipe: int) -> int:
        """Returns a position as states count it: the one after the last sample before it."""
        if position == 0:
            return 0
        holes = self._holes(epoch, seed, tuple(reseeds), recipe)
        return int(_with_holes(np.array([position - 1]), holes)[0]) + 1

    def restored(self, epoch: int, position: int, seed: int, reseeds: Sequence[Reseed], recipe: int) -> int:
        """Returns a position that a state has as one of these orders: the samples left that come before it."""
        return position - int(np.searchsorted(self._holes(epoch, seed, tuple(reseeds), recipe), position))

    def forms(self) -> tuple[EpochOrders, ...]:
        """Returns the orders themselves, and those that they were before ever more was left out."""
        return (self, *self.before.forms())


def _with_holes(positions: Int64, holes: Int64) -> Int64:
    """Returns the places of positions that are counted without holes; those rise."""
    # A hole is passed once as many others are as come before it.
    return positions + np.searchsorted(holes - np.arange(len(holes)), positions, side="right")
