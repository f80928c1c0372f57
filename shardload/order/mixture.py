"""The orders of several sources that come in given shares."""

from __future__ import annotations

import functools
import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardload.order.blend import Blend
from shardload.order.epoch import EpochOrders, Order, Reseed, Segment
from shardload.order.permutation import RECIPE, Permutation

Int64 = NDArray[np.int64]
Stop = Literal["first_exhausted", "all_exhausted", "repeat"]


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a mixture."""

    name: str
    """Its name there, by which its order is keyed."""
    orders: EpochOrders
    """Its own orders: epoch i is its pass i."""
    first_id: int
    """Where its ids begin among those of all."""
    later_id: int = 0
    """Where those begin that are not below its number of positions, such as of windows that are moved in each epoch."""


@dataclass(frozen=True, slots=True)
class MixtureOrders(EpochOrders):
    """Several sources in given shares, each in its own order, which goes on from epoch to epoch.

    Within an epoch the blend begins anew, so that all epochs have the same number of each source. What is drawn from a source is
    its pass 0 from the first to the last sample, then its pass 1, and so on, whatever shares it has: none of its samples comes
    a second time before all others came once.
    """

    parts: tuple[Part, ...]
    blend: Blend
    stop: Stop
    since: Segment
    """Since when it has had these shares."""
    num_positions: int

    @property
    def name(self) -> str:
        """The stop rule and the names of the sources' orders."""
        names = list(map(str, (part.orders.name for part in self.parts)))
        return f"mixture {self.stop} {names[0] if len(set(names)) == 1 else ', '.join(names)}"

    @property
    def segment(self) -> Segment:
        """Since when it has had these shares."""
        return self.since

    def going_on(self, segment: Segment, epoch: int, position: int) -> tuple[MixtureOrders, int]:
        """Returns the orders of a run that goes on from a place, with these shares: see `EpochOrders.going_on`.

        An epoch under way ends where the stop rule ends it under the new shares, given what was drawn in it.
        """
        if segment[:2] == self.since[:2]:
            return replace(self, since=segment), position
        before = replace(self, blend=Blend(segment.parts), num_positions=segment.num_positions, since=segment)
        first, drawn = before.drawn(epoch, position), before.drawn(epoch, 0)
        used = [of_all - of_others for of_all, of_others in zip(first, drawn, strict=True)]
        if epoch == segment.epoch:
            used = [more + one for more, one in zip(used, segment.used, strict=True)]
        left = max(0, self.num_positions - position)
        if self.stop != "repeat":
            wanted = [max(0, size - one) for size, one in zip(self._sizes, used, strict=True)]
            left = epoch_length(self.blend, wanted, self.stop)
        start = self.num_positions - left
        since = Segment(self.blend.parts, self.num_positions, epoch, start, tuple(first), tuple(used))
        return replace(self, since=since), start

    def drawn(self, epoch: int, position: int) -> list[int]:
        """Returns how many samples were drawn from each source before a place that is not before these shares."""
        start, before = self._begins(epoch)
        counts = self.blend.counts(max(0, position - start))
        return [some + more for some, more in zip(before, counts, strict=True)]

    def order(self, epoch: int, seed: int, reseeds: Sequence[Reseed] = (), recipe: int = RECIPE) -> Order:
        """Returns what stands at the positions of an epoch; see `EpochOrders.order`.

        Args:
            epoch: the epoch.
            seed: the first seed; each source's is derived from it and the name of the source.
            reseeds: the seeds that came later. Each source has them from its own place at the time on.
            recipe: version of the permutation.
        """
        # A seed or recipe that cannot be is told here as by other orders.
        Permutation(0, seed=seed, epoch=epoch, recipe=recipe)
        if epoch < self.since.epoch:
            return _refuse
        start, before = self._begins(epoch)
        ids_of = self._passes(seed, reseeds, recipe)
        length = max(1, self.num_positions - start)

        def order(positions: Int64) -> Int64:
            # Positions before these shares are asked for only as fillers, from the start of the epoch.
            places = positions - start if start == 0 else (positions - start) % length
            numbers, draws = self.blend.draws(places)
            ids = np.empty_like(positions)
            for number in np.unique(numbers).tolist():
                mine = numbers == number
                passes, own = np.divmod(draws[mine] + before[number], self._sizes[number])
                part, size = self.parts[number], self._sizes[number]
                own_ids = _by_pass(functools.partial(ids_of, number), passes, own)
                ids[mine] = own_ids + np.where(own_ids < size, part.first_id, part.later_id - size)
            return ids

        return order

    @property
    def _sizes(self) -> list[int]:
        return [part.orders.num_positions for part in self.parts]

    def _begins(self, epoch: int) -> tuple[int, list[int]]:
        """Returns the position at which the blend begins in an epoch, and what was drawn of each source before."""
        since = self.since
        if epoch <= since.epoch:
            return since.position, list(since.drawn)
        rest = self.blend.counts(self.num_positions - since.position)
        whole, num_epochs = self.blend.counts(self.num_positions), epoch - since.epoch - 1
        return 0, [d + r + num_epochs * w for d, r, w in zip(since.drawn, rest, whole, strict=True)]

    def _passes(self, seed: int, reseeds: Sequence[Reseed], recipe: int) -> Callable[[int, int], Order]:
        """Returns the function from the number of a source and of its pass to the order of that."""
        places = [self.drawn(reseed.epoch, reseed.position) for reseed in reseeds]

        @functools.lru_cache(maxsize=4 * len(self.parts))
        def order_of(number: int, number_of_pass: int) -> Order:
            part = self.parts[number]
            size = part.orders.num_positions
            later = [
                Reseed(*divmod(drawn[number], size), seed_of(reseed.seed, part.name))
                for drawn, reseed in zip(places, reseeds, strict=True)
            ]
            return part.orders.order(number_of_pass, seed_of(seed, part.name), later, recipe)

        return order_of


def make_mixture_orders(
    parts: Sequence[Part], blend: Blend, stop: Stop, num_samples: int | None = None
) -> MixtureOrders:
    """Returns the orders of sources in shares.

    Args:
        parts: the sources; those that have a share are not empty.
        blend: their shares.
        stop: what ends an epoch.
        num_samples: samples of an epoch; for `repeat` only.
    """
    sizes = [part.orders.num_positions for part in parts]
    num_positions = epoch_length(blend, sizes, stop) if num_samples is None else num_samples
    none = (0,) * len(parts)
    since = Segment(blend.parts, num_positions, 0, 0, none, none)
    return MixtureOrders(tuple(parts), blend, stop, since, num_positions)


def epoch_length(blend: Blend, wanted: Sequence[int], stop: Stop) -> int:
    """Returns the positions after which an epoch ends.

    Args:
        blend: the shares.
        wanted: samples of each source. With `first_exhausted` the epoch ends before a source would give more than that, with
            `all_exhausted` when each source with a share has given them.
        stop: one of the two.
    """
    coming = [(number, share) for number, share in enumerate(blend.parts) if share]
    # A source's draws are never off by more than one.
    ends = [wanted[number] * blend.period // share for number, share in coming]
    slack = 2 * blend.period // min(share for _, share in coming) + 1
    end = min(ends) if stop == "first_exhausted" else max(ends)
    least = max(0, end - slack)

    def beyond(position: int) -> bool:
        counts = blend.counts(position)
        if stop == "first_exhausted":
            return any(counts[number] > wanted[number] for number, _ in coming)
        return all(counts[number] >= wanted[number] for number, _ in coming)

    found = least + bisect_left(range(least, end + slack), True, key=beyond)
    return found - 1 if stop == "first_exhausted" else found


def seed_of(seed: int, name: str) -> int:
    """Returns the seed of a source's own order: sources of equal size are not mixed alike."""
    text = f"shardload mixture {seed} {name}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _by_pass(order_of: Callable[[int], Order], passes: Int64, places: Int64) -> Int64:
    ids = np.empty_like(places)
    for number in np.unique(passes).tolist():
        mine = passes == number
        ids[mine] = order_of(number)(places[mine])
    return ids


def _refuse(positions: Int64) -> Int64:
    raise ValueError("what was delivered before the weights of the mixture were changed is not known any more")
