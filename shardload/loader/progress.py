"""Where an order stands: which epoch comes next, what has been delivered, and the state of it.

Pure bookkeeping that the sampler, the batch sampler and the loader share.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.errors import LoaderClosedError
from shardload.loader.standing import Standing, batches_done, reseeded, reweighed, without_rest
from shardload.loader.state import OrderKey, Place, Saved, decode_state, encode_state, form_of
from shardload.order.cursor import Partition, RankBatch
from shardload.order.epoch import EpochOrders, Order, Reseed, Segment, WindowEnd, seed_at
from shardload.order.steps import BatchPlaces, Begun, Start
from shardload.order.unit_blocks import UnitPlan
from shardload.quantities import as_integer
from shardload.run_log import Recorded

Int64 = NDArray[np.int64]


_Given = tuple[Standing, int, Partition, int | None]
"""The last that the training loop was given: where the run stood before it was given anything, the cursor after it, how the epoch
is split, and batches that were given since; None for single samples."""


class Progress:
    """The place of one run in its order. One thread moves it; others may ask.

    An epoch is entered when the first batch of an iteration is asked for, and counts as the current one until the next
    iteration, a loaded state, or `set_epoch` after its end. Positions below 0 are those that the tail `carry` has left of
    the epoch before; a state has them under that epoch.
    """

    def __init__(self, fingerprint: str, seed: int, orders: EpochOrders) -> None:
        self.key = OrderKey(fingerprint, orders.num_positions, seed, orders.name)
        self._orders = orders
        self.turn = 0
        """Number of iterations begun; each delivers under its own, so that an older one cannot move the place."""
        self._own_seed = seed
        self._reseeds: tuple[Reseed, ...] = ()
        self._standing = Standing()
        self._given: _Given | None = None
        self._num_given = 0
        # Where the run stands after what was given, if somebody has asked since.
        self._seen: tuple[_Given, Standing] | None = None
        # A wrong seed is told here rather than in the middle of a run.
        self.order(0)

    @property
    def segment(self) -> Segment | None:
        """Since when a mixture has had its weights; None for others."""
        return self._orders.segment

    @property
    def entered(self) -> Place:
        """Where the current epoch was entered."""
        return self._now.entered

    @property
    def place(self) -> Place:
        """What is delivered."""
        return self._now.place

    @property
    def seed(self) -> int:
        """The seed in force where the current or coming epoch was entered."""
        entered = self._stored(self._reseedable(without_rest(self._now.entered, self.key.num_samples)))
        return seed_at(self.key.seed, self._reseeds, entered.epoch, entered.position)

    def recorded(self, partition: Partition) -> Recorded:
        """Returns what a run log has of an iteration that will begin."""
        place = self._upcoming(partition)
        reached = self._now.reached
        after = None if reached is None else (reached.epoch, reached.position)
        start = Start(partition, place.epoch, place.position)
        begun = Begun(self._orders, start, self.key.seed, self._reseeds, after)
        return Recorded(self.key.fingerprint, self.key.recipe, begun)

    def batch_places(self, num_batches: int, partition: Partition) -> tuple[BatchPlaces, Int64]:
        """Returns where the samples stand that follow so many batches of the current or coming epoch, and their ids.

        Raises:
            ValueError: the epoch has no such batch, it lies before the place where this run entered the epoch, or its batches are
                not of single samples.
        """
        if type(partition) is not Partition:
            raise ValueError(
                f"what a batch has is only known of batches of single samples, not of the kind {self.key.shuffle!r}: take it from "
                "with_ids=True as it comes"
            )
        num_batches = as_integer(num_batches, "num_batches")
        entered = self._begun_at(partition)
        first = batches_done(entered, partition)
        stop = first + partition.num_batches(entered.position)
        if not first <= num_batches < stop:
            raise ValueError(
                f"num_batches must be from {first} to {stop - 1} in epoch {entered.epoch}, not {num_batches}"
            )
        places = Start(partition, entered.epoch, entered.position).places(num_batches - first)
        # Positions of the epoch before are told as such.
        relative = places.positions - (entered.epoch - places.epochs) * self.key.num_samples
        return places, self.order(entered.epoch)(relative)

    def windows(self, epoch: int) -> tuple[WindowEnd, WindowEnd] | None:
        """Returns where the windows of an epoch and of the next one end; None where samples may lie anywhere."""
        seeds = (seed_at(self.key.seed, self._reseeds, one, 0) for one in (epoch, epoch + 1))
        own, later = (self._orders.window_end(one, seed) for one, seed in zip((epoch, epoch + 1), seeds, strict=True))
        return None if own is None or later is None else (own, later)

    def order(self, epoch: int) -> Order:
        """Returns the function from positions of an epoch, or below 0 of the one before, to sample ids."""
        current = self._order_of(epoch)
        if epoch == 0:
            return current
        before, num_positions = self._order_of(epoch - 1), self.key.num_samples

        def both(positions: Int64) -> Int64:
            early = positions < 0
            if not early.any():
                return current(positions)
            ids = np.empty_like(positions)
            ids[early] = before(positions[early] + num_positions)
            ids[~early] = current(positions[~early])
            return ids

        return both

    def in_epoch(self, partition: Partition, epoch: int) -> Partition:
        """Returns how an epoch is split, for partitions that depend on what stands in it."""
        return partition.in_epoch((epoch, self.key.seed, self._reseeds), lambda: self._order_of(epoch))

    def batches(self, partition: Partition, rank: int, place: Place) -> Iterator[RankBatch]:
        """Yields a rank's batches from a place to the end of its epoch."""
        return self.in_epoch(partition, place.epoch).batches(rank, place.position, self.order(place.epoch))

    def set_epoch(self, epoch: int, partition: Partition) -> None:
        """Sets the epoch of the next iteration; a place that was just loaded wins over it."""
        epoch = as_integer(epoch, "epoch")
        now = self._now
        if now.loaded is not None:
            coming = self._normal(now.loaded, partition).epoch
            if epoch != coming:
                message = f"set_epoch({epoch}) is ignored once: the state that was loaded goes on in epoch {coming}"
                warnings.warn(message, UserWarning, stacklevel=3)
            return
        if epoch != self._normal(now.next, partition).epoch:
            now = replace(now, next=Place(epoch))
        if not now.live:
            place = self._normal(now.next, partition)
            now = replace(now, place=place, entered=place, begun=False)
        self._move(now)

    def upcoming_epoch(self, partition: Partition) -> int:
        """Returns the epoch that the next iteration runs."""
        return self._upcoming(partition).epoch

    def check(self, partition: Partition) -> None:
        """Refuses settings that give no batch at all.

        Raises:
            ValueError: says what would be needed.
        """
        partition.check()
        place = self._upcoming(partition)
        self.in_epoch(partition, place.epoch).check(place.position)

    def begin(self, partition: Partition) -> Place:
        """Starts an iteration: the remainder of a loaded place, else the next epoch not yet begun."""
        now = self._now
        if now.resumed and now.live and now.place.position - now.entered.position <= partition.global_batch:
            warnings.warn(
                f"the rest of epoch {now.entered.epoch}, which a loaded state had to go on with, was left after at most one "
                f"batch; epoch {now.next.epoch} starts now. Load the state again after looking at a batch",
                UserWarning,
                stacklevel=5,
            )
        place = self._upcoming(partition)
        coming, resumed = Place(place.epoch + 1), now.loaded is not None
        self._move(Standing(place, place, coming, begun=True, live=True, resumed=resumed, reached=now.reached))
        self.turn += 1
        return place

    def deliver(self, cursor: int, turn: int, partition: Partition, *, whole_batch: bool = True) -> None:
        """Notes that the training loop was given what ends at `cursor`, by the iteration of a turn.

        Args:
            cursor: cursor after it.
            turn: the iteration's `turn`.
            partition: what the iteration began with.
            whole_batch: False for samples one by one, which nobody knows the batches of.

        Raises:
            LoaderClosedError: a newer iteration has begun.
        """
        if turn != self.turn:
            raise LoaderClosedError("this iterator is closed: a newer one of the same order took over")
        # The training loop waits for this: what follows from it is worked out when somebody asks.
        self._num_given = number = self._num_given + 1
        self._given = self._standing, cursor, partition, number if whole_batch else None

    @property
    def _now(self) -> Standing:
        """Where the run stands."""
        given, seen = self._given, self._seen
        if given is None:
            return self._standing
        if seen is None or seen[0] is not given:
            seen = self._seen = given, self._after(*given)
        return seen[1]

    def _after(self, before: Standing, cursor: int, partition: Partition, num_batches: int | None) -> Standing:
        """Returns where the run stands after what was given."""
        batches = 0 if num_batches is None else before.place.batches + num_batches
        place = Place(before.place.epoch, cursor, batches)
        now = replace(before, place=place, reached=place)
        # Trainers that count batches stop here, and never ask whether there is another one.
        if not self.in_epoch(partition, place.epoch).has_batch(cursor):
            carries = partition.tail == "carry" and now.next == Place(now.entered.epoch + 1)
            now = replace(now, live=False, next=place if carries else now.next)
        return now

    def _move(self, standing: Standing) -> None:
        """Has the run stand somewhere: what is given from here on counts anew."""
        self._standing = standing
        self._given = self._seen = None
        self._num_given = 0

    def num_batches(self, partition: Partition) -> int:
        """Returns the batches of the current or coming epoch: those done in it and those left."""
        place = self._begun_at(partition)
        partition = self.in_epoch(partition, place.epoch)
        return batches_done(place, partition) + partition.num_batches(place.position)

    def num_samples(self, partition: Partition) -> int:
        """Returns the samples a rank has in the current or coming epoch; `partition` has batches of one."""
        position = self.entered_position(partition)
        return position // partition.num_replicas + partition.num_batches(position)

    def entered_position(self, partition: Partition) -> int:
        """Returns the position at which the current or coming epoch was or will be entered."""
        return self._begun_at(partition).position

    def remaining(self, partition: Partition) -> int:
        """Returns the batches that are left of the current or coming epoch; 0 after its last one."""
        place = self._now.place if self._now.begun else self._upcoming(partition)
        return self.in_epoch(partition, place.epoch).num_batches(place.position)

    def state(self, partition: Partition) -> dict[str, str]:
        """Returns the state of what was delivered; an epoch that was delivered whole counts as the next one's start."""
        return self._encode(self._normal(self._now.place, partition))

    def state_at(self, num_batches: int, partition: Partition) -> dict[str, str]:
        """Returns the state after so many batches of the current or coming epoch.

        Raises:
            ValueError: the epoch has no such batch, it lies before the place where this run entered the epoch, or it is
                the start of an epoch that was delivered whole, which nobody goes on with.
        """
        num_batches = as_integer(num_batches, "num_batches", None)
        entered = self._begun_at(partition)
        mine = self.in_epoch(partition, entered.epoch)
        first = batches_done(entered, mine)
        if num_batches < first or not mine.has_batch(entered.position, num_batches - first):
            last = first + mine.num_batches(entered.position)
            raise ValueError(f"num_batches must be from {first} to {last} in epoch {entered.epoch}, not {num_batches}")
        if num_batches == 0 and self._now.begun and not mine.has_batch(self._now.place.position):
            last = first + mine.num_batches(entered.position)
            raise ValueError(
                f"epoch {entered.epoch} was delivered whole: its start would repeat it. num_batches counts the batches of that "
                f"epoch (its end is {last}) until the next iteration begins"
            )
        place = Place(entered.epoch, mine.after(entered.position, num_batches - first), num_batches)
        return self._encode(self._normal(place, partition))

    def load(
        self,
        state: Mapping[str, Any],
        skip_samples: int = 0,
        reseed: int | None = None,
        reweigh: bool = False,
        plan: UnitPlan | None = None,
    ) -> None:
        """Takes up the place of a state, some samples (over all ranks) on, if need be with another seed or weights from there.

        Args:
            state: the state.
            skip_samples: samples to pass over; where they are put together, as many units as have so many or more.
            reseed: the seed to go on with; None for no other.
            reweigh: go on with the weights of these orders where the state has others.
            plan: what samples are put together to.

        Raises:
            StateMismatchError: the state belongs to another dataset, seed or order; nothing has changed then.
            ValueError: `skip_samples` is negative, `reseed` is no seed, or there were too many of them; or `reweigh` does not go
                with them or with what is read.
        """
        skip_samples = as_integer(skip_samples, "skip_samples")
        orders, num_left_out = self._orders, self._orders.num_places - self._orders.num_positions
        if reweigh and orders.segment is None:
            raise ValueError(
                "reweigh=True is for mixtures: nothing else has weights, and batches packed from a mixture keep theirs"
            )
        form = form_of(state, orders)
        num_samples = self.key.num_samples + num_left_out
        key = replace(self.key, seed=self._own_seed, shuffle=form.name, num_samples=num_samples)
        saved = decode_state(state, key, reseed, orders.segment, reweigh)
        told = saved.seed, saved.reseeds, key.recipe
        position = orders.restored(saved.place.epoch, saved.place.position, *told)
        if plan is None or not skip_samples:
            epochs, position = divmod(position + skip_samples, max(1, saved.num_samples - num_left_out))
        else:
            epochs, position = self._past(saved, skip_samples, plan)
        # Batches that were skipped or belong to an epoch before are no batches of this one.
        batches = saved.place.batches if epochs == 0 else 0
        place = Place(saved.place.epoch + epochs, position, batches)
        if saved.segment is not None:
            orders, place = reweighed(orders, saved, place)
        there = self._reseedable(replace(place, position=orders.stored(place.epoch, place.position, *told)))
        reseeds = saved.reseeds if reseed is None else reseeded(saved.reseeds, there, reseed)
        before = form.restored(saved.place.epoch, saved.place.position, *told)
        reached = replace(saved.place, position=before)
        self._orders = orders
        self.key, self._reseeds = replace(self.key, seed=saved.seed), reseeds
        # What was given before does not matter any more, and may have no answer: lengths that cannot be read.
        self._move(Standing(place, place, place, loaded=place, resumed=self._standing.resumed, reached=reached))

    def _order_of(self, epoch: int) -> Order:
        return self._orders.order(epoch, self.key.seed, self._reseeds, self.key.recipe)

    def _past(self, saved: Saved, num_samples: int, plan: UnitPlan) -> tuple[int, int]:
        """Returns how many epochs, and at which position, after a saved place so many samples have passed."""
        epochs, position = 0, saved.place.position
        while True:
            epoch = saved.place.epoch + epochs
            key = epoch, saved.seed, saved.reseeds
            blocks = plan.epoch(key, functools.partial(self._orders.order, *key, self.key.recipe))
            position, num_samples = blocks.past(position, num_samples)
            if not num_samples or not blocks.num_units(0):
                return epochs, position
            epochs, position = epochs + 1, 0

    def _reseedable(self, place: Place) -> Place:
        """Returns the first place from a place on that can have another seed."""
        position = self._orders.reseed_position(place.position)
        if position == place.position or position < self.key.num_samples:
            return replace(place, position=position)
        return Place(place.epoch + 1)

    def _upcoming(self, partition: Partition) -> Place:
        now = self._now
        return self._normal(now.next if now.loaded is None else now.loaded, partition)

    def _begun_at(self, partition: Partition) -> Place:
        """Returns where the current epoch was entered, or the coming one will be."""
        return self._now.entered if self._now.begun else self._upcoming(partition)

    def _normal(self, place: Place, partition: Partition) -> Place:
        """Returns a place as one that at least one batch follows in its epoch: where there is none, in the next epoch."""
        if partition.tail != "carry":
            place = without_rest(place, partition.num_samples)
        if self.in_epoch(partition, place.epoch).has_batch(place.position):
            return place
        rest = max(0, partition.num_samples - place.position) if partition.tail == "carry" else 0
        return Place(place.epoch + 1, -rest)

    def _encode(self, place: Place) -> dict[str, str]:
        key, num_places = self.key, self._orders.num_places
        if num_places != self._orders.num_positions:
            key = replace(key, num_samples=num_places)
        return encode_state(key, self._stored(place), self._reseeds, self._orders.segment)

    def _stored(self, place: Place) -> Place:
        """Returns a place as states have it."""
        place = without_rest(place, self.key.num_samples)
        told = self.key.seed, self._reseeds, self.key.recipe
        position = self._orders.stored(place.epoch, place.position, *told)
        return place if position == place.position else replace(place, position=position)
