"""A proxy before a real store that holds each request back a while, as distance does, and counts requests and the bytes of answers.

A program of its own, so that it takes no part in the interpreter of who is measured: `python -m bench.late_proxy PORT SECONDS`
prints the port it listens on, answers each line of its input with what came since the last, and ends when its input does.
Bytes go from socket to socket in the kernel, so that it costs whoever reads most hardly a core.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

_PIPE_BYTES = 1 << 20
_END = b"\r\n\r\n"


class Proxy:
    """Carries the connections of readers: requests without bodies, one at a time on each."""

    def __init__(self, port: int, seconds: float) -> None:
        self._upstream, self._seconds = ("127.0.0.1", port), seconds
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listening.getsockname()[1])

    def accept(self) -> None:
        """Takes connections for ever."""
        while True:
            client, _ = self._listening.accept()
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def take_counts(self) -> dict[str, int]:
        """Returns what came since the last call."""
        with self._lock:
            counts, self._counts = dict(self._counts), Counter()
        return {name: counts.get(name, 0) for name in ("requests", "bytes")}

    def _count(self, name: str, more: int) -> None:
        with self._lock:
            self._counts[name] += more

    def _carry(self, client: socket.socket) -> None:
        """Carries one connection until either side ends it, as readers do in the midst of an answer."""
        with ExitStack() as stack, suppress(OSError):
            stack.enter_context(client)
            server = stack.enter_context(socket.create_connection(self._upstream))
            out, into = os.pipe()
            stack.callback(os.close, out)
            stack.callback(os.close, into)
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            poll = select.poll()
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                poll.register(side, select.POLLIN)
            head = bytearray()
            while True:
                for descriptor, _ in poll.poll():
                    if descriptor == client.fileno():
                        if not self._ask(client, server, head):
                            return
                    elif not self._answer(server, into, out, client):
                        return

    def _ask(self, client: socket.socket, server: socket.socket, head: bytearray) -> bool:
        """Takes a part of a request, and hands the whole on when its time has come; tells whether there may be more."""
        part = client.recv(1 << 16)
        head += part
        if not part:
            return False
        if not head.endswith(_END):
            return True
        if not head.startswith((b"GET ", b"HEAD ")):
            return False
        self._count("requests", 1)
        time.sleep(self._seconds)
        server.sendall(head)
        head.clear()
        return True

    def _answer(self, server: socket.socket, into: int, out: int, client: socket.socket) -> bool:
        """Hands a part of an answer on; tells whether there may be more."""
        left = os.splice(server.fileno(), into, _PIPE_BYTES)
        self._count("bytes", left)
        more = left > 0
        while left:
            left -= os.splice(out, client.fileno(), left)
        return more


class Late:
    """Such a proxy in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process = process
        self.port = int(process.stdout.readline())

    def take_counts(self) -> dict[str, int]:
        """Returns `requests` and `bytes` that came since the last call; bytes are those of whole answers, heads too."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        counts: dict[str, int] = json.loads(self._process.stdout.readline())
        return counts


@contextmanager
def late_proxy(port: int, seconds: float) -> Iterator[Late]:
    """Gives a proxy before a port of this machine."""
    command = [sys.executable, "-m", "bench.late_proxy", str(port), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        try:
            yield Late(process)
        finally:
            process.stdin.close()
            process.wait(10)


def main() -> None:
    proxy = Proxy(int(sys.argv[1]), float(sys.argv[2]))
    threading.Thread(target=proxy.accept, daemon=True).start()
    print(proxy.port, flush=True)
    for _ in sys.stdin:
        print(json.dumps(proxy.take_counts()), flush=True)
    # At once: connections that stay open would each be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
