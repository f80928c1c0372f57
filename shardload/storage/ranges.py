"""How one range of an object is fetched: the interface of the ways, and what all of them share."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import os
import re
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import fsspec.asyn

from shardload.storage.answers import RefusalError, refused
from shardload.storage.limits import Limits as Limits
from shardload.storage.stopping import attempt_seconds, current_stop

Value = TypeVar("Value")

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d+)")
_GRACE_SECONDS = 5.0
_CLOSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Told:
    """What the head of an answer says of the object and of the bytes that follow."""

    start: int
    stop: int
    """The half-open range that follows."""
    total: int | None
    """Length of the whole object; None if it was not told."""
    tag: str | None
    """What changes with the content of the object, such as its ETag."""


Accept = Callable[[Told], memoryview]
"""Judges an answer by its head, and gives the memory for what follows; raises where it is not what was asked for."""


class RangeFetch(Protocol):
    """One way to the objects of a store. Belongs to one process; safe for several threads. One call is one attempt.

    What goes wrong is raised as `RefusalError`, or as whatever the library raises; `explain` tells what kind that is.
    """

    def fetch(self, name: str, start: int, stop: int, tag: str | None, accept: Accept, seconds: float) -> None:
        """Asks for a half-open range, and fills the memory that `accept` gives for the answer.

        Args:
            name: of the object, below the root.
            start: first byte.
            stop: byte after the last; the object may end before it.
            tag: asks for the bytes of the object only if it still has this tag; None for whatever it is.
            accept: see `Accept`; called once, in any thread.
            seconds: how long it may take.
        """
        ...

    def exists(self, name: str, seconds: float) -> bool:
        """Tells whether there is such an object."""
        ...

    def list(self, name: str, seconds: float) -> list[str]:
        """Returns the names below a name; none where the protocol cannot list."""
        ...

    def explain(self, error: Exception) -> RefusalError:
        """Returns what kind of failure an exception of the library is."""
        ...


def told_of(status: int, headers: dict[str, str], start: int) -> Told:
    """Returns what the head of an HTTP answer says.

    Args:
        status: its status.
        headers: its headers by their names in small letters.
        start: first byte that was asked for.

    Raises:
        RefusalError: it does not give a range.
    """
    tag = headers.get("etag")
    if headers.get("content-encoding", "identity") not in ("", "identity", "aws-chunked"):
        raise RefusalError("wrong", f"the answer is encoded ({headers['content-encoding']:.40})")
    length = headers.get("content-length")
    if status == 416 and start == 0:
        return Told(0, 0, 0, tag)
    if status == 416 and (short := _UNSATISFIED.fullmatch(headers.get("content-range", ""))):
        return Told(start, start, int(short[1]), tag)
    if status == 200 and length is not None and length.isdecimal():
        # A whole object is right where it was asked for from its start.
        return Told(0, int(length), int(length), tag)
    if status != 206:
        if 200 <= status < 300:
            raise RefusalError("wrong", f"the store does not give ranges (status {status} for one)")
        raise refused(status, headers.get("retry-after"))
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if found is None:
        raise RefusalError("wrong", "the answer does not tell its range")
    told = Told(int(found[1]), int(found[2]) + 1, None if found[3] == "*" else int(found[3]), tag)
    if length is not None and length != str(told.stop - told.start):
        raise RefusalError("wrong", f"the answer has {length:.20} bytes for its range of {told.stop - told.start}")
    return told


async def fill(view: memoryview, next_chunk: Callable[[], Awaitable[bytes]]) -> None:
    """Fills memory with the chunks of a body, the last of which is empty.

    Raises:
        RefusalError: there are more or fewer bytes.
    """
    done = 0
    while chunk := await next_chunk():
        if done + len(chunk) > len(view):
            raise RefusalError("wrong", f"the answer has more bytes than the {len(view)} of its range")
        view[done : done + len(chunk)] = chunk
        done += len(chunk)
    if done < len(view):
        raise RefusalError("transient", f"the answer ended after {done} of {len(view)} bytes")


def condition(tag: str | None) -> str | None:
    """Returns the tag that may stand in If-Match: weak ones never match there."""
    return None if tag is None or tag.startswith("W/") else tag


Session = TypeVar("Session")


def one_try(session: Session) -> Session:
    """Returns a session of aiohttp that makes a request once.

    By itself aiohttp makes a request again whose connection broke before an answer, and nobody hears of it: an attempt would be two
    requests to a store that is ill already. It has no option for that; where a release has it otherwise, only this is lost.
    """
    if hasattr(session, _AGAIN):
        setattr(session, _AGAIN, False)
    return session


_AGAIN = "_retry_connection"


class Loop:
    """Runs coroutines of one client in fsspec's thread, and closes the client with its owner, in its own process only."""

    def __init__(self, owner: object) -> None:
        self._loop = fsspec.asyn.get_loop()
        self._process_id = os.getpid()
        self._closers: list[Callable[[], Coroutine[Any, Any, Any]]] = []
        self._closing = weakref.finalize(owner, _close, self._loop, self._process_id, self._closers)
        self._closing.atexit = False
        _loops.add(self)

    def on_close(self, close: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Has something awaited when the owner goes."""
        self._closers.append(close)

    def run(self, coroutine: Coroutine[Any, Any, Value], seconds: float) -> Value:
        """Returns the result of a coroutine.

        Raises:
            TimeoutError: it took longer.
        """
        stop, most = current_stop(), attempt_seconds()
        seconds = seconds if most is None else min(seconds, most)
        future = asyncio.run_coroutine_threadsafe(_told(asyncio.wait_for(coroutine, seconds)), self._loop)
        try:
            with stop.calling(future.cancel):
                values, error = future.result(seconds + _GRACE_SECONDS)
        except BaseException:
            future.cancel()
            stop.check()
            raise
        if error is not None:
            raise error
        return values[0]


async def _told(coroutine: Coroutine[Any, Any, Value]) -> tuple[list[Value], Exception | None]:
    """Returns the value of a coroutine, or its error: one that is raised when nobody waits any more is printed by asyncio."""
    try:
        return [await coroutine], None
    except Exception as error:
        return [], error


def _close(loop: Any, process_id: int, closers: list[Callable[[], Coroutine[Any, Any, Any]]]) -> list[Any]:
    """Has everything closed, and waits for nothing: it may run in the loop's own thread, or under any lock."""
    if os.getpid() != process_id or not loop.is_running():
        return []
    return [asyncio.run_coroutine_threadsafe(close(), loop) for close in closers]


_loops: weakref.WeakSet[Loop] = weakref.WeakSet()


def _keep_inherited() -> None:
    """Keeps what a forked child has inherited for ever: connections that it closed would be lost to the parent's loop."""
    for loop in list(_loops):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(loop._closers))
    _loops.clear()


def _close_all() -> None:
    """Waits a moment at the end of the process, since the loop's thread ends with it in the midst of things."""
    # Not by calling the finalizers: by now they may have been told to do nothing any more.
    left = [loop._closing.detach() for loop in list(_loops)]
    for future in [future for one in left if one is not None for future in one[1](*one[2])]:
        with contextlib.suppress(Exception):
            future.result(_CLOSE_SECONDS)


os.register_at_fork(after_in_child=_keep_inherited)
atexit.register(_close_all)
