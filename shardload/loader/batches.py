"""From a rank's sample ids to the batch that the training loop gets."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shardload.codecs.images import ImageDecode
from shardload.errors import ShardloadError
from shardload.format.schema import Field
from shardload.loader.collate import batch_bytes, collate_columns, collate_samples
from shardload.memory import BufferPool
from shardload.order.cursor import RankBatch
from shardload.order.rng import batch_rng
from shardload.order.sample_ids import SampleIds
from shardload.reader import ShardDataset
from shardload.reader.batch import VALID, SampleBatch
from shardload.reader.dataset import apply_transform, takes_rng
from shardload.reader.decode import Lease, check_decoders, decoded

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class BatchRecipe:
    """What becomes of a batch's samples."""

    fields: tuple[Field, ...]
    """The fields that are read."""
    decode: Mapping[str, ImageDecode] = field(default_factory=dict)
    """How images become pixels, by field; in the threads that read."""
    transform: Callable[..., Any] | None = None
    """Called with each sample."""
    batch_transform: Callable[[Any], Any] | None = None
    """Called with each batch, in the prefetch thread."""
    collate_fn: Callable[[Any], Any] | None = None
    """Makes a batch in place of shardload's own collation."""
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Dtypes by field that override the usual ones."""
    with_ids: bool = False
    """Whether batches carry `_sample_id`, `_position` and `_epoch`."""
    with_valid: bool = False
    """Whether batches carry `_valid`, which tells samples from fillers."""

    def check_reproducible(self, in_processes: bool) -> None:
        """Refuses functions whose results may differ from run to run.

        Args:
            in_processes: whether transform and collate_fn run in processes of their own, seeded for each sample.

        Raises:
            ValueError: says which function and what to do.
        """
        for name in ("transform", "collate_fn", "batch_transform"):
            function = getattr(self, name)
            seeded = in_processes and name != "batch_transform"
            if function is None or seeded or (takes_rng(function) and name != "collate_fn"):
                continue
            ways = {
                "transform": "give it a parameter rng and draw from that, or run it in processes that are seeded for each sample "
                "(num_processes=)",
                "collate_fn": "run it in processes that are seeded for each sample (num_processes=)",
                "batch_transform": "give it a parameter rng and draw from that",
            }
            raise ValueError(
                f"reproducible=True: {name} runs in a thread, where what it draws from global generators depends on everything "
                f"else in the program: {ways[name]}"
            )

    def __post_init__(self) -> None:
        if self.dtypes and (self.transform is not None or self.collate_fn is not None):
            raise ValueError("dtypes= is for fields as stored; with a transform or collate_fn, make the dtypes there")
        tensors = [field.name for field in self.fields if field.numeric]
        for name in self.dtypes:
            if name not in tensors:
                raise ValueError(
                    f"dtypes: {name!r} is not a field of numbers that is read; those are {', '.join(tensors) or 'none'}"
                )


def make_recipe(
    dataset: ShardDataset,
    fields: Sequence[str] | None,
    decode: Mapping[str, ImageDecode] | None,
    transform: Callable[..., Any] | None,
    **options: Any,
) -> BatchRecipe:
    """Returns the recipe for some of a dataset's fields and the loader's or the dataset's decoders and transform.

    Raises:
        ValueError: a field is not there, both have decoders or a transform, or `options`, the other attributes, do not fit.
    """
    if transform is not None and dataset.transform is not None:
        raise ValueError("both the dataset and the loader have a transform: leave one out")
    if decode is not None and dataset.decode:
        raise ValueError("both the dataset and the loader have decode=: leave one out")
    available = {field.name: field for field in dataset.field_list}
    for name in fields or ():
        if name not in available:
            raise ValueError(f"there is no field {name!r} to read; the fields are {', '.join(available)}")
    chosen = tuple(field for name, field in available.items() if fields is None or name in fields)
    if decode is None:
        decode = {name: decoder for name, decoder in dataset.decode.items() if fields is None or name in fields}
    check_decoders(decode, chosen)
    return BatchRecipe(chosen, dict(decode), dataset.transform if transform is None else transform, **options)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A finished batch and what the loader has to know of it."""

    batch: Any
    """What the training loop gets."""
    cursor: int
    """Cursor after it."""
    sample_ids: Int64
    """The samples in it, without fillers: int64 of shape (batch,)."""
    num_bytes: int
    """Bytes of its tensors and byte strings."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """How far reads go ahead of batches."""

    burst_batches: int
    """Batches that are read together."""
    hinted_batches: int
    """Batches that are announced to the storage at a time; 0 for none."""
    num_threads: int = 0
    """Threads that read bursts while batches are made of earlier ones; 0: one thread does both."""


_BURST_BYTES = 4 << 20
_MAX_BURST_BATCHES = 8
_HINTED_BATCHES = 16
_HINTED_BYTES = 64 << 20
_MAX_DEFAULT_THREADS = 4


def plan_ahead(batch_bytes: float, prefetch_batches: int, num_threads: int | None) -> Ahead:
    """Returns how far reads go ahead for batches of about so many bytes.

    A burst of small batches shares the costs of a read, one of large batches would only come later. What is announced keeps
    the device's queue full; it is held by the page cache, not by the process.

    Args:
        batch_bytes: bytes of a batch as stored.
        prefetch_batches: finished batches that may wait; 0 where each is read when it is asked for.
        num_threads: threads that read; None for as many as there are cores for this process, but 4.
    """
    if prefetch_batches == 0:
        return Ahead(1, 0)
    if num_threads is None:
        # On a single core a thread of its own only adds the switching.
        cores = len(os.sched_getaffinity(0))
        num_threads = min(_MAX_DEFAULT_THREADS, cores) if cores > 1 else 0
    burst = int(min(prefetch_batches, _MAX_BURST_BATCHES, max(1, _BURST_BYTES // max(batch_bytes, 1.0))))
    hinted = int(min(_HINTED_BATCHES, max(2, _HINTED_BYTES // max(batch_bytes, 1.0))))
    return Ahead(burst, hinted, num_threads)


class BatchMaker:
    """Reads and collates batches. Runs in the prefetch thread."""

    def __init__(
        self, dataset: ShardDataset, recipe: BatchRecipe, pool: BufferPool, seed: int, rank: int, ahead: Ahead
    ) -> None:
        """Describes the batches.

        Args:
            dataset: where samples come from.
            recipe: what becomes of them.
            pool: where memory for tensors comes from.
            seed: seed of the order.
            rank: the replica's rank.
            ahead: how many batches are read together and announced.
        """
        self._ahead = ahead
        self._dataset = dataset
        self._recipe = recipe
        self._pool = pool
        self._seed = seed
        self._rank = rank
        # Whoever gets samples or columns may keep views of them in any form; leased memory is only for our own tensors.
        self._leases = recipe.transform is None and recipe.collate_fn is None

    def batches(
        self, ids: Iterator[RankBatch], epoch: int, after: Iterator[RankBatch]
    ) -> Generator[tuple[RankBatch, Any]]:
        """Yields the batches of an epoch as they are read and collated, with what they were asked for by.

        Args:
            ids: what the batches hold.
            epoch: the epoch.
            after: the batches of the next epoch, which are announced to the storage while this one ends.
        """
        # Closed here, not when it is collected: an error of ours keeps this frame, and with it threads that wait.
        with contextlib.closing(self._samples(self._bursts(self._announced(ids, after)), epoch)) as read:
            for batch, samples in read:
                made = self._collated(batch, samples, epoch)
                del samples
                yield batch, made
                # The buffers must not live on in this frame while the next batch is made: they would not come back.
                del made

    def _bursts(self, ids: Iterator[RankBatch]) -> Iterator[list[RankBatch]]:
        """Yields what is read together. The first batch is not kept waiting for others."""
        size = 1
        while burst := list(itertools.islice(ids, size)):
            yield burst
            size = self._ahead.burst_batches

    def _samples(self, bursts: Iterator[list[RankBatch]], epoch: int) -> Generator[tuple[RankBatch, SampleBatch]]:
        """Yields the batches with their samples, in order, whoever reads them."""
        num_threads = self._ahead.num_threads
        if not num_threads:
            for burst in bursts:
                yield from self._one_by_one(burst, functools.partial(self._read_together, burst, epoch), epoch)
            return
        threads = ThreadPoolExecutor(num_threads, thread_name_prefix="shardload-read")
        try:
            reads: collections.deque[tuple[list[RankBatch], Future[list[SampleBatch]]]] = collections.deque()
            for burst in itertools.chain(bursts, [[]] * num_threads):
                if burst:
                    reads.append((burst, threads.submit(self._read_together, burst, epoch)))
                if reads and (not burst or len(reads) > num_threads):
                    read, future = reads.popleft()
                    taken = future.result
                    del future
                    yield from self._one_by_one(read, taken, epoch)
                    del taken
        finally:
            threads.shutdown(cancel_futures=True)

    def _one_by_one(
        self, burst: list[RankBatch], read: Callable[[], list[SampleBatch]], epoch: int
    ) -> Iterator[tuple[RankBatch, SampleBatch]]:
        """Yields the batches of a burst; of an error in one of them, the batches before it come first."""
        try:
            samples = collections.deque(read())
        except ShardloadError:
            if len(burst) == 1:
                raise
            samples = collections.deque()
        del read
        if not samples:
            yield from ((batch, self._read_together([batch], epoch)[0]) for batch in burst)
            return
        for batch in burst:
            yield batch, samples.popleft()

    def _announced(self, ids: Iterator[RankBatch], after: Iterator[RankBatch]) -> Iterator[RankBatch]:
        """Yields the batches after those that follow have been announced to the storage."""
        size = self._ahead.hinted_batches
        if not size:
            yield from ids
            return
        waiting: collections.deque[RankBatch] = collections.deque()
        while True:
            if len(waiting) <= size // 2:
                more = list(itertools.islice(ids, size))
                waiting.extend(more)
                coming = more if len(more) == size else more + list(itertools.islice(after, size - len(more)))
                if coming:
                    self._dataset.will_need(np.concatenate([batch.sample_ids for batch in coming]), self._recipe.fields)
            if not waiting:
                return
            yield waiting.popleft()

    def deliveries(self, batches: Generator[tuple[RankBatch, Any]], epoch: int) -> Iterator[Delivery]:
        """Yields the batches of an epoch as the training loop gets them.

        Args:
            batches: what `batches` yields, or child processes in its place.
            epoch: the epoch.
        """
        with contextlib.closing(batches):
            for ids, batch in batches:
                batch = self._finished(batch, ids, epoch)
                yield Delivery(batch, ids.cursor, ids.sample_ids[: ids.num_valid], batch_bytes(batch))
                # The buffers must not live on in this frame while the next batch is made: they would not come back.
                del batch

    def _read_together(self, burst: Sequence[RankBatch], epoch: int) -> list[SampleBatch]:
        fixed = [f for f in self._recipe.fields if f.fixed] if self._leases else []
        buffers = [
            {f.name: self._pool.lease((len(batch.sample_ids), *f.shape), f.dtype) for f in fixed} for batch in burst
        ]
        read = self._dataset.read_batches([batch.sample_ids for batch in burst], buffers, self._recipe.fields)
        if not self._recipe.decode:
            return read
        lease = self._pool.lease if self._leases else None
        keyed = [SampleIds(b.sample_ids.tolist(), self._seed, epoch, b.num_before) for b in burst]
        return [decoded(samples, self._recipe.decode, ids, lease) for samples, ids in zip(read, keyed, strict=True)]

    def _collated(self, ids: RankBatch, samples: SampleBatch, epoch: int) -> Any:
        recipe, keyed = self._recipe, None
        if recipe.transform is not None:
            keyed = SampleIds(ids.sample_ids.tolist(), self._seed, epoch, ids.num_before)
        return collated(samples, recipe, keyed, self._pool.lease)

    def _finished(self, batch: Any, ids: RankBatch, epoch: int) -> Any:
        recipe = self._recipe
        if recipe.batch_transform is not None:
            batch = self._transformed(recipe.batch_transform, batch, ids, epoch)
        if recipe.with_ids:
            batch = _extended(batch, "with_ids=True", _ids(ids, epoch, self._dataset))
        if recipe.with_valid:
            valid = torch.arange(len(ids.positions)) < ids.num_valid
            batch = _extended(batch, "tail='mask'", {VALID: valid})
        return batch

    def _transformed(self, transform: Callable[..., Any], batch: Any, ids: RankBatch, epoch: int) -> Any:
        if not takes_rng(transform):
            return transform(batch)
        return transform(batch, rng=batch_rng(self._seed, epoch, ids.cursor, self._rank))


def collated(
    samples: SampleBatch,
    recipe: BatchRecipe,
    ids: SampleIds | None,
    lease: Lease | None,
    before: Callable[[int, int, int], None] | None = None,
) -> Any:
    """Returns the batch that a recipe makes of samples, up to `batch_transform`.

    Args:
        samples: what was read.
        recipe: what becomes of it.
        ids: what it was asked for by, for the transform.
        lease: where memory for tensors comes from; None for new memory.
        before: called before each sample's transform with seed, epoch and sample id.
    """
    made: Any = samples
    if recipe.transform is not None:
        made = apply_transform(recipe.transform, samples, ids, before)
    if recipe.collate_fn is not None:
        return recipe.collate_fn(made)
    if recipe.transform is not None:
        return collate_samples(made)
    return collate_columns(samples, recipe.dtypes, lease)


def _extended(batch: Any, cause: str, more: dict[str, torch.Tensor]) -> dict[str, Any]:
    if not isinstance(batch, dict):
        raise TypeError(f"{cause} adds fields to batches that are dicts, but this one is a {type(batch).__name__}")
    return {**batch, **more}


def _ids(ids: RankBatch, epoch: int, dataset: ShardDataset) -> dict[str, torch.Tensor]:
    """Returns what `with_ids` adds; fillers have -1, so that nobody takes them for samples."""
    sample_ids, positions = ids.sample_ids.copy(), ids.positions.copy()
    epochs = np.full(len(positions), epoch, np.int64)
    positions[: ids.num_before] += len(dataset)
    epochs[: ids.num_before] -= 1
    sample_ids[ids.num_valid :] = -1
    positions[ids.num_valid :] = -1
    named = {"_sample_id": sample_ids, "_position": positions, "_epoch": epochs}
    return {name: torch.from_numpy(values) for name, values in named.items()}
