"""One run of a loader over an epoch."""

from __future__ import annotations

import atexit
import logging
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from shardload.errors import FaultLimitError, LoaderClosedError
from shardload.loader.audit import Delivered
from shardload.loader.batches import BatchMaker, Delivery, Loop
from shardload.loader.collate import take_back
from shardload.loader.course import Course
from shardload.loader.hints import Hints
from shardload.loader.origins import count_sources
from shardload.loader.prefetch import Prefetcher
from shardload.loader.processes import ProcessPool
from shardload.loader.run import Run
from shardload.reader.far import is_cached

_KEPT_BATCHES_WARNING, _KEPT_CHECKED = 64, 16
_FAULTS_FREE, _MAX_FAULT_SHARE = 100, 0.05

_log = logging.getLogger("shardload")


class Iteration:
    """The batches of one run, as they are asked for."""

    def __init__(self, course: Course, run: Run) -> None:
        self._course = course
        self._run = run
        self._pool = course.buffers()
        # Asked once, as the training loop waits for whatever `next` does.
        self._moves, self._takes_back = course.moves, course.takes_back
        self._process_id = os.getpid()
        self._num_samples = self._num_faults = 0
        self._loop = Loop()
        self._given: Any = None
        self._last: float | None = None
        self._next: Callable[[], Delivery] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._ended: BaseException | None = None

    def __iter__(self) -> Iteration:
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
            self._loop.waits = True
            if self._next is None:
                self._next = self._begin()
                self._leave_if_ended()
            delivery = self._next()
            self._loop.waits = False
            if delivery.faults:
                self._judge(delivery)
            batch = self._course.arrived(delivery.batch) if self._moves else delivery.batch
        except StopIteration:
            self._end(StopIteration())
            raise
        except BaseException:
            # Going on would leave out the batch that failed: only a new iterator, from a state, can.
            self.close()
            raise
        self._run.deliver(delivery.cursor)
        delivered = self._course.delivered
        delivered.add(delivery.sample_ids)
        if faults := delivery.faults:
            delivered.replace([fault.sample_id for fault in faults], [fault.stand_in for fault in faults])
        self._count(delivery, start)
        if self._takes_back:
            # Only now, so that the last batch of an epoch stays what it is.
            for pool in self._course.pools:
                take_back(self._given, pool)
            self._given = batch
        return batch

    def _leave_if_ended(self) -> None:
        """For where another thread has closed this before there was anything to end."""
        if self._ended is not None:
            self._next = None
            if self._finalizer is not None:
                self._finalizer()
            raise self._ended

    def close(self) -> None:
        """Ends the iteration; a later `next` raises LoaderClosedError."""
        self._end(LoaderClosedError("this iterator is closed: the loader was closed, or a newer iterator took over"))

    def _begin(self) -> Callable[[], Delivery]:
        """Enters the run, starts the thread, and returns what gives the next batch."""
        course = self._course
        run = self._run.begin()
        epoch, seed = run.epoch, run.seed
        course.delivered = Delivered()
        stop = course.stopping()
        facts = Hints(course.ahead, course.carried), run.num_positions, course.beside()
        maker = BatchMaker(course.dataset, course.recipe, self._pool, seed, self._run.rank, *facts)
        if course.num_processes:
            many = course.num_processes, course.prefetch_batches
            processes = ProcessPool(course.dataset, course.recipe, *many, course.workers)
            batches = processes.batches(run.batches, seed, epoch)
        else:
            forecast = run.forecast() if is_cached(course.dataset) else None
            batches = maker.batches(run.batches, epoch, run.after, self._loop, run.windows, forecast)
        deliveries = _summed(course.on_their_way(maker.deliveries(batches, epoch)), course.delivered)
        if course.prefetch_batches == 0:
            return deliveries.__next__
        bounds = course.prefetch_batches, course.prefetch_bytes
        prefetcher = Prefetcher(deliveries, lambda item: item.num_bytes, *bounds, stop)
        # A loop left by break, an exception, or the interpreter's end all drop or outlive this object.
        self._finalizer = weakref.finalize(self, _close, prefetcher)
        if course.num_processes:
            # At the interpreter's end it must come before multiprocessing's own tidying up, which kills the processes under
            # the thread: what is registered last is called first.
            atexit.register(prefetcher.close)
        return prefetcher.take

    def _judge(self, delivery: Delivery) -> None:
        """Tells of faults, and ends the run where there are too many."""
        course = self._course
        for fault in delivery.faults:
            where = "is masked" if course.recipe.on_error == "mask" else f"is replaced by sample {fault.stand_in}"
            _log.warning("sample %d of epoch %d %s: %s", fault.sample_id, fault.epoch, where, fault.cause)
        self._num_faults += len(delivery.faults)
        most, num_samples = course.max_faults, self._num_samples + len(delivery.sample_ids)
        if most is None:
            most = int(max(_FAULTS_FREE, _MAX_FAULT_SHARE * num_samples))
        if self._num_faults > most:
            last = delivery.faults[-1]
            raise FaultLimitError(
                f"{self._num_faults:,} of {num_samples:,} samples of this iteration could not be used, and at most "
                f"{most:,} may be (max_faults=); the last one: sample {last.sample_id}: {last.cause}",
                dataset=course.dataset.location,
                sample_id=last.sample_id,
            )

    def _end(self, reason: BaseException) -> None:
        if self._ended is None:
            self._ended = reason
            self._next = self._given = None
            if self._finalizer is not None:
                self._finalizer()

    def _count(self, delivery: Delivery, start: float) -> None:
        """Counts a batch that was asked for at `start`. The training loop waits for this: the less there is, the better."""
        course, stats, num_samples = self._course, self._course.stats, len(delivery.sample_ids)
        self._num_samples += num_samples
        stats.num_batches += 1
        stats.num_samples += num_samples
        stats.num_bytes += delivery.num_bytes
        if delivery.faults:
            stats.num_faults += len(delivery.faults)
        if course.dataset.names:
            count_sources(stats, delivery.sample_ids, course.dataset)
        if delivery.num_token_places:
            stats.num_tokens += delivery.num_tokens
            stats.num_token_places += delivery.num_token_places
        if not stats.num_batches % _KEPT_CHECKED:
            self._check_kept(delivery)
        stop = time.perf_counter()
        if self._last is None:
            stats.first_batch_seconds = stop - start
        else:
            stats.stall_seconds += stop - start
            stats.loop_seconds += stop - self._last
        self._last = stop

    def _check_kept(self, delivery: Delivery) -> None:
        course = self._course
        usual = delivery.num_bytes * (course.prefetch_batches + _KEPT_BATCHES_WARNING)
        held = sum(pool.leased_bytes for pool in course.pools)
        if held > usual + 2 * course.prefetch_bytes and not course.warned_kept:
            course.warned_kept = True
            warnings.warn(
                f"batches are being kept: {held >> 20} MiB are held by the training loop, and every kept batch "
                "takes new memory; drop batches you no longer need, or copy the parts you keep",
                UserWarning,
                stacklevel=4,
            )


def _summed(deliveries: Iterator[Delivery], delivered: Delivered) -> Iterator[Delivery]:
    """Yields deliveries, and sums up meanwhile what the training loop was given of them."""
    for delivery in deliveries:
        yield delivery
        # It must not live on in this frame while the next one is made: its buffer would not come back.
        del delivery
        delivered.fold()


def _close(prefetcher: Prefetcher[Delivery]) -> None:
    prefetcher.close()
    atexit.unregister(prefetcher.close)
