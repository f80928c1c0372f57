"""`ShardLoader`: batches in the one global order, read ahead of the training loop."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch

from shardload.errors import LoaderClosedError
from shardload.loader.batches import BatchMaker, Delivery, make_recipe
from shardload.loader.collate import to_device
from shardload.loader.prefetch import Prefetcher
from shardload.loader.progress import Progress
from shardload.loader.ranks import Ranks, one_of, resolve_ranks
from shardload.loader.state import OrderKey
from shardload.memory import BufferPool
from shardload.order.cursor import Partition, Tail, rank_batches
from shardload.quantities import as_integer, parse_bytes
from shardload.reader import ShardDataset
from shardload.telemetry import LoaderStats

DEFAULT_PREFETCH_BATCHES = 4
DEFAULT_PREFETCH_BYTES = "256MiB"

_KEPT_BATCHES_WARNING = 64


class ShardLoader:
    """Gives batches of a dataset in a true global order, read ahead by a thread into reused buffers.

    ```python
    loader = shardload.ShardLoader(shardload.open("out/"), batch_size=256, shuffle=True)
    for batch in loader:            # field -> tensor of shape (batch, *field_shape), or list
        ...
    ```

    One `iter` is one epoch; epochs follow each other without `set_epoch`. A batch is yours until you drop it: its
    memory is reused only when the last tensor that shares it has died. A second iterator closes the first. Nothing is
    opened or started before the first `iter`. Use a loader from one thread.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        tail: Tail | None = None,
        drop_last: bool | None = None,
        fields: Sequence[str] | None = None,
        transform: Callable[..., Any] | None = None,
        batch_transform: Callable[[Any], Any] | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        dtypes: Mapping[str, torch.dtype] | None = None,
        device: torch.device | str | None = None,
        pin_memory: bool | None = None,
        prefetch_batches: int | None = None,
        prefetch_bytes: int | str | None = None,
        with_ids: bool = False,
    ) -> None:
        """Describes the loading.

        Args:
            dataset: what to load from.
            batch_size: samples a batch and rank.
            shuffle: a new permutation of all samples each epoch, or the order of the dataset.
            seed: seed of the order and of `rng`, from 0 to 2^64 - 1; equal on all ranks.
            num_replicas: ranks that share the order, with `rank`. None for both: the default process group if there is
                one at the first `iter`, else RANK and WORLD_SIZE, else a single process.
            rank: this process.
            world_size: another name for num_replicas.
            tail: what becomes of the end of an epoch: `drop`, `short` or `pad` (see `Partition`). None: drop when
                shuffling, short when not; with several replicas and no shuffling it must be named.
            drop_last: torch's word: True is `drop`, False is `short` with one replica and `pad` with several.
            fields: names of the fields to read; None for those the dataset was opened with.
            transform: called with each sample, a dict; with a parameter `rng` it gets a numpy generator that depends on
                seed, epoch and sample only. None for the dataset's own.
            batch_transform: called with each batch, in the prefetch thread.
            collate_fn: makes batches of what was read (a sequence of dicts) or transformed (a list).
            dtypes: dtypes of tensors by field; else as stored, with uint16, uint32 and uint64 as int64.
            device: where tensors are delivered; None for host memory.
            pin_memory: build batches in page-locked memory; None: if the device is CUDA.
            prefetch_batches: most finished batches that wait, 4 unless given; 0 reads in the training loop's own thread.
            prefetch_bytes: most bytes that wait, 256 MiB unless given; one batch may always wait.
            with_ids: add int64 tensors `_sample_id`, `_position` and `_epoch` of shape (batch,).

        Raises:
            ValueError: settings that contradict each other or give no batch.
        """
        self.dataset = dataset
        self.batch_size = as_integer(batch_size, "batch_size", 1)
        self.device = None if device is None else torch.device(device)
        self._shuffle = bool(shuffle)
        self._ranks_given = (one_of(num_replicas, world_size), rank)
        self._ranks_fixed: Ranks | None = None
        self._tail_given = _given_tail(tail, drop_last)
        self._progress = Progress(OrderKey(dataset.fingerprint, len(dataset), as_integer(seed, "seed"), self._shuffle))
        after = {"batch_transform": batch_transform, "collate_fn": collate_fn, "dtypes": dict(dtypes or {})}
        self._recipe = make_recipe(dataset, fields, transform, with_ids=with_ids, **after)
        cuda = self.device is not None and self.device.type == "cuda"
        self._pinned = cuda if pin_memory is None else pin_memory
        wanted = DEFAULT_PREFETCH_BATCHES if prefetch_batches is None else prefetch_batches
        self._prefetch_batches = as_integer(wanted, "prefetch_batches")
        size = DEFAULT_PREFETCH_BYTES if prefetch_bytes is None else prefetch_bytes
        self._prefetch_bytes = parse_bytes(size, "prefetch_bytes")
        self._stats = LoaderStats()
        self._pool: BufferPool | None = None
        self._iteration: weakref.ref[_Iteration] | None = None
        self._warned_kept = False
        self._closed = False
        self._partition().check()

    def __iter__(self) -> Iterator[Any]:
        """Returns an iterator over the remainder of a loaded state, else over the next epoch not yet begun.

        Its first `next` begins the epoch: an iterator that is only made costs nothing.
        """
        if self._closed:
            raise LoaderClosedError("this loader is closed; make a new one")
        self._close_iteration()
        self._fix_ranks()
        partition = self._partition()
        partition.check()
        if self._pool is None:
            idle = self._prefetch_bytes * 2
            self._pool = BufferPool(idle, pinned=self._pinned)
        iteration = _Iteration(self, partition, self._pool)
        self._iteration = weakref.ref(iteration)
        return iteration

    def __len__(self) -> int:
        """Batches of the epoch under way or coming: those done in it and those left at the current batch size and ranks."""
        return self._progress.num_batches(self._partition())

    @property
    def remaining(self) -> int:
        """Batches left of the epoch under way or coming."""
        return self._progress.remaining(self._partition())

    @property
    def num_replicas(self) -> int:
        """Ranks that share the order."""
        return self._ranks().num_replicas

    @property
    def rank(self) -> int:
        """This process among them."""
        return self._ranks().rank

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next `iter`; a state that was just loaded wins. Not needed: epochs advance by themselves."""
        self._progress.set_epoch(epoch, self._partition())

    def state_dict(self) -> dict[str, str]:
        """Returns the state of what was given to the training loop: one key, the same on all ranks."""
        return self._progress.state(self._partition())

    def state_at(self, num_batches: int) -> dict[str, str]:
        """Returns the state after so many batches of the epoch under way or coming, for those that look ahead.

        Raises:
            ValueError: the epoch has no such batch, or it lies before the place where this run entered the epoch.
        """
        return self._progress.state_at(num_batches, self._partition())

    def load_state_dict(self, state: Mapping[str, Any], skip_samples: int = 0) -> None:
        """Takes up a state: the next `iter` runs what is left of its epoch. Batch size and ranks may differ from then.

        Args:
            state: of a loader or sampler of the same dataset, seed and order.
            skip_samples: samples of the global order (over all ranks) to pass over from there.

        Raises:
            StateMismatchError: the state belongs to something else; nothing has changed then.
        """
        self._close_iteration()
        self._progress.load(state, skip_samples)

    def stats(self) -> LoaderStats:
        """Returns counters and times since the loader was made."""
        stats = dataclasses.replace(self._stats)
        if self._pool is not None:
            stats.num_buffers_new, stats.num_buffers_reused = self._pool.num_new, self._pool.num_reused
            stats.leased_bytes = self._pool.leased_bytes
        return stats

    def close(self) -> None:
        """Ends the prefetch thread and frees idle buffers. Batches that are held stay valid."""
        self._close_iteration()
        if self._pool is not None:
            self._pool.close()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Threads, buffers and iterators stay with the process that made them.
        return self.__dict__ | {"_pool": None, "_iteration": None, "_ranks_fixed": None}

    def _close_iteration(self) -> None:
        iteration = None if self._iteration is None else self._iteration()
        if iteration is not None:
            iteration.close()
        self._iteration = None

    def _ranks(self) -> Ranks:
        return self._ranks_fixed or resolve_ranks(*self._ranks_given)

    def _fix_ranks(self) -> None:
        if self._ranks_fixed is not None:
            return
        self._ranks_fixed = ranks = self._ranks()
        if self._ranks_given[1] is None and ranks.num_replicas > 1:
            sys.stderr.write(f"shardload: rank {ranks.rank} of {ranks.num_replicas}, from {ranks.source}\n")

    def _partition(self) -> Partition:
        num_replicas = self._ranks().num_replicas
        tail = self._tail_given
        if tail is None and self._shuffle:
            tail = "drop"
        elif tail is None and num_replicas > 1:
            raise ValueError(
                f"with {num_replicas} replicas and shuffle=False the tail must be named: 'drop' leaves samples out, 'short' gives "
                "ranks batches of different sizes, 'pad' repeats samples"
            )
        elif tail in (None, "torch"):
            tail = "pad" if num_replicas > 1 else "short"
        return Partition(len(self.dataset), self.batch_size, num_replicas, tail)  # type: ignore[arg-type]


class _Iteration:
    """One run over an epoch or what is left of it."""

    def __init__(self, loader: ShardLoader, partition: Partition, pool: BufferPool) -> None:
        self._loader = loader
        self._partition = partition
        self._pool = pool
        self._process_id = os.getpid()
        self._turn = 0
        self._last: float | None = None
        self._next: Callable[[], Delivery] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._ended: BaseException | None = None

    def __iter__(self) -> _Iteration:
        return self

    def __next__(self) -> Any:
        if self._ended is not None:
            raise self._ended
        if os.getpid() != self._process_id:
            raise LoaderClosedError(
                "this iterator belongs to the process that was forked from; call iter() in this one"
            )
        start = time.perf_counter()
        try:
            if self._next is None:
                self._next = self._begin()
            delivery = self._next()
            batch = delivery.batch if self._loader.device is None else to_device(delivery.batch, self._loader.device)
        except StopIteration:
            self._loader._progress.end(self._turn)
            self._end(StopIteration())
            raise
        except BaseException:
            # Going on would leave out the batch that failed: only a new iterator, from a state, can.
            self.close()
            raise
        self._loader._progress.deliver(delivery.cursor, self._turn)
        self._count(delivery, start, time.perf_counter())
        return batch

    def close(self) -> None:
        """Ends the iteration; a later `next` raises LoaderClosedError."""
        self._end(LoaderClosedError("this iterator is closed: the loader was closed, or a newer iterator took over"))

    def _begin(self) -> Callable[[], Delivery]:
        """Enters the epoch, starts the thread, and returns what gives the next batch."""
        loader, progress = self._loader, self._loader._progress
        place, self._turn = progress.begin(self._partition), progress.turn
        maker = BatchMaker(loader.dataset, loader._recipe, self._pool, progress.key.seed)
        ids = rank_batches(self._partition, loader.rank, place.position, progress.order(place.epoch))
        deliveries = maker.deliveries(ids, place.epoch)
        if loader._prefetch_batches == 0:
            return deliveries.__next__
        prefetcher = Prefetcher(
            deliveries, lambda item: item.num_bytes, loader._prefetch_batches, loader._prefetch_bytes
        )
        # A loop left by break, an exception, or the interpreter's end all drop or outlive this object.
        self._finalizer = weakref.finalize(self, prefetcher.close)
        return prefetcher.take

    def _end(self, reason: BaseException) -> None:
        if self._ended is None:
            self._ended = reason
            self._next = None
            if self._finalizer is not None:
                self._finalizer()

    def _count(self, delivery: Delivery, start: float, stop: float) -> None:
        stats, loader = self._loader._stats, self._loader
        stats.num_batches += 1
        stats.num_samples += delivery.num_samples
        stats.num_bytes += delivery.num_bytes
        if self._last is None:
            stats.first_batch_seconds = stop - start
        else:
            stats.stall_seconds += stop - start
            stats.loop_seconds += stop - self._last
        self._last = stop
        pool, usual = loader._pool, delivery.num_bytes * (loader._prefetch_batches + _KEPT_BATCHES_WARNING)
        if pool is not None and pool.leased_bytes > usual + 2 * loader._prefetch_bytes and not loader._warned_kept:
            loader._warned_kept = True
            warnings.warn(
                f"batches are being kept: {pool.leased_bytes >> 20} MiB are held by the training loop, and every kept batch takes "
                "new memory; drop batches you no longer need, or copy the parts you keep",
                UserWarning,
                stacklevel=3,
            )


def _given_tail(tail: Tail | None, drop_last: bool | None) -> str | None:
    """Returns the tail that was asked for; `torch` for drop_last=False, which depends on the number of ranks."""
    if tail is not None and drop_last is not None:
        raise ValueError(f"tail={tail!r} and drop_last={drop_last!r} say the same thing twice: leave one out")
    if drop_last is not None:
        return "drop" if drop_last else "torch"
    return tail
