"""A plain HTTP server with ranges over a directory, which counts what it is asked for and answers wrongly when told to."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit


@dataclass
class Answer:
    """What a request is answered with; a test may change it."""

    name: str
    start: int
    stop: int
    status: int = 206
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    close_after: int | None = None
    """Bytes of the body after which the connection is closed."""


@dataclass
class Request:
    """What was asked for."""

    name: str
    query: str
    start: int | None
    stop: int | None
    headers: dict[str, str]


class RangeServer:
    """Serves a directory on a loopback port, in threads."""

    def __init__(self, root: Path, *, delay_seconds: float = 0.0) -> None:
        self.root = root
        self.delay_seconds = delay_seconds
        self.requests: list[Request] = []
        self.change: Callable[[Answer], Any] | None = None
        """Called with each answer before it is sent."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="range-server", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        name = unquote(parts.path).lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        start, stop = (int(asked[1]), int(asked[2]) + 1) if asked else (None, None)
        headers = {key.lower(): value for key, value in handler.headers.items()}
        self.requests.append(Request(name, parts.query, start, stop, headers))
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        answer = self._right(name, start, stop, headers)
        if self.change is not None:
            self.change(answer)
        handler.send_response_only(answer.status)
        answer.headers.setdefault("Content-Length", str(len(answer.body)))
        for key, value in answer.headers.items():
            if value:
                handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(answer.body[: answer.close_after])
        if answer.close_after is not None:
            handler.close_connection = True

    def _right(self, name: str, start: int | None, stop: int | None, headers: dict[str, str]) -> Answer:
        path = self.root / name
        if not path.is_file():
            return Answer(name, start or 0, stop or 0, 404)
        data, facts = path, path.stat()
        tag = '"' + hashlib.md5(f"{facts.st_mtime_ns} {facts.st_size}".encode()).hexdigest() + '"'
        total = facts.st_size
        if headers.get("if-match", tag) != tag:
            return Answer(name, start or 0, stop or 0, 412)
        if start is None or stop is None:
            return Answer(name, 0, total, 200, {"ETag": tag}, data.read_bytes())
        if start >= total:
            return Answer(name, start, stop, 416, {"Content-Range": f"bytes */{total}"})
        stop = min(stop, total)
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(stop - start)
        return Answer(name, start, stop, 206, {"ETag": tag, "Content-Range": f"bytes {start}-{stop - 1}/{total}"}, body)
