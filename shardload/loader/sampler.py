"""The order as torch samplers, for those who keep their DataLoader."""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from torch.utils.data import BatchSampler, DistributedSampler

from shardload.errors import ShardloadError
from shardload.loader.audit import Delivered, audit_ids
from shardload.loader.draws import orders_of
from shardload.loader.hints import Told, forecast_of
from shardload.loader.progress import Progress
from shardload.loader.ranks import RankChoice, announce, one_of
from shardload.order.cursor import Partition, RankBatch, Tail, Window, by_window, rank_batches
from shardload.order.exclusion import Excludes, left_out
from shardload.order.sample_ids import SampleIds, UseWatch
from shardload.order.shuffle import Shuffle, check_shuffle
from shardload.quantities import as_integer
from shardload.reader.far import is_cached
from shardload.reader.issued import Issued
from shardload.reader.source import SampleSource

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

_BLOCK = 1 << 12


class ShardSampler(DistributedSampler[int]):
    """One rank's part of the global order, as a torch sampler.

    The order is a true permutation of all samples, a function of (seed, epoch, position): rank r of R takes positions r,
    r + R, ... Each iteration is the next epoch, with or without `set_epoch`. Iterate batches through `batch_sampler`
    where you can: it announces reads, knows the exact state, and gives transforms their `rng`.
    """

    dataset: SampleSource  # type: ignore[assignment]

    def __init__(
        self,
        dataset: SampleSource,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: Shuffle = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        exclude: Excludes = (),
        world_size: int | None = None,
        mesh: DeviceMesh | None = None,
        mesh_dims: str | Sequence[str] | None = None,
        process_group: ProcessGroup | None = None,
        weights: ArrayLike | None = None,
    ) -> None:
        """Describes the order; nothing is read.

        Args:
            dataset: the dataset; its fingerprint and length are taken.
            num_replicas: ranks that share the order; with `rank`. None for both: as `ShardLoader`.
            rank: this process; None beside `num_replicas` for a sampler that only tells lengths and states.
            shuffle: a permutation, the order of the dataset, or blocks of neighbours mixed within a window, as `ShardLoader`.
            seed: seed of the permutations, from 0 to 2^64 - 1; equal on all ranks.
            drop_last: leave out the last samples that do not fill every rank (or, with batches, every batch); else one
                replica gets a shorter end, and several are padded with the epoch's first samples, as in torch.
            exclude: samples that come in no epoch, as `ShardLoader`.
            world_size: another name for num_replicas.
            mesh: a device mesh to take the ranks from, as `ShardLoader`.
            mesh_dims: its data-parallel dimensions.
            process_group: a process group to take the ranks from.
            weights: numbers to draw samples by, with replacement, as `ShardLoader`.

        Raises:
            ValueError: ranks, seed or weights that cannot be.
        """
        ranks = RankChoice(one_of(num_replicas, world_size), rank, mesh, mesh_dims, process_group).resolve()
        seed = as_integer(seed, "seed")
        # Torch wants its own Dataset class by name but uses only the length.
        super().__init__(dataset, ranks.num_replicas, ranks.rank or 0, bool(shuffle), seed, bool(drop_last))  # type: ignore[arg-type]
        self._ranks = ranks
        self._announced = False
        self._thrown_away = False
        orders = orders_of(dataset, check_shuffle(shuffle), weights)
        self.progress = Progress(dataset.fingerprint, seed, left_out(orders, exclude, seed))

    def batch_sampler(self, batch_size: int, read_ahead: int = 16, *, tail: Tail | None = None) -> ShardBatchSampler:
        """Returns the batches of this order, for `DataLoader(batch_sampler=...)`. They share this sampler's place.

        Args:
            batch_size: samples a batch and rank.
            read_ahead: how many batches before they are read the operating system is told of them, from this process and
                for worker processes too; 0 for never. What is not in memory then comes with many reads under way at once.
            tail: what becomes of the end of an epoch (see `Partition`); None for what `drop_last` says.
        """
        return ShardBatchSampler(self, batch_size, read_ahead, tail)

    def __iter__(self) -> Iterator[int]:
        if self._thrown_away:
            self._thrown_away = False
            return iter(())
        return self._sample_ids()

    def _sample_ids(self) -> Iterator[int]:
        self._check_ranks_known()
        partition = self._partition(1)
        place, turn = self.progress.begin(partition), self.progress.turn
        num_samples, cursor = self.progress.key.num_samples, place.position
        blocks = self._sampled(_BLOCK, cursor)
        for batch in rank_batches(blocks, self.rank, cursor, self.progress.order(place.epoch)):
            for sample_id in batch.sample_ids.tolist():
                cursor = min(cursor + self.num_replicas, num_samples)
                self.progress.deliver(cursor, turn, partition, whole_batch=False)
                yield sample_id

    def __len__(self) -> int:
        return self.progress.num_samples(self._partition(1))

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration; epochs advance by themselves without it."""
        super().set_epoch(epoch)
        self.progress.set_epoch(epoch, self._partition(1))

    def state_dict(self) -> dict[str, str]:
        """Returns the state of what was *issued*: a DataLoader with workers or prefetching is ahead of its training loop.

        `state_at` gives the exact state for a number of batches trained on.
        """
        return self.progress.state(self._partition(1))

    def state_at(self, batches_done: int, batch_size: int) -> dict[str, str]:
        """Returns the exact state after so many batches of the current epoch were trained on.

        Batches are counted from the epoch's start, the last one may be short, as under `DataLoader(drop_last=False)`.
        """
        batch_size = as_integer(batch_size, "batch_size", 1)
        entered = self.progress.entered_position(self._partition(1))
        return self.progress.state_at(batches_done, self._sampled(batch_size, entered))

    def load_state_dict(
        self, state: Mapping[str, Any], skip_samples: int = 0, reseed: int | None = None, reweigh: bool = False
    ) -> None:
        """Takes up a state of a sampler, batch sampler or loader of the same order; see `ShardLoader.load_state_dict`."""
        self.progress.load(state, skip_samples, reseed, reweigh)
        self._thrown_away = _throws_away()

    def _check_ranks_known(self) -> None:
        if self._ranks.rank is None:
            raise ValueError(
                "this sampler was given num_replicas without rank: it tells lengths and states, but no ids"
            )
        if not self._announced:
            self._announced = True
            announce(self._ranks)

    def _partition(self, batch_size: int, tail: Tail | None = None) -> Partition:
        if tail is None:
            tail = "drop" if self.drop_last else "pad" if self.num_replicas > 1 else "short"
        return Partition(self.progress.key.num_samples, batch_size, self.num_replicas, tail)

    def _sampled(self, batch_size: int, cursor: int) -> Partition:
        """Returns the batches of the samples that this sampler gives from a cursor on: the last one may be short.

        What drop_last leaves out is the remainder over the replicas, counted from where the epoch was entered: a resume
        with another number of replicas starts anywhere, and all ranks must have equally many samples all the same.
        """
        partition = self._partition(batch_size)
        if partition.tail != "drop":
            return partition
        stop = cursor + (partition.num_samples - cursor) // self.num_replicas * self.num_replicas
        return Partition(stop, batch_size, self.num_replicas, "short")


class ShardBatchSampler(BatchSampler):
    """One rank's batches of the global order: lists of sample ids. Made by `ShardSampler.batch_sampler`."""

    sampler: ShardSampler

    def __init__(
        self,
        sampler: ShardSampler,
        batch_size: int,
        read_ahead: int = 16,
        tail: Tail | None = None,
        drop_last: bool | None = None,
    ) -> None:
        if not isinstance(sampler, ShardSampler):
            # Frameworks that split a loader make its batch sampler anew, around a sampler of their own.
            raise TypeError(
                f"a ShardBatchSampler goes with a ShardSampler, which gives each rank its own samples already, not with a "
                f"{type(sampler).__name__}: tell the framework not to split (Lightning: Trainer(use_distributed_sampler=False))"
            )
        if drop_last is not None and tail is None:
            tail = "drop" if drop_last else "pad" if sampler.num_replicas > 1 else "short"
        self.read_ahead = as_integer(read_ahead, "read_ahead")
        batch_size = as_integer(batch_size, "batch_size", 1)
        self.partition = sampler._partition(batch_size, tail)
        self.partition.check()
        super().__init__(sampler, batch_size, self.partition.tail == "drop")
        self._thrown_away = False

    def __iter__(self) -> Iterator[list[int]]:
        if self._thrown_away:
            self._thrown_away = False
            return iter(())
        return self._batches()

    def _batches(self) -> Iterator[list[int]]:
        self.sampler._check_ranks_known()
        progress, partition, watch = self.sampler.progress, self.partition, UseWatch()
        place, turn = progress.begin(partition), progress.turn
        seed, order = progress.seed, progress.order(place.epoch)
        batches = rank_batches(partition, self.sampler.rank, place.position, order)
        issued = Issued()
        for number, batch in enumerate(self._announced(batches, place.epoch, issued)):
            _refuse_stride(watch)
            progress.deliver(batch.cursor, turn, partition)
            num_valid = batch.num_valid if partition.tail == "mask" else None
            ids = batch.sample_ids.tolist()
            watched = watch, number
            yield SampleIds(ids, seed, place.epoch, batch.num_before, num_valid, watched, issued.issue())

    def _announced(self, batches: Iterator[RankBatch], epoch: int, issued: Issued) -> Iterator[RankBatch]:
        """Yields the batches, each after the operating system, and who may read them together, was told of those that follow."""
        told = self._told(epoch)
        if self.read_ahead and (windows := self.sampler.progress.windows(epoch)):
            yield from self._announced_by_window(by_window(batches, windows[0]), told, issued)
            return
        waiting: collections.deque[RankBatch] = collections.deque()
        for batch in batches:
            if self.read_ahead:
                self._announce([batch], told)
            issued.note(batch.sample_ids)
            waiting.append(batch)
            if len(waiting) > self.read_ahead:
                yield waiting.popleft()
        yield from waiting

    def _told(self, epoch: int) -> Told | None:
        """Returns what tells a cache when samples are needed again; None if there is no cache, or nobody knows."""
        sampler = self.sampler
        if not self.read_ahead or not is_cached(sampler.dataset):
            return None
        forecast = forecast_of(sampler.progress, self.partition, sampler.rank)
        return None if forecast is None else Told(forecast, epoch, self.read_ahead + 2)

    def _announce(self, batches: list[RankBatch], told: Told | None) -> None:
        uses = None if told is None else told.uses(batches, [])
        self.sampler.dataset.will_need(np.concatenate([batch.sample_ids for batch in batches]), uses=uses)

    def _announced_by_window(self, windows: Iterator[Window], told: Told | None, issued: Issued) -> Iterator[RankBatch]:
        """Yields the batches of windows, each after the whole of its own window and the next one was announced."""
        waiting: list[RankBatch] = []
        for window in windows:
            self._announce(window.parts, told)
            for batch in window.batches:
                issued.note(batch.sample_ids)
            yield from waiting
            waiting = window.batches
        yield from waiting

    def __len__(self) -> int:
        return self.sampler.progress.num_batches(self.partition)

    @property
    def remaining(self) -> int:
        """Batches left of the epoch under way or coming, counted as issued."""
        return self.sampler.progress.remaining(self.partition)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration; epochs advance by themselves without it."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, str]:
        """Returns the state of what was *issued*; `state_at` gives the one for batches trained on."""
        return self.sampler.progress.state(self.partition)

    def state_at(self, num_batches: int) -> dict[str, str]:
        """Returns the exact state after so many batches of the epoch under way were trained on."""
        return self.sampler.progress.state_at(num_batches, self.partition)

    def load_state_dict(
        self, state: Mapping[str, Any], skip_samples: int = 0, reseed: int | None = None, reweigh: bool = False
    ) -> None:
        """Takes up a state of a sampler, batch sampler or loader of the same order; see `ShardLoader.load_state_dict`."""
        self.sampler.progress.load(state, skip_samples, reseed, reweigh)
        self._thrown_away = _throws_away()

    def audit(self, sample_ids: Sequence[ArrayLike], group: ProcessGroup | None = None) -> None:
        """Compares what all ranks have trained on in this epoch with what the order says; see `ShardLoader.audit`.

        Args:
            sample_ids: the ids of this rank's batches, in any form: one array or list a batch.
            group: the process group of the replicas; None for the default one, or this process alone.
        """
        delivered = Delivered()
        for ids in sample_ids:
            delivered.add(np.asarray(ids, dtype=np.int64))
            delivered.fold()
        audit_ids(delivered, self.sampler.progress, self.partition, self.sampler._ranks, group)


def _refuse_stride(watch: UseWatch) -> None:
    """Refuses to go on where some batches are thrown away between others that are used."""
    if watch.left_out is not None:
        raise ShardloadError(
            f"batch {watch.left_out} of this rank was thrown away though others before and after it were read: something splits "
            "the batches over the ranks a second time (such as accelerate's prepare), while this batch sampler gives each rank its "
            "own already; use shardload.integrations, or num_replicas=1 and rank=0"
        )


def _throws_away() -> bool:
    """Tells whether whoever loads a state makes one iterator of it and throws that away.

    torchdata's StatefulDataLoader does, with a state that it saved after the end of an epoch. If it has workers it takes
    batches from that iterator before, which would be an epoch that nobody trains on. Its state has no other way to a sampler
    than through its own variables. Where it saves only every so many steps, it goes through the rest with that iterator.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("torchdata."):
        state = frame.f_locals.get("next_iter_state")
        if isinstance(state, Mapping):
            return bool(state.get("_iterator_finished")) and not state.get("_steps_since_snapshot")
        frame = frame.f_back
    return False
