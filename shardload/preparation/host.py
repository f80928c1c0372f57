"""The process in which a user's functions run: it may hang, crash or be killed without harm to the one that packs.

It is given samples in batches by a pipe, and tells what has become of them as it goes. At which sample it is, and since
when, stands in a page of memory that both processes see, so that the other one knows even when this one is gone.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import pickle
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from shardload.preparation.functions import FunctionStep, resolve, source_digest
from shardload.preparation.steps import Refusal, Result, Step, run_steps

INDEX, STARTED_NS, STEP = 0, 1, 2
"""Places in the page: number of the sample among all that came, or -1; when it was begun; number of the step."""
PAGE_BYTES = 4096
UNCHANGED = b""
"""In the place of a result: filters alone give back what came, which the other process has still."""

_FLUSH_NS = 5_000_000
"""What is done is told as often as this: what is lost with the process and not told is done again."""
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def serve(pipe_descriptor: int, page_descriptor: int, parent: int) -> None:
    """Runs steps until the pipe is closed.

    Args:
        pipe_descriptor: what batches come from and results go to.
        page_descriptor: the page of memory.
        parent: process id of the one that packs.
    """
    # Ctrl-C on a terminal reaches every process: this one is ended by its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _die_with(parent)
    # What a function prints is no part of a summary on standard output.
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Line by line: this process may be killed at any moment, and then nothing is flushed.
        sys.stdout.reconfigure(line_buffering=True)
    pipe = Connection(pipe_descriptor)
    page = memoryview(mmap.mmap(page_descriptor, PAGE_BYTES)).cast("q")
    try:
        steps: tuple[Step, ...] = pickle.loads(pipe.recv_bytes())
        pipe.send_bytes(pickle.dumps(_ready(steps)))
        num_served = 0
        while True:
            batch = pickle.loads(pipe.recv_bytes())
            _serve_batch(pipe, page, steps, batch, num_served)
            num_served += len(batch)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The other process has no more, or is gone.
        os._exit(0)


def _ready(steps: Sequence[Step]) -> dict[str, Any]:
    """Imports all functions; returns what tells them apart, or why one cannot be imported."""
    digests = {}
    for step in steps:
        if isinstance(step, FunctionStep):
            try:
                resolve(step.name)
            except ImportError as error:
                return {"failed": f"{step.label}: {error}"}
            digests[step.name] = source_digest(step.name)
    return {"digests": digests}


def _serve_batch(
    pipe: Connection, page: memoryview, steps: Sequence[Step], batch: Sequence[dict[str, Any]], first: int
) -> None:
    """Runs steps on samples, the first of which has a number among all that came."""
    only_filters = all(isinstance(step, FunctionStep) and step.kind == "filter" for step in steps)
    last, results = len(batch) - 1, []

    def note(number: int) -> None:
        page[STEP] = number

    told_ns = time.monotonic_ns()
    for number, values in enumerate(batch):
        # The order counts: who sees the new number sees the new time.
        page[STARTED_NS] = time.monotonic_ns()
        page[INDEX] = first + number
        result = run_steps(steps, values, note)
        unchanged = only_filters and len(result) == 1 and not isinstance(result[0], Refusal)
        results.append(UNCHANGED if unchanged else _packed(result, steps))
        took_ns = time.monotonic_ns() - told_ns
        if number == last or took_ns >= _FLUSH_NS:
            # Waiting for the reader is no time of the function.
            page[INDEX] = -1
            pipe.send_bytes(pickle.dumps((time.process_time(), took_ns / 1e9, results), 5))
            told_ns, results = time.monotonic_ns(), []


def _packed(result: Result, steps: Sequence[Step]) -> bytes:
    """Returns a result as bytes; each alone, so that one that cannot be sent harms no other."""
    try:
        return pickle.dumps(result, 5)
    except Exception as error:
        label = steps[-1].label
        return pickle.dumps([Refusal(f"{label} gave values that cannot leave its process: {error!s:.200}")], 5)


def _die_with(parent: int) -> None:
    """Ends this process with its parent, even where a function never gives the interpreter back."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
