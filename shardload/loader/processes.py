"""Reading, transforming and collating in child processes, for transforms that hold the interpreter or draw from global generators.

The processes are those of torch's DataLoader, run from the prefetch thread: same order, same batches, bit for bit.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import multiprocessing
import os
import pickle
import random
import select
import signal
import threading
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shardload.loader.collated import Made, Read, collated
from shardload.loader.recipe import BatchRecipe
from shardload.loader.stand_ins import Fault, made_whole
from shardload.order.cursor import RankBatch
from shardload.order.rng import sample_key
from shardload.order.sample_ids import SampleIds
from shardload.reader.batch import SampleBatch
from shardload.reader.decode import decoded
from shardload.reader.far import Fetched, fetched_of, is_far
from shardload.reader.source import SampleSource

if TYPE_CHECKING:
    _Queue = Queue[Any]
else:
    _Queue = Queue

_PR_SET_PDEATHSIG = 1
_FEEDER_SECONDS = 2.0


@dataclass(frozen=True)
class _Failed:
    """What a process returns in place of a batch: its error, so that the loop gets the same one."""

    error: BaseException


@dataclass(frozen=True)
class _Work(Dataset[Any]):
    """What the processes do. Pickled once for each."""

    dataset: SampleSource
    recipe: BatchRecipe

    def __getitems__(self, ids: SampleIds) -> Any:
        try:
            if len(ids):
                # For a collate_fn without a transform before it: what one process had before must not show.
                seed_generators(ids.seed, ids.epochs[0], ids[0])
            faults: tuple[Fault, ...] = ()
            if self.recipe.on_error == "raise":
                samples = self._read(ids)
            else:
                samples, ids, faults = made_whole(ids, self.dataset.stand_ins, self._read)
            made = collated(Read(samples, faults), self.recipe, ids, self.dataset, None, before=seed_generators)
            return made, (os.getpid(), fetched_of(self.dataset)) if is_far(self.dataset) else None
        except Exception as error:
            return _Failed(_portable(error))

    def _read(self, ids: SampleIds) -> SampleBatch:
        samples = self.dataset.read_batch(np.array(ids, dtype=np.int64), {}, self.recipe.fields)
        return decoded(samples, self.recipe.decode, ids)


class ProcessPool:
    """Child processes for one iteration; they end with it."""

    def __init__(
        self,
        dataset: SampleSource,
        recipe: BatchRecipe,
        num_processes: int,
        num_ahead: int,
        fetched: dict[int, Fetched],
    ) -> None:
        """Describes them; they start with the first batch.

        Args:
            dataset: what to read from.
            recipe: what becomes of the samples; transform and collate_fn must be picklable.
            num_processes: how many.
            num_ahead: batches to have under way, at least one a process.
            fetched: is told what each process has fetched from stores, by its id; 0 stands for all that are gone.
        """
        self._work = _Work(dataset, replace(recipe, batch_transform=None))
        self._num_processes = num_processes
        gone, self._fetched = sum(fetched.values(), Fetched()), fetched
        fetched.clear()
        fetched[0] = gone
        self._per_process = max(1, -(-num_ahead // num_processes))

    def batches(self, ids: Iterator[RankBatch], seed: int, epoch: int) -> Generator[Made]:
        """Yields the batches in their order, with what they were asked for by, and faults.

        Raises:
            RuntimeError: a process died.
            BaseException: whatever a transform or a read has raised in a process.
        """
        asked: collections.deque[RankBatch] = collections.deque()

        def requests() -> Iterator[SampleIds]:
            for batch in ids:
                asked.append(batch)
                yield SampleIds(batch.sample_ids.tolist(), seed, epoch, batch.num_before)

        batches = DataLoader(
            self._work,
            batch_sampler=requests(),
            collate_fn=_as_it_is,
            num_workers=self._num_processes,
            prefetch_factor=self._per_process,
            # Whoever takes the batches makes them page-locked: a thread of DataLoader's would do it, one more on the way.
            pin_memory=False,
            # Not by fork: this is a thread beside others, whose locks a child would take over as they are.
            multiprocessing_context=_Context(),
            worker_init_fn=_begin,
            # Its own generator: the seed that it draws for its workers must not come from that of the program.
            generator=torch.Generator(),
        )
        for made in batches:
            if isinstance(made, _Failed):
                raise made.error
            made, told = made
            if told is not None:
                self._fetched[told[0]] = told[1]
            yield Made(asked.popleft(), *made)
            # A batch must not live on in this frame while the next one is waited for.
            del made


class _JoinedQueue(_Queue):
    """A queue that is closed only once the thread which feeds its pipe has ended.

    torch does not wait for it. It would be the last to hold the queue's semaphores then, and takes them down in two steps: an
    interpreter that ends between these leaves the second one to the resource tracker, which complains.
    """

    def close(self) -> None:
        thread, writer = getattr(self, "_thread", None), getattr(self, "_writer", None)
        # Whoever read has ended by now. Of one that died the pipe may be full: then the thread stays where it is, for good.
        stuck = writer is not None and not _has_room(writer)
        super().close()
        # The garbage collector may close it from that very thread.
        if thread is not None and thread is not threading.current_thread() and not stuck:
            thread.join(_FEEDER_SECONDS)

    def __reduce__(self) -> tuple[Any, ...]:
        # In a child nobody is to wait: what it feeds is read by whoever may have left.
        return object.__new__, (Queue,), self.__getstate__()


def _has_room(pipe: Connection) -> bool:
    poll = select.poll()
    # Closed it is where the thread has ended, as when the garbage collector came before: then nothing is waited for.
    with contextlib.suppress(OSError):
        poll.register(pipe, select.POLLOUT)
        return bool(poll.poll(0))
    return True


class _Context(SpawnContext):
    """Starts processes as "spawn" does."""

    def Queue(self, maxsize: int = 0) -> Queue[Any]:  # noqa: N802
        return _JoinedQueue(maxsize, ctx=self.get_context())


def seed_generators(seed: int, epoch: int, sample_id: int) -> None:
    """Seeds the global generators of Python, numpy and torch for one sample in one epoch."""
    key = sample_key(seed, epoch, sample_id)
    random.seed(key)
    np.random.seed(np.frombuffer(key, dtype="<u4"))
    # Not torch.manual_seed: it also queues a call for each CUDA device, once a sample, where CUDA is not in use.
    torch.default_generator.manual_seed(int.from_bytes(key[:8], "little") >> 1)


def _begin(worker: int) -> None:
    _end_with_parent()
    atexit.register(_leave)


def _leave() -> None:
    """Ends this process at once where a thread of it still pickles batches that nobody wants any more.

    torch does not wait for it. From within torch it cannot come back to an interpreter that has ended: it would abort the process
    with "terminate called without an active exception". A forked process leaves in this way always.
    """
    if any(thread.name == "QueueFeederThread" for thread in threading.enumerate()):
        os._exit(0)


def _end_with_parent() -> None:
    """Lets the kernel end this process when the thread that started it is gone, however it went.

    torch's workers look for their parent every five seconds, and not while they wait for room in a pipe.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    # A parent that was gone before the call sends no signal any more.
    if parent is not None and os.getppid() != parent.pid:
        os.kill(os.getpid(), signal.SIGKILL)


def _as_it_is(batch: Any) -> Any:
    return batch


def _portable(error: Exception) -> BaseException:
    """Returns an error that survives the way to the parent, with its traceback as a note."""
    error.add_note("in a process of the loader:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception_only(error)).strip())
    return error
