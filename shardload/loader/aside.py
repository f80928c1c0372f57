"""Who reads the next burst: the threads of this process, or a child process because the training thread computes in Python."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardload.loader.reader_process import Asked, ProcessGoneError, ReaderProcess
from shardload.loader.recipe import BatchRecipe
from shardload.order.cursor import RankBatch
from shardload.reader.batch import SampleBatch
from shardload.reader.busy import interpreter_busy
from shardload.reader.decode import PIXEL
from shardload.reader.serve import Hint, Work
from shardload.reader.source import SampleSource

Int64 = NDArray[np.int64]

_BUSY_ANSWERS, _IDLE_ANSWERS = 2, 3
_ASK_EVERY = 8
"""Bursts between two questions whether the training thread is still busy; each costs five milliseconds where it is."""
_ASK_SECONDS = 0.01
"""Time between two questions whether it has become busy: each costs 0.1 ms, in which small batches could be read."""

_log = logging.getLogger("shardload")


def work_of(dataset: SampleSource, recipe: BatchRecipe, leases: bool) -> Work:
    """Returns what a process reads from: without the user's functions, which stay here.

    Args:
        dataset: the dataset.
        recipe: what becomes of its samples.
        leases: whether arrays of known size are lent to the process; else it is given none, and their content is copied.
    """
    lent = [(f.name, f.dtype, f.shape) for f in recipe.fields if f.fixed]
    lent += [(n, PIXEL, (3, *d.target)) for n, d in recipe.decode.items() if d.target is not None]
    return Work(dataset.bare(), recipe.fields, dict(recipe.decode), tuple(lent) if leases else ())


class Aside:
    """A child process that is started when it is wanted, and the decision when that is. Outlives iterations.

    What it does not read is read by whoever asked: bursts of which one sample has an error, so that this comes from there, and all
    that follow once the process has died.
    """

    def __init__(
        self,
        dataset: SampleSource,
        recipe: BatchRecipe,
        num_ahead: int,
        idle_bytes: int,
        strict: bool,
        always: bool,
    ) -> None:
        """Describes it; nothing is started.

        Args:
            dataset: what is read from.
            recipe: what becomes of its samples.
            num_ahead: bursts that are under way while another one is used.
            idle_bytes: most bytes of arrays kept for reuse.
            strict: whether batches are taken back from the training loop.
            always: read all bursts in the process, not only beside a busy training thread.
        """
        leases = recipe.transform is None and recipe.collate_fn is None
        cores = len(os.sched_getaffinity(0))
        self._always = always
        self._work = dataset, recipe, leases
        self._settings = max(1, min(num_ahead, cores - 1)), num_ahead + 1, idle_bytes, strict
        self.process: ReaderProcess | None = None
        """The process once it was started."""
        self.num_batches = 0
        """Batches that it has read."""
        self._given_up = False
        self.process_id = os.getpid()
        """The process that it belongs to."""
        self._lock = threading.Lock()
        self._helps = always
        self._num_answers = self._num_bursts = 0
        self._asked = 0.0

    @property
    def helps(self) -> bool:
        """Whether bursts are to be read in the process for now."""
        return self._helps and not self._given_up

    def claim(self) -> bool:
        """Takes it for one iteration; returns False where another one still has it, or it is of no use here."""
        return not self._given_up and os.getpid() == self.process_id and self._lock.acquire(blocking=False)

    def release(self) -> None:
        """Gives it back, and waits for what was asked and is not wanted any more."""
        try:
            if self.process is not None and not self._given_up:
                self.process.settle()
        except ProcessGoneError:
            self._give_up()
        finally:
            self._lock.release()

    def ask(self, burst: Sequence[RankBatch], order: tuple[int, int], hints: list[Hint]) -> Asked | None:
        """Asks the process for a burst if it is to read; None where the caller is.

        Args:
            burst: the batches.
            order: seed and epoch.
            hints: what is to be announced before.
        """
        if self._given_up or not self._wanted():
            return None
        try:
            if self.process is None:
                self.process = ReaderProcess(work_of(*self._work), *self._settings)
            if not self.process.ready(self._always):
                return None
            return self.process.ask([b.sample_ids for b in burst], order, [b.num_before for b in burst], hints)
        except MemoryError:
            return None
        except (OSError, ProcessGoneError) as error:
            self._give_up(error)
            return None

    def take(self, asked: Asked) -> list[SampleBatch] | None:
        """Returns the batches that were asked for; None where the caller is to read them."""
        if self._given_up or self.process is None:
            return None
        try:
            batches = self.process.take(asked)
        except ProcessGoneError as error:
            self._give_up(error)
            return None
        self.num_batches += len(batches or ())
        return batches

    def close(self) -> None:
        """Ends the process."""
        if os.getpid() == self.process_id:
            self._given_up = True
            if self.process is not None:
                self.process.close()

    def _wanted(self) -> bool:
        if self._always:
            return True
        self._num_bursts += 1
        if self._helps and self._num_bursts % _ASK_EVERY:
            return True
        if not self._helps and time.monotonic() - self._asked < _ASK_SECONDS:
            return False
        self._asked = time.monotonic()
        if interpreter_busy() != self._helps:
            self._num_answers += 1
        else:
            self._num_answers = 0
        if self._num_answers == (_IDLE_ANSWERS if self._helps else _BUSY_ANSWERS):
            self._helps, self._num_answers = not self._helps, 0
        return self._helps

    def _give_up(self, error: Exception | None = None) -> None:
        if self._given_up:
            return
        self._given_up, process = True, self.process
        if process is not None and process.closed:
            return
        how = str(error or "") or "it has died"
        if process is not None:
            process.close()
            how = f"it has ended with status {process.exit_status()}"
        _log.warning("the process that read beside a busy training thread is gone (%s); threads read from now on", how)
