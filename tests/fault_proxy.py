"""A proxy on loopback that spoils the answers of a real HTTP server on their way, and counts what was asked."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

_MAX_BYTES = 1 << 26


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    range: str | None
    """The header Range."""
    headers: dict[str, str]


@dataclass
class Answer:
    """What the server said, or what is said in its place."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} Said", *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass
class Fault:
    """What goes wrong with some requests; made by the functions below."""

    kind: str
    times: int | None = None
    """How often; None for ever."""
    path: str = ""
    """Regular expression, found anywhere in the path of the requests concerned."""
    ranges: bool | None = None
    """True for requests of a range alone, False for those of whole files alone."""
    method: str | None = "GET"
    """None for any."""
    skip: int = 0
    """Requests concerned that go through before the first that does not."""
    change: Callable[[Answer], Answer] | None = None
    """Makes another answer of the server's."""
    instead: Answer | None = None
    """Said without asking the server."""
    cut: str | None = None
    """Where the answer ends: `before`, `header`, `body` or `chunks`."""
    ending: str = ""
    """How: `reset`, `fin` or `stall`."""
    step_seconds: float = 0.0
    """Time between two parts of the body."""
    step_bytes: int = 1
    """Length of such a part."""
    whole: bool = False
    """Whether the server is not told of the range."""
    num_hits: int = field(default=0, compare=False)

    def concerns(self, asked: Asked) -> bool:
        ranged = self.ranges is None or self.ranges == (asked.range is not None)
        return ranged and self.method in (None, asked.method) and re.search(self.path, asked.path) is not None

    def strikes(self, asked: Asked) -> bool:
        """Tells whether a request is hit, and counts it."""
        if not self.concerns(asked) or (self.times is not None and self.num_hits >= self.times):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.num_hits += 1
        return True


def status(code: int, body: bytes = b"", **options: Any) -> Fault:
    """The server's place is taken by an answer with a status; headers as `retry_after=1`."""
    headers = {"content-type": "application/xml"}
    if "retry_after" in options:
        headers["retry-after"] = str(options.pop("retry_after"))
    return Fault(f"status {code}", instead=Answer(code, headers, body), **options)


def s3_error(code: int, name: str, **options: Any) -> Fault:
    """An error as S3 says it, such as 503 SlowDown or 400 ExpiredToken."""
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{name}</Code><Message>{name}</Message></Error>'
    return status(code, text.encode(), **options)


def cut(where: str, ending: str, **options: Any) -> Fault:
    """The answer ends by `reset`, `fin` or `stall`.

    Args:
        where: `before` its first byte, within its `header`, within its `body`, or within a body of `chunks`, whose length
            nothing tells.
        ending: how.
        options: which requests, as those of `Fault`.
    """
    return Fault(f"{ending} {where}", cut=where, ending=ending, **options)


def trickle(step_seconds: float, **options: Any) -> Fault:
    """The body comes byte by byte, or by `step_bytes`."""
    return Fault("trickle", step_seconds=step_seconds, **options)


def ignored_range(**options: Any) -> Fault:
    """The whole file comes, with 200. An S3 gateway refuses such a request, since signatures cover the range."""
    return Fault("ignored range", whole=True, **options)


def changed(kind: str, **options: Any) -> Fault:
    """Another answer: a kind of `CHANGES`."""
    return Fault(kind, change=CHANGES[kind], **options)


def _flip(answer: Answer) -> Answer:
    body = bytearray(answer.body)
    if body:
        body[len(body) // 2] ^= 0x10
    return Answer(answer.status, answer.headers, bytes(body))


def _scramble(answer: Answer) -> Answer:
    return Answer(answer.status, answer.headers, bytes(byte ^ 0x55 for byte in answer.body))


def _short(answer: Answer) -> Answer:
    return Answer(answer.status, answer.headers, answer.body[:-7])


def _empty(answer: Answer) -> Answer:
    return Answer(answer.status, answer.headers, b"")


def _long(answer: Answer) -> Answer:
    return Answer(answer.status, answer.headers, answer.body + b"longer")


def _not_partial(answer: Answer) -> Answer:
    headers = {name: value for name, value in answer.headers.items() if name != "content-range"}
    return Answer(200, headers, bytes(100) + answer.body)


def _whole_status(answer: Answer) -> Answer:
    headers = {name: value for name, value in answer.headers.items() if name != "content-range"}
    return Answer(200, headers, b"#" + answer.body[1:])


def _other_range(answer: Answer) -> Answer:
    def moved(found: re.Match[str]) -> str:
        return f"bytes {int(found[1]) + 1}-{int(found[2]) + 1}/"

    headers = dict(answer.headers)
    headers["content-range"] = re.sub(r"bytes (\d+)-(\d+)/", moved, headers.get("content-range", ""))
    return Answer(answer.status, headers, answer.body[1:] + b"!")


def _gzip(answer: Answer) -> Answer:
    return Answer(answer.status, answer.headers | {"content-encoding": "gzip"}, gzip.compress(b"?" + answer.body[1:]))


def _page(answer: Answer) -> Answer:
    text = b"<html><body>Please log in to this network.</body></html>"
    return Answer(200, {"content-type": "text/html"}, text.ljust(len(answer.body)))


def _other_etag(answer: Answer) -> Answer:
    return Answer(answer.status, answer.headers | {"etag": '"0123456789abcdef0123456789abcdef"'}, answer.body)


CHANGES: dict[str, Callable[[Answer], Answer]] = {
    "flip": _flip,
    "scramble": _scramble,
    "short": _short,
    "empty": _empty,
    "long": _long,
    "200 and more": _not_partial,
    "200 of the same length": _whole_status,
    "another range": _other_range,
    "gzip": _gzip,
    "page": _page,
    "another ETag": _other_etag,
}
"""Answers that are wrong in themselves. All but the last have other bytes than the right ones."""


class _Connection(asyncio.StreamReaderProtocol):
    """As that of asyncio's servers; tells which connections there are."""

    def __init__(self, transports: set[Any], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._all = transports

    def connection_made(self, transport: Any) -> None:
        self._mine = transport
        self._all.add(transport)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._all.discard(self._mine)
        super().connection_lost(error)


class FaultProxy:
    """Stands between clients and a server. Hosts in requests stay as they are, so signatures stay right.

    Attributes:
        port: where it listens.
        latency_seconds: time each request waits before it is handled.
        asked: all requests, in the order in which they came.
    """

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.latency_seconds = 0.0
        self.asked: list[Asked] = []
        self._faults: list[Fault] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._transports: set[Any] = set()
        self._tasks: set[asyncio.Task[Any] | None] = set()
        self._server: asyncio.Server = self._call(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._server.close()
        # Connections are made and closed by calls and tasks that the loop has yet to come to; here it runs on for them.
        for _ in range(5):
            self._loop.run_until_complete(asyncio.sleep(0.002))
            tasks = [task for task in self._tasks if task is not None]
            for task in tasks:
                task.cancel()
            if tasks:
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=5))
            for transport in list(self._transports):
                transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0.002))
        self._loop.close()

    def arm(self, *faults: Fault) -> None:
        """Has faults strike from now on, and no others; each request suffers the first that concerns it."""
        self._faults = list(faults)

    def reset(self) -> None:
        """Forgets all faults and requests, and the latency."""
        self._faults, self.latency_seconds = [], 0.0
        self.asked = []

    @property
    def num_hits(self) -> int:
        """How many requests were struck by the faults that are armed."""
        return sum(fault.num_hits for fault in self._faults)

    def num_asked(self, path: str = "", method: str = "GET") -> int:
        """Returns how many requests came for paths in which a regular expression is found."""
        return sum(asked.method == method and re.search(path, asked.path) is not None for asked in list(self.asked))

    def by_range(self, path: str = "") -> Counter[tuple[str, str | None]]:
        """Returns how often each range was asked for: (path, Range) -> requests."""
        found = (asked for asked in list(self.asked) if asked.method == "GET" and re.search(path, asked.path))
        return Counter((asked.path.partition("?")[0], asked.range) for asked in found)

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> asyncio.Server:
        def protocol() -> asyncio.StreamReaderProtocol:
            reader = asyncio.StreamReader(limit=_MAX_BYTES, loop=self._loop)
            return _Connection(self._transports, reader, self._client, loop=self._loop)

        return await self._loop.create_server(protocol, "127.0.0.1", 0)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The loop itself holds on to no task, and one that waits for a server whose client has left would be collected.
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            # A client that goes away, or an end of the proxy, is no failure of a test.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._serve_one(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; returns whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        first, _, rest = head.decode("latin-1").partition("\r\n")
        method, path, _ = first.split(" ")
        headers = _headers(rest)
        if headers.pop("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(method, path, headers.get("range"), headers)
        self.asked.append(asked)
        if self.latency_seconds:
            await asyncio.sleep(self.latency_seconds)
        fault = next((fault for fault in self._faults if fault.strikes(asked)), None)
        if fault is not None and fault.cut == "before":
            return await self._finish(reader, writer, fault.ending)
        if fault is not None and fault.instead is not None:
            answer = fault.instead
        else:
            if fault is not None and fault.whole:
                headers.pop("range", None)
            try:
                answer = await self._ask(first, headers, body)
            except (OSError, asyncio.IncompleteReadError):
                # As without a proxy: the connection breaks.
                return await self._finish(reader, writer, "reset")
        return await self._say(reader, writer, method, answer, fault)

    async def _say(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        answer: Answer,
        fault: Fault | None,
    ) -> bool:
        if fault is not None and fault.change is not None:
            answer = fault.change(answer)
        if method != "HEAD" and answer.status not in (204, 304):
            answer.headers["content-length"] = str(len(answer.body))
        head, content = answer.head(), b"" if method == "HEAD" else answer.body
        if fault is not None and fault.cut is not None:
            half = content[: len(content) // 2]
            if fault.cut == "chunks":
                answer.headers.pop("content-length", None)
                answer.headers["transfer-encoding"] = "chunked"
                writer.write(answer.head() + b"%x\r\n%b\r\n" % (len(half), half))
            else:
                writer.write(head[: len(head) // 2] if fault.cut == "header" else head + half)
            await writer.drain()
            return await self._finish(reader, writer, fault.ending)
        if fault is not None and fault.step_seconds:
            writer.write(head)
            for place in range(0, len(content), fault.step_bytes):
                writer.write(content[place : place + fault.step_bytes])
                await writer.drain()
                await asyncio.sleep(fault.step_seconds)
            return True
        writer.write(head + content)
        await writer.drain()
        return True

    async def _finish(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ending: str) -> bool:
        if ending == "stall":
            # For as long as the client has patience.
            await reader.read(_MAX_BYTES)
        elif ending == "reset":
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()
            await writer.wait_closed()
        return False

    async def _ask(self, first: str, headers: dict[str, str], body: bytes) -> Answer:
        """Asks the server, over a connection of its own."""
        async with _connection(self.upstream_port) as (reader, writer):
            lines = [first, *(f"{name}: {value}" for name, value in (headers | {"connection": "close"}).items())]
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            await writer.drain()
            head = b"HTTP/1.1 100"
            while head.startswith(b"HTTP/1.1 100"):
                head = await reader.readuntil(b"\r\n\r\n")
            top, _, rest = head.decode("latin-1").partition("\r\n")
            found, code = _headers(rest), int(top.split(" ")[1])
            found.pop("connection", None)
            if first.startswith("HEAD") or code in (204, 304):
                return Answer(code, found, b"")
            if found.pop("transfer-encoding", "") == "chunked":
                return Answer(code, found, await _chunks(reader))
            size = found.get("content-length")
            content = await reader.read() if size is None else await reader.readexactly(int(size))
            return Answer(code, found, content)


def _headers(text: str) -> dict[str, str]:
    lines = (line.partition(":") for line in text.split("\r\n") if line)
    return {name.strip().lower(): value.strip() for name, _, value in lines}


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(parts)


@contextlib.asynccontextmanager
async def _connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_MAX_BYTES)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
