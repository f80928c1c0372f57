"""A plain HTTP server with ranges over a directory, every answer of which is held back a while, as far away stores are.

A program of its own, so that it takes no part in the interpreter of who is measured: `python -m bench.slow_server FOLDER SECONDS`
prints its URL, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RANGE = re.compile(rb"\r\nrange: bytes=(\d+)-(\d+)\r\n", re.IGNORECASE)


async def _serve(root: Path, seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await asyncio.sleep(seconds)
            path = root / head.split(b" ", 2)[1].decode().lstrip("/")
            asked = _RANGE.search(head)
            if not path.is_file() or asked is None:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            total = path.stat().st_size
            start, stop = int(asked[1]), min(int(asked[2]) + 1, total)
            descriptor = os.open(path, os.O_RDONLY)
            body = os.pread(descriptor, stop - start, start)
            os.close(descriptor)
            lines = f"Content-Length: {len(body)}\r\nContent-Range: bytes {start}-{stop - 1}/{total}"
            writer.write(f'HTTP/1.1 206 Partial Content\r\nETag: "{total}"\r\n{lines}\r\n\r\n'.encode() + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _main(root: Path, seconds: float) -> None:
    server = await asyncio.start_server(lambda *streams: _serve(root, seconds, *streams), "127.0.0.1", 0, limit=1 << 20)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    # At once: connections that stay open would each be mourned.
    os._exit(0)


@contextmanager
def slow_server(root: Path, seconds: float) -> Iterator[str]:
    """Gives the URL of such a server in a process of its own."""
    command = [sys.executable, "-m", "bench.slow_server", str(root), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(10)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), float(sys.argv[2])))
