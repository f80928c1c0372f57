"""What the iterations of one loader share, and what is chosen for them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from shardload.loader.ahead import Ahead, plan_ahead, useful_threads
from shardload.loader.aside import Aside
from shardload.loader.audit import Delivered
from shardload.loader.batches import Delivery
from shardload.loader.collate import WIDENED, to_device
from shardload.loader.hints import Carried
from shardload.loader.recipe import BatchRecipe
from shardload.loader.transfer import CudaTransfer, Pinning, cuda_device
from shardload.memory import BufferPool
from shardload.quantities import as_integer, parse_bytes
from shardload.reader.checks import fits_in_memory
from shardload.reader.far import Fetched, fetched_of, is_far
from shardload.reader.source import SampleSource
from shardload.storage.stopping import Stop
from shardload.telemetry import LoaderStats

MIN_DEFAULT_BATCHES, MAX_DEFAULT_BATCHES = 2, 32
DEFAULT_BYTES = 32 << 20
"""Finished batches that wait unless told otherwise: about so many bytes, within these numbers."""
DEFAULT_PREFETCH_BYTES = "256MiB"

_LONG_SAMPLE_BYTES = 16 << 10


@dataclass(eq=False)
class Course:
    """What the iterations of one loader share."""

    dataset: SampleSource
    recipe: BatchRecipe
    device: torch.device | None
    """Where tensors are delivered; None for host memory."""
    pinned: bool
    """Whether batches are page-locked, for the copy to the device or for the training loop."""
    prefetch_batches: int
    """Most finished batches that wait; 0 for no thread."""
    prefetch_bytes: int
    """Most bytes that wait."""
    ahead: Ahead
    """How far reads go ahead of batches."""
    num_processes: int = 0
    """Child processes that read, transform and collate; 0 for none."""
    max_faults: int | None = None
    """Most stand-ins in an iteration; None for `_FAULTS_FREE` and `_MAX_FAULT_SHARE` of what it delivered."""
    reuse: bool = False
    """Whether a batch's memory is taken back when the next one is given."""
    stats: LoaderStats = field(default_factory=LoaderStats)
    delivered: Delivered = field(default_factory=Delivered)
    """What was given to the training loop since the epoch was entered."""
    pool: BufferPool | None = None
    """Made for the first iteration."""
    transfer: CudaTransfer | None = None
    """What copies batches to a CUDA device; made for the first iteration."""
    helper: bool | None = None
    """Whether a child process reads: beside a busy training thread if None."""
    aside: Aside | None = None
    """That process, once there is one; made for the first iteration."""
    pinning: Pinning | None = None
    """What makes batches in host memory page-locked; made for the first iteration."""
    warned_kept: bool = False
    """Whether it was told that batches are being kept."""
    workers: dict[int, Fetched] = field(default_factory=dict)
    """What each process of `num_processes` had fetched from stores at its last batch; see `ProcessPool`."""
    stop: Stop | None = None
    """What ends reads under way: set by an iteration that is left, else the next one has what was announced for it."""
    dropped: weakref.finalize[Any, Any] | None = None
    """Sets it when this is dropped."""
    carried: Carried = field(default_factory=Carried)
    """What was announced for the epoch after one that came to its end."""

    @property
    def cuda(self) -> bool:
        """Whether tensors are delivered on a CUDA device."""
        return self.device is not None and self.device.type == "cuda"

    def buffers(self) -> BufferPool:
        """Returns the pool, which stays until `close`.

        Raises:
            RuntimeError: a CUDA device is needed and not there.
        """
        if self.pool is None:
            copies = None
            if self.cuda:
                widened = [f.name for f in self.recipe.fields if f.kind in WIDENED and f.name not in self.recipe.dtypes]
                narrow = frozenset(widened if self.recipe.narrow else ())
                self.transfer = CudaTransfer(cuda_device(self.device), self.pinned, narrow)
                # Who sees a batch before it is sent may keep it, or copy from it on a stream that nobody here knows.
                copies = self.transfer.stream if self.pinned and self.recipe.own else None
                self.stats.device = str(self.transfer.device)
            elif self.pinned:
                self.pinning = Pinning(cuda_device(None))
            self.stats.pinned = self.pinned
            self.pool = BufferPool(self.prefetch_bytes * 2, copies=copies, strict=self.takes_back)
        return self.pool

    def stopping(self) -> Stop:
        """Returns what ends the reads of the iteration that begins; shared with those before it that came to their end."""
        if self.stop is None or self.stop.is_set():
            if self.dropped is not None:
                self.dropped.detach()
            self.stop = Stop()
            self.dropped = weakref.finalize(self, self.stop.set)
            self.dropped.atexit = False
            self.carried = Carried()
        return self.stop

    def beside(self) -> Aside | None:
        """Returns what may read in place of this process; None where nothing may.

        Not where buffers are page-locked: shared ones are not.
        """
        if self.helper is False or self.num_processes or not self.prefetch_batches or self.pinned:
            return None
        if self.aside is not None and self.aside.process_id != os.getpid():
            # That of the process that this one was forked from.
            self.aside = None
        if self.aside is None and (self.helper or self._may_help()):
            settings = max(1, self.ahead.num_threads), self.prefetch_bytes * 2, self.takes_back, bool(self.helper)
            self.aside = Aside(self.dataset, self.recipe, *settings)
        return self.aside

    def _may_help(self) -> bool:
        """Tells whether a helper process could be of use without being asked for.

        Not on one core; and long byte strings are copied by the kernel into their place, without the interpreter's lock, so that
        a process would only copy them once more.
        """
        plain = any(field.in_record for field in self.recipe.fields) and not self.recipe.decode
        long = self.dataset.num_bytes >= _LONG_SAMPLE_BYTES * len(self.dataset)
        return len(os.sched_getaffinity(0)) > 1 and not (plain and long)

    @property
    def pools(self) -> list[BufferPool]:
        """The pools that there are."""
        process = None if self.aside is None else self.aside.process
        return [pool for pool in (self.pool, None if process is None else process.pool) if pool is not None]

    @property
    def takes_back(self) -> bool:
        """Whether the training loop has a batch's own buffers, to be taken back from it."""
        return self.reuse and not self.cuda and not self.pinned

    def on_their_way(self, deliveries: Generator[Delivery]) -> Iterator[Delivery]:
        """Returns deliveries as they are to wait for the training loop."""
        if self.transfer is not None:
            return self.transfer.sent(deliveries, self.buffers())
        return deliveries if self.pinning is None else self.pinning.pinned(deliveries)

    @property
    def moves(self) -> bool:
        """Whether batches are elsewhere when they arrive."""
        return self.transfer is not None or self.device is not None

    def arrived(self, batch: Any) -> Any:
        """Returns the batch of such a delivery as the training loop gets it."""
        if self.transfer is not None:
            return self.transfer.receive(batch)
        return batch if self.device is None else to_device(batch, self.device)

    def told(self) -> LoaderStats:
        """Returns the counters and times of all iterations."""
        stats = replace(self.stats)
        if self.pool is not None:
            stats.engine = self.dataset.engine_name
        fetched = here = fetched_of(self.dataset)
        if self.aside is not None and self.aside.process is not None:
            fetched += self.aside.process.fetched
        fetched = sum(list(self.workers.values()), fetched)
        transfers, cache = fetched.transfers, fetched.cache
        stats.num_requests, stats.num_rereads = transfers.num_requests, transfers.num_rereads
        stats.requested_bytes, stats.needed_bytes = transfers.requested_bytes, transfers.needed_bytes
        stats.num_retries = fetched.retries
        stats.num_cache_hits, stats.num_cache_misses = cache.num_hits, cache.num_misses
        stats.num_cache_evicted, stats.num_cache_damaged = cache.num_evicted, cache.num_damaged
        # Of the disk, whoever has written there.
        stats.cache_bytes = here.cache.held_bytes
        for pool in self.pools:
            stats.num_buffers_new += pool.num_new
            stats.num_buffers_reused += pool.num_reused
            stats.leased_bytes += pool.leased_bytes
        stats.num_helper_batches = 0 if self.aside is None else self.aside.num_batches
        return stats

    def close(self) -> None:
        """Ends a helper process and what is read ahead, and frees idle buffers."""
        if self.stop is not None:
            self.stop.set()
        if self.aside is not None:
            self.aside.close()
        for pool in self.pools:
            pool.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "pool": None,
            "transfer": None,
            "pinning": None,
            "aside": None,
            "workers": {},
            "stop": None,
            "dropped": None,
            "carried": Carried(),
        }


def make_course(
    dataset: SampleSource,
    recipe: BatchRecipe,
    device: torch.device | None,
    batch_size: int,
    pin_memory: bool | None,
    prefetch_batches: int | None,
    prefetch_bytes: int | str | None,
    num_threads: int | None,
    num_processes: int,
    helper: bool | None,
    max_faults: int | None,
    reuse: bool,
) -> Course:
    """Returns what the iterations share, with defaults for what was not given.

    Raises:
        ValueError: a size that cannot be.
    """
    cuda = device is not None and device.type == "cuda"
    sample_bytes = dataset.num_bytes / max(1, len(dataset))
    batch_bytes = batch_size * sample_bytes
    plain = not recipe.decode and any(field.in_record and field.codec == "none" for field in recipe.fields)
    strings = any(field.in_record for field in recipe.fields)
    far = is_far(dataset)
    in_memory = not far and fits_in_memory(dataset.num_bytes)
    useful = useful_threads(sample_bytes, plain_strings=plain, in_memory=in_memory)
    if prefetch_batches is None:
        prefetch_batches = int(
            min(MAX_DEFAULT_BATCHES, max(MIN_DEFAULT_BATCHES, DEFAULT_BYTES // max(batch_bytes, 1.0)))
        )
    threads = None if num_threads is None else as_integer(num_threads, "num_threads")
    num_batches = as_integer(prefetch_batches, "prefetch_batches")
    pinned = cuda if pin_memory is None else pin_memory
    processes = as_integer(num_processes, "num_processes")
    if helper and (processes or pinned or not num_batches):
        raise ValueError(
            "helper_process=True: a helper process reads ahead into memory that is not page-locked: it does not go with "
            "num_processes=, page-locked memory (CUDA devices; pin_memory=False) or prefetch_batches=0"
        )
    waiting_bytes = parse_bytes(DEFAULT_PREFETCH_BYTES if prefetch_bytes is None else prefetch_bytes, "prefetch_bytes")
    return Course(
        dataset,
        recipe.for_cuda(dataset) if cuda else recipe,
        device,
        pinned=pinned,
        prefetch_batches=num_batches,
        prefetch_bytes=waiting_bytes,
        ahead=plan_ahead(batch_bytes, num_batches, threads, useful, far, waiting_bytes, strings),
        num_processes=processes,
        helper=helper,
        max_faults=None if max_faults is None else as_integer(max_faults, "max_faults"),
        reuse=reuse,
    )
