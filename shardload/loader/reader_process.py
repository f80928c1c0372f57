"""A child process that reads bursts, so that a training thread which computes in Python keeps the interpreter to itself.

Beside such a thread every taking-back of the interpreter's lock waits for five milliseconds, and what is done under it is taken
from the training. Of a burst that the process reads there remain a request, an answer, and the making of byte strings.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardload.memory import BufferPool, SharedArena
from shardload.reader.batch import SampleBatch
from shardload.reader.crossing import receive
from shardload.reader.far import Fetched
from shardload.reader.serve import DONE, MESSAGE, READY, Hint, Request, Work

Int64 = NDArray[np.int64]

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from shardload.reader.serve import main; main()"
_SLOT_BYTES = 1 << 30
"""Addresses of a burst that is under way; what is longer is read by this process itself."""
_KEPT_BYTES = 64 << 20
"""Memory of such addresses that is kept for the next burst."""
_WAIT_SECONDS = 1
_SETTLE_SECONDS = 5.0
_START_SECONDS = 60.0


class ProcessGoneError(Exception):
    """The process has ended, or is to."""


@dataclass(eq=False)
class Asked:
    """A burst under way."""

    start: int
    """Of its piece of shared memory."""
    ids: list[Int64]
    """The samples of each batch."""
    lent: list[dict[str, NDArray[Any]]]
    """Arrays that the process fills, by field, for each batch."""


class ReaderProcess:
    """A child process and the memory shared with it. Used by one thread at a time; ends with this object or this process."""

    def __init__(self, work: Work, num_threads: int, num_slots: int, max_idle_bytes: int, strict: bool) -> None:
        """Starts it; it is `ready` a while later.

        Args:
            work: what it reads from.
            num_threads: threads that read in it.
            num_slots: most bursts under way.
            max_idle_bytes: most bytes of arrays kept for reuse.
            strict: as for `BufferPool`.

        Raises:
            OSError: the system does not give the memory or the process.
        """
        self._work = work
        self._arena = arena = SharedArena()
        self.pool = BufferPool(max_idle_bytes, strict=strict, arena=arena)
        """Where the arrays of batches come from."""
        self.fetched = Fetched()
        """What it had fetched from stores at its last answer."""
        self._slots = [arena.take(_SLOT_BYTES) for _ in range(num_slots)]
        self._pending: dict[int, Asked] = {}
        self._answers: dict[int, tuple[int, int]] = {}
        self._ready = False
        described = pickle.dumps(work)
        arena.memory[: len(described)] = described
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # So that a wait is one call that gives the interpreter's lock away once.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _WAIT_SECONDS, 0))
        self._socket = ours
        weakref.finalize(self, ours.close)
        with theirs:
            numbers = theirs.fileno(), arena.descriptor, arena.num_bytes, len(described), num_threads, os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), arena.descriptor),
                # Ctrl-C at a terminal is meant for the program.
                start_new_session=True,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        self._end = weakref.finalize(self, _end, self._process, ours, os.getpid())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ready(self, wait: bool) -> bool:
        """Tells whether it can be asked; with `wait`, once it can, or after a minute.

        Raises:
            ProcessGoneError: it has ended.
        """
        limit = time.monotonic() + (_START_SECONDS if wait else 0.0)
        while not self._ready:
            message = self._receive(wait)
            if message is not None:
                self._ready = message[1] == READY
            elif time.monotonic() >= limit:
                return False
        return True

    def ask(self, ids: list[Int64], order: tuple[int, int], before: list[int], hints: Sequence[Hint]) -> Asked:
        """Asks for a burst; returns what `take` is given for it.

        Args:
            ids: the samples of each batch.
            order: seed and epoch.
            before: how many samples of each batch belong to the epoch before.
            hints: what is to be announced before.

        Raises:
            ProcessGoneError: it has ended.
            MemoryError: there is no room for the arrays or the request, or too many bursts are under way.
        """
        if not self._slots:
            raise MemoryError("no further burst can be under way")
        lent = [{n: self.pool.lease((len(b), *shape), dtype) for n, dtype, shape in self._work.lent} for b in ids]
        places = [[_address(array) - self._arena.address for array in mine.values()] for mine in lent]
        # Joined at once: an array is pickled in five microseconds.
        told = [(hint.rows, _joined(hint.ids), (hint.rows_announced, hint.uses, hint.turn)) for hint in hints]
        request = pickle.dumps(Request(_joined(ids), list(map(len, ids)), places, order, before, told), -1)
        if len(request) > _SLOT_BYTES:
            raise MemoryError("a request larger than its piece of memory")
        asked = Asked(self._slots.pop(), ids, lent)
        self._arena.memory[asked.start : asked.start + len(request)] = request
        self._pending[asked.start] = asked
        self._send(MESSAGE.pack(asked.start, asked.start + _SLOT_BYTES, len(request)))
        return asked

    def take(self, asked: Asked) -> list[SampleBatch] | None:
        """Returns the batches of a burst when they are there; None where it could not be read.

        Raises:
            ProcessGoneError: it has ended.
        """
        start = asked.start
        self._wait_for(start, None)
        status, where = self._answers.pop(start)
        del self._pending[start]
        batches = None
        if status == DONE:
            memory, stop = self._arena.memory, where + 8
            stop += int.from_bytes(memory[where:stop], "little")
            sent, fetched = pickle.loads(memory[where + 8 : stop])
            self.fetched = self.fetched if fetched is None else self.fetched.newer(fetched)
            location, fields = self._work.dataset.location, self._work.fields
            batches = [
                receive(part, ids, lent, fields, self._arena, location)
                for part, ids, lent in zip(sent, asked.ids, asked.lent, strict=True)
            ]
            if stop - start > _KEPT_BYTES:
                self._arena.clear(start, _SLOT_BYTES)
        self._slots.append(start)
        return batches

    def settle(self) -> None:
        """Waits for the bursts under way, which nobody wants any more: their arrays must not be leased again before.

        Raises:
            ProcessGoneError: it has ended, or does not answer and was ended.
        """
        limit = time.monotonic() + _SETTLE_SECONDS
        for start in list(self._pending):
            self._wait_for(start, limit)
            del self._pending[start], self._answers[start]
            self._slots.append(start)

    def close(self) -> None:
        """Ends the process, whatever it does. Batches that are held stay valid."""
        self._end()
        self.pool.close()

    def exit_status(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    @property
    def closed(self) -> bool:
        """Whether it was ended from here, or at the end of the program."""
        return not self._end.alive

    def _wait_for(self, start: int, limit: float | None) -> None:
        while start not in self._answers:
            message = self._receive(True)
            if message is not None:
                self._answers[message[0]] = message[1], message[2]
            elif limit is not None and time.monotonic() > limit:
                self.close()
                raise ProcessGoneError

    def _send(self, message: bytes) -> None:
        # With the interpreter's lock held: there is room, so that it takes microseconds, and having it back would take longer.
        if _send(self._socket.fileno(), message, len(message), _DONTWAIT | _NOSIGNAL) != len(message):
            raise ProcessGoneError

    def _receive(self, wait: bool) -> tuple[int, int, int] | None:
        """Returns the next answer; None if there is none yet, with `wait` after a second."""
        buffer = ctypes.create_string_buffer(MESSAGE.size)
        size = _recv(self._socket.fileno(), buffer, MESSAGE.size, _DONTWAIT)
        data = buffer.raw if size > 0 else b""
        if size < 0:
            if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
                raise ProcessGoneError
            if not wait:
                return None
            try:
                data = self._socket.recv(MESSAGE.size)
            except BlockingIOError:
                return None
            except OSError:
                raise ProcessGoneError from None
        if not data:
            raise ProcessGoneError
        start, status, where = MESSAGE.unpack(data)
        return start, status, where


def _joined(ids: Sequence[Int64]) -> bytes:
    return b"".join(part.data for part in ids)


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _end(process: subprocess.Popen[bytes], ours: socket.socket, owner: int) -> None:
    if os.getpid() != owner:
        return
    with contextlib.suppress(OSError):
        # A thread that waits for an answer wakes up. The descriptor stays until nobody can use it.
        ours.shutdown(socket.SHUT_RDWR)
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_SETTLE_SECONDS)


_DONTWAIT, _NOSIGNAL = int(socket.MSG_DONTWAIT), int(socket.MSG_NOSIGNAL)
# Calls through this keep the interpreter's lock.
_libc = ctypes.PyDLL(None, use_errno=True)
_send, _recv = _libc.send, _libc.recv
_send.restype = _recv.restype = ctypes.c_ssize_t
_send.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
_recv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
