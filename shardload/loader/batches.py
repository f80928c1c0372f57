"""From a rank's sample ids to the batch that the training loop gets."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shardload.errors import ShardloadError
from shardload.loader.aside import Aside
from shardload.loader.collate import batch_bytes
from shardload.loader.collated import Made, Read, collated, string_bytes
from shardload.loader.hints import Hints
from shardload.loader.origins import named_ids
from shardload.loader.reader_process import Asked
from shardload.loader.recipe import BatchRecipe
from shardload.loader.rows import row_ids
from shardload.loader.stand_ins import READ_FAULTS, Fault, made_whole
from shardload.memory import BufferPool
from shardload.order.cursor import RankBatch
from shardload.order.epoch import WindowEnd
from shardload.order.next_use import Forecast
from shardload.order.rng import batch_rng
from shardload.order.sample_ids import SampleIds
from shardload.reader.batch import VALID, SampleBatch
from shardload.reader.decode import decoded
from shardload.reader.requests import in_turn
from shardload.reader.serve import announce
from shardload.reader.source import SampleSource
from shardload.reader.transform import takes_rng
from shardload.storage import UnavailableError
from shardload.storage.stopping import current_stop, heed

Int64 = NDArray[np.int64]

_BEGIN_SECONDS, _BEGIN_WAITS = 0.02, 4
"""An epoch begins in one thread: for so long at most, and until the training loop waits for so many bursts one after the other."""


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
    faults: tuple[Fault, ...] = ()
    """Places in it that hold a stand-in, without fillers."""
    num_tokens: int = 0
    """Items in it, without fillers, where samples are put together by their lengths."""
    num_token_places: int = 0
    """Items that it has room for."""


@dataclass(slots=True)
class Loop:
    """The training loop, as whoever makes batches for it sees it."""

    waits: bool = False
    """Whether it waits for a batch now."""


class BatchMaker:
    """Reads and collates batches. Runs in the prefetch thread."""

    def __init__(
        self,
        dataset: SampleSource,
        recipe: BatchRecipe,
        pool: BufferPool,
        seed: int,
        rank: int,
        hints: Hints,
        num_positions: int,
        aside: Aside | None = None,
    ) -> None:
        """Describes the batches.

        Args:
            dataset: where samples come from.
            recipe: what becomes of them.
            pool: where memory for tensors comes from.
            seed: seed of the order.
            rank: the replica's rank.
            hints: how many batches are read together, and what is announced.
            num_positions: positions of an epoch.
            aside: who may read in place of this process; None for nobody.
        """
        self._ahead = hints.ahead
        self._aside = aside
        self._hints = hints
        self._dataset = dataset
        self._recipe = recipe
        self._pool = pool
        self._seed = seed
        self._rank = rank
        self._num_positions = num_positions
        # Whether batches come from near and with nothing of the user's to be done: in a fraction of a millisecond, if small.
        made = recipe.decode or recipe.transform or recipe.collate_fn or recipe.batch_transform
        self._quick = not made and not hints.ahead.early
        # Frames are decompressed without the interpreter's lock: by several threads from the start.
        self._frames = any(field.codec != "none" for field in recipe.fields)
        # Whoever gets samples or columns may keep views of them in any form; leased memory is only for our own tensors.
        self._leases = recipe.transform is None and recipe.collate_fn is None

    def batches(
        self,
        ids: Iterator[RankBatch],
        epoch: int,
        after: Iterator[RankBatch],
        loop: Loop,
        windows: tuple[WindowEnd, WindowEnd] | None = None,
        forecast: Forecast | None = None,
    ) -> Generator[Made]:
        """Yields the batches of an epoch as they are read and collated.

        Args:
            ids: what the batches hold.
            epoch: the epoch.
            after: the batches of the next epoch, which are announced to the storage while this one ends.
            loop: who gets them.
            windows: where windows of the two epochs end, which are announced as a whole; None where there are none.
            forecast: what tells a cache when samples are needed again; None if there is none.
        """
        # Closed here, not when it is collected: an error of ours keeps this frame, and with it threads that wait.
        hinted = self._hints.batches(ids, after, windows, epoch, forecast)
        with contextlib.closing(self._samples(self._bursts(hinted), epoch, loop)) as read:
            for batch, samples in read:
                collated_batch, faults = self._collated(batch, samples, epoch)
                # Where values turned out to be none, others stand in the place of what was read.
                known = string_bytes(samples, self._recipe) if faults is samples.faults else {}
                del samples
                made = Made(batch, collated_batch, faults, known)
                del collated_batch
                yield made
                # The buffers must not live on in this frame while the next batch is made: they would not come back.
                del made

    def _bursts(self, ids: Iterator[RankBatch]) -> Iterator[list[RankBatch]]:
        """Yields what is read together.

        The first batches are not kept waiting for many others: a burst has at most half of what was read before it, so that a
        loop at half of what is possible still has batches when it is there. Where batches take long it has as many, as more of
        them are read side by side. Sizes are few, as memory is reused by size.
        """
        num_read, part = 0, 2 if self._quick else 1
        while True:
            size = 1 << (max(1, (num_read + 1) // part).bit_length() - 1)
            burst = list(itertools.islice(ids, min(size, self._ahead.burst_batches)))
            if not burst:
                return
            yield burst
            num_read += len(burst)

    def _samples(self, bursts: Iterator[list[RankBatch]], epoch: int, loop: Loop) -> Generator[tuple[RankBatch, Read]]:
        """Yields the batches with their samples, in order, whoever reads them."""
        aside = self._aside if self._aside is not None and self._aside.claim() else None
        num_threads = self._ahead.num_threads
        most = num_threads if aside is None else max(1, num_threads)
        # What was announced to a store is there, and reading it is computing: bursts side by side would each take as long as all
        # of them, also the one that is waited for. One beside it goes on where a transform takes long.
        depth = min(1, most) if self._ahead.early else most
        threads = _readers(num_threads) if num_threads else None
        reads: collections.deque[tuple[list[RankBatch], Callable[[], list[Read]]]] = collections.deque()
        closing = threading.Event()

        def fill() -> None:
            while len(reads) <= depth and not closing.is_set() and (burst := next(bursts, None)):
                reads.append((burst, self._begun(burst, epoch, aside, threads)))

        try:
            # What an epoch begins with is waited for, and nothing takes the interpreter from who reads it: threads that take turns
            # at many short calls wait 5 ms for each turn. What follows is planned beside the last of it.
            start, num_waits, begins = time.perf_counter(), 0, True
            while begins and (burst := next(bursts, None)):
                batches = self._one_by_one(burst, self._begun(burst, epoch, aside, None), epoch)
                read = [next(batches)]
                num_waits = num_waits + 1 if loop.waits else 0
                begins = self._begins(num_waits, time.perf_counter() - start, aside)
                filled = None if begins else fill if threads is None else threads.submit(fill).result
                yield read.pop()
                yield from batches
                if filled is not None:
                    filled()
            while reads:
                yield from self._one_by_one(*reads.popleft(), epoch)
                depth = min(depth + 1, most)
                fill()
        finally:
            closing.set()
            if threads is not None:
                threads.shutdown(cancel_futures=True)
            if aside is not None:
                aside.release()

    def _begins(self, num_waits: int, seconds: float, aside: Aside | None) -> bool:
        """Tells whether this thread goes on reading by itself after the first bursts of an epoch.

        Until batches wait, or the training loop is seen to be faster than one thread: for the first two it waits in any case. Not
        where several threads do not wait for each other.
        """
        if not self._quick or self._frames or (aside is not None and aside.helps):
            return False
        return seconds < _BEGIN_SECONDS and num_waits < _BEGIN_WAITS

    def _begun(
        self, burst: list[RankBatch], epoch: int, aside: Aside | None, threads: ThreadPoolExecutor | None
    ) -> Callable[[], list[Read]]:
        """Has a burst read, and returns what gives its batches once."""
        hints = self._hints.take()
        asked = None if aside is None else aside.ask(burst, (self._seed, epoch), hints)
        if aside is not None and asked is not None:
            return functools.partial(self._taken, aside, asked, burst, epoch)
        announce(self._dataset, self._recipe.fields, hints)
        read = functools.partial(self._read_together, burst, epoch)
        return read if threads is None else threads.submit(read).result

    def _taken(self, aside: Aside, asked: Asked, burst: list[RankBatch], epoch: int) -> list[Read]:
        batches = aside.take(asked)
        return self._read_together(burst, epoch) if batches is None else [Read(samples) for samples in batches]

    def _one_by_one(
        self, burst: list[RankBatch], read: Callable[[], list[Read]], epoch: int
    ) -> Iterator[tuple[RankBatch, Read]]:
        """Yields the batches of a burst; of an error in one of them, the batches before it come first."""
        try:
            samples = collections.deque(read())
        except UnavailableError:
            # Another read would only take as long again.
            raise
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

    def deliveries(self, batches: Generator[Made], epoch: int) -> Generator[Delivery]:
        """Yields the batches of an epoch as the training loop gets them.

        Args:
            batches: what `batches` yields, or child processes in its place.
            epoch: the epoch.
        """
        with contextlib.closing(batches):
            for made in batches:
                ids, known = made.ids, made.string_bytes
                # What stands for a filler is one too.
                faults = tuple(fault for fault in made.faults if fault.slot < ids.num_valid)
                batch = self._finished(made.batch, ids, faults, epoch)
                del made
                num_bytes = batch_bytes(batch, known)
                tokens = () if ids.units is None else (ids.units.num_items, ids.units.num_places)
                yield Delivery(batch, ids.cursor, ids.sample_ids[: ids.num_valid], num_bytes, faults, *tokens)
                # The buffers must not live on in this frame while the next batch is made: they would not come back.
                del batch

    def _read_together(self, burst: Sequence[RankBatch], epoch: int) -> list[Read]:
        with in_turn(epoch):
            return self._read_in_turn(burst, epoch)

    def _read_in_turn(self, burst: Sequence[RankBatch], epoch: int) -> list[Read]:
        recipe, ids = self._recipe, [batch.sample_ids for batch in burst]
        # Lists of ids take as long as small samples do: only where something is keyed by them.
        keyed = [self._keyed(batch, epoch) for batch in burst] if recipe.decode else None
        if recipe.on_error == "raise":
            return [Read(samples) for samples in self._read(ids, keyed)]
        if len(burst) > 1:
            try:
                return [Read(samples) for samples in self._read(ids, keyed)]
            except UnavailableError:
                raise
            except READ_FAULTS:
                pass
        return [self._read_whole(self._keyed(batch, epoch)) for batch in burst]

    def _read_whole(self, ids: SampleIds) -> Read:
        def read(some: SampleIds) -> SampleBatch:
            return self._read([np.array(some, dtype=np.int64)], [some])[0]

        samples, _, faults = made_whole(ids, self._dataset.stand_ins, read)
        return Read(samples, faults)

    def _read(self, batches: Sequence[Int64], keyed: Sequence[SampleIds] | None) -> list[SampleBatch]:
        fixed = [f for f in self._recipe.fields if f.fixed] if self._leases else []
        leased = [self._pool.lease_together([(len(ids), *f.shape) for ids in batches], f.dtype) for f in fixed]
        buffers = [{f.name: lent[i] for f, lent in zip(fixed, leased, strict=True)} for i in range(len(batches))]
        read = self._dataset.read_batches(batches, buffers, self._recipe.fields)
        if not self._recipe.decode or keyed is None:
            return read
        lease = self._pool.lease if self._leases else None
        return [decoded(samples, self._recipe.decode, ids, lease) for samples, ids in zip(read, keyed, strict=True)]

    def _keyed(self, batch: RankBatch, epoch: int) -> SampleIds:
        return SampleIds(batch.sample_ids.tolist(), self._seed, epoch, batch.num_before)

    def _collated(self, ids: RankBatch, read: Read, epoch: int) -> tuple[Any, tuple[Fault, ...]]:
        recipe, keyed = self._recipe, None
        if recipe.transform is not None or recipe.on_error != "raise":
            keyed = SampleIds(read.samples.sample_ids.tolist(), self._seed, epoch, ids.num_before)
        return collated(read, recipe, keyed, self._dataset, self._pool.lease)

    def _finished(self, batch: Any, ids: RankBatch, faults: tuple[Fault, ...], epoch: int) -> Any:
        recipe, num_rows, num_valid = self._recipe, len(ids.positions), ids.num_valid
        if recipe.rows is not None and ids.units is not None:
            batch = recipe.rows.batch(batch, ids, recipe.dtypes, self._pool.lease, self._dataset.location)
            num_rows, num_valid = len(ids.units.positions), ids.units.num_valid
        if recipe.batch_transform is not None:
            batch = self._transformed(recipe.batch_transform, batch, ids, epoch)
        if recipe.with_ids:
            more: Mapping[str, Any]
            if recipe.rows is None:
                more = named_ids(ids, faults, epoch, self._num_positions, self._dataset)
            else:
                more = row_ids(ids, epoch, self._dataset.source_numbers(ids.sample_ids))
            batch = _extended(batch, "with_ids=True", more)
        if recipe.with_valid or recipe.on_error == "mask":
            valid = torch.arange(num_rows) < num_valid
            if recipe.on_error == "mask":
                valid[[fault.slot for fault in faults]] = False
            batch = _extended(batch, "tail='mask'" if recipe.with_valid else "on_error='mask'", {VALID: valid})
        return batch

    def _transformed(self, transform: Callable[..., Any], batch: Any, ids: RankBatch, epoch: int) -> Any:
        if not takes_rng(transform):
            return transform(batch)
        return transform(batch, rng=batch_rng(self._seed, epoch, ids.cursor, self._rank))


def _readers(num_threads: int) -> ThreadPoolExecutor:
    """Returns threads that read for this one: what ends its waits ends theirs."""
    return ThreadPoolExecutor(num_threads, "shardload-read", initializer=heed, initargs=(current_stop(),))


def _extended(batch: Any, cause: str, more: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(batch, dict):
        raise TypeError(f"{cause} adds fields to batches that are dicts, but this one is a {type(batch).__name__}")
    return {**batch, **more}
