"""What a child process does that reads for its parent: no torch, no user's code, and it ends with the parent.

A request and its answer are three numbers each; everything else lies in memory that both have mapped (see `crossing`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardload.codecs.images import ImageDecode
from shardload.format.schema import Field
from shardload.memory.byte_strings import keep_freed_memory
from shardload.order.next_use import Uses
from shardload.order.sample_ids import SampleIds
from shardload.reader.batch import SampleBatch
from shardload.reader.crossing import Scratch, Sent, send
from shardload.reader.decode import decoded
from shardload.reader.far import fetched_of, is_far
from shardload.reader.requests import in_turn
from shardload.reader.source import SampleSource

Int64 = NDArray[np.int64]

MESSAGE = struct.Struct("<qqq")
"""A request: start and end of a piece of shared memory, and bytes of the `Request` at its start. The answer: the same start,
a status, and where the answer, to the end of the piece's used part, starts."""
READY, DONE, FAILED = 0, 1, 2
_CHECK_MILLISECONDS = 2000


@dataclass(frozen=True)
class Work:
    """What the process reads from. Pickled once."""

    dataset: SampleSource
    fields: tuple[Field, ...]
    decode: dict[str, ImageDecode]
    lent: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
    """Fields whose arrays are lent by who asks: name, dtype and shape of one sample."""


class Hint(NamedTuple):
    """What is to be announced to the operating system: by `SampleSource.will_need`, or `will_need_rows`."""

    rows: bool
    """Whether only the pages of row tables."""
    ids: Sequence[Int64]
    """The samples, by batches."""
    rows_announced: bool
    """As for `will_need`."""
    uses: Uses | None = None
    """When each of the samples is read, for a cache; None if there is none."""
    turn: int = 0
    """The epoch that they are read in; see `in_turn`."""


class Request(NamedTuple):
    """Batches to be read together, and what is to be announced before."""

    ids: bytes
    """The samples of all batches, int64."""
    sizes: Sequence[int]
    """How many each batch has."""
    lent: Sequence[Sequence[int]]
    """For each batch, where the arrays of `Work.lent` start."""
    order: tuple[int, int]
    """Seed and epoch."""
    before: Sequence[int]
    """How many samples of each batch belong to the epoch before."""
    hints: Sequence[tuple[bool, bytes, tuple[bool, Uses | None, int]]]
    """Those of `Hint`, with their samples as bytes."""


def announce(dataset: SampleSource, fields: Sequence[Field], hints: Sequence[Hint]) -> None:
    """Tells the operating system of samples that will be read soon."""
    for rows, ids, rows_announced, uses, turn in hints:
        with in_turn(turn):
            if rows:
                dataset.will_need_rows(np.concatenate(ids))
            else:
                dataset.will_need(np.concatenate(ids), fields, rows_announced=rows_announced, uses=uses)


class _Reader:
    """Answers requests. Its threads share one dataset."""

    def __init__(self, work: Work, memory: mmap.mmap, answers: socket.socket, num_threads: int) -> None:
        self._work = work
        self._memory = memory
        self._answers = answers
        self._far = is_far(work.dataset)
        self._reads = ThreadPoolExecutor(num_threads)
        self._hints = ThreadPoolExecutor(1)

    def take(self, start: int, stop: int, num_bytes: int) -> None:
        """Has a request answered by a thread."""
        request: Request = pickle.loads(self._memory[start : start + num_bytes])
        if request.hints:
            hints = [Hint(rows, [np.frombuffer(ids, np.int64)], *told) for rows, ids, told in request.hints]
            told = self._work.dataset, self._work.fields, hints
            if self._far:
                # There they are only noted, and are to be so before anything is read of them.
                announce(*told)
            else:
                self._hints.submit(announce, *told)
        self._reads.submit(self._answer, request, start, stop)

    def _answer(self, request: Request, start: int, stop: int) -> None:
        status, where = FAILED, start
        # Whatever it is: the parent reads the same once more and has the error for itself.
        with contextlib.suppress(Exception):
            scratch = Scratch(self._memory, start, stop)
            sent = self._read(request, scratch)
            answer = pickle.dumps((sent, fetched_of(self._work.dataset) if self._far else None))
            where = scratch.put([len(answer).to_bytes(8, "little"), answer], 8 + len(answer))
            status = DONE
        with contextlib.suppress(OSError):
            self._answers.send(MESSAGE.pack(start, status, where))

    def _read(self, request: Request, scratch: Scratch) -> list[list[Sent]]:
        work = self._work
        batches = np.split(np.frombuffer(request.ids, np.int64), np.cumsum(request.sizes)[:-1])
        lent = [self._lent(*pair) for pair in zip(batches, request.lent, strict=True)]
        fixed = [field for field in work.fields if field.fixed]
        buffers = [
            {f.name: mine[f.name] if f.name in mine else scratch.empty((len(ids), *f.shape), f.dtype) for f in fixed}
            for ids, mine in zip(batches, lent, strict=True)
        ]
        with in_turn(request.order[1]):
            read = work.dataset.read_batches(batches, buffers, work.fields)
        if work.decode:
            read = [self._decoded(*parts, request, scratch) for parts in zip(read, lent, request.before, strict=True)]
        return [send(samples, mine, work.fields, scratch) for samples, mine in zip(read, lent, strict=True)]

    def _lent(self, ids: Int64, starts: Sequence[int]) -> dict[str, NDArray[Any]]:
        found = {}
        for start, (name, dtype, shape) in zip(starts, self._work.lent, strict=False):
            size = len(ids) * int(np.prod(shape, dtype=np.int64))
            found[name] = np.frombuffer(self._memory, dtype, size, start).reshape(len(ids), *shape)
        return found

    def _decoded(
        self, samples: SampleBatch, lent: dict[str, NDArray[Any]], num_before: int, request: Request, scratch: Scratch
    ) -> SampleBatch:
        work = self._work
        ids = SampleIds(samples.sample_ids.tolist(), *request.order, num_before)
        for name, decoder in work.decode.items():

            def lease(shape: tuple[int, ...], dtype: np.dtype[Any], name: str = name) -> NDArray[Any]:
                return lent[name] if name in lent else scratch.empty(shape, dtype)

            samples = decoded(samples, {name: decoder}, ids, lease)
        return samples


def main() -> None:
    """Reads until the parent is gone. Started by `shardload.loader.reader_process`."""
    answers_fd, memory_fd, num_bytes, length, num_threads, parent = map(int, sys.argv[-6:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = socket.socket(fileno=answers_fd)
    memory = mmap.mmap(memory_fd, num_bytes)
    watch = select.poll()
    watch.register(answers, select.POLLIN)
    with contextlib.suppress(OSError, AttributeError):
        # The other end of the socket may also be held open by forked children of the parent.
        watch.register(os.pidfd_open(parent), select.POLLIN)
    keep_freed_memory()
    work: Work = pickle.loads(memory[:length])
    # Opened before it is said to be ready.
    _ = work.dataset.engine_name
    reader = _Reader(work, memory, answers, num_threads)
    threading.current_thread().name = "shardload-serve"
    answers.send(MESSAGE.pack(0, READY, 0))
    while os.getppid() == parent:
        ready = watch.poll(_CHECK_MILLISECONDS)
        if any(descriptor != answers_fd for descriptor, _ in ready):
            break
        if not ready:
            continue
        try:
            message = answers.recv(MESSAGE.size)
        except OSError:
            # Gone with answers that it had not taken.
            break
        if not message:
            break
        reader.take(*MESSAGE.unpack(message))
    # At once: threads may be in the midst of reads that nobody waits for.
    os._exit(0)
