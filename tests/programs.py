"""Programs in processes of their own that begin with torch and shardload imported, or with what the command line imports.

They are forked from an interpreter of one thread that has done nothing else: each takes milliseconds in place of seconds. From
there on they are as any other: what they hold lives in `__main__`, and at its end the interpreter is torn down.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from launch import python_path

ROOT = Path(__file__).parent.parent
SERVER = """
import gc, json, os, signal, socket, sys, warnings
exec(sys.argv[2])
# A program that ends would look through all that was imported, and copy the pages that it marks: half a second with torch.
gc.collect(), gc.freeze()


def next_request(link):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        size, (out, errors, status), _, _ = socket.recv_fds(link, 8, 3) if link.recv(1, socket.MSG_PEEK) else os._exit(0)
        data = link.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL)
        if os.fork() == 0:
            link.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pid = os.fork()
            if pid == 0:
                os.close(status), os.dup2(out, 1), os.dup2(errors, 2), os.close(out), os.close(errors)
                os.setsid()
                return json.loads(data)
            os.close(out), os.close(errors)
            os.write(status, b"%d\\n" % pid)
            os.write(status, b"%d\\n" % os.waitpid(pid, 0)[1])
            os._exit(0)
        os.close(out), os.close(errors), os.close(status)


request = next_request(socket.socket(fileno=int(sys.argv[1])))
os.environ.clear()
os.environ.update(request["environment"])
if "torch" in sys.modules and "OMP_NUM_THREADS" in os.environ:
    # It was imported without it.
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
os.chdir(request["folder"])
sys.argv = request["arguments"]
if request["strict"]:
    sys.warnoptions.append("error")
    warnings.simplefilter("error")
if request["file"]:
    # Processes that it spawns read it again.
    __file__ = request["file"]
    sys.path[0] = os.path.dirname(__file__)
exec(compile(request["source"], request["file"] or "<string>", "exec"))
"""
WITH_TORCH = "import numpy, torch, torch.distributed, torch.utils.data, shardload; shardload.ShardLoader"
WITHOUT_TORCH = (
    "import multiprocessing.connection, shardload.cli, shardload.packing, shardload.reader, shardload.writer"
)
_servers: dict[tuple[int, str], socket.socket] = {}


def _server(imports: str) -> socket.socket:
    """The connection to this process's server, which ends with it."""
    key = os.getpid(), imports
    if key not in _servers:
        ours, theirs = socket.socketpair()
        # A thread of numpy's would be missing in what is forked.
        environment = os.environ | {"PYTHONPATH": python_path(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        # Unbuffered output would hide what Python does with a buffer that cannot be written at the end.
        environment.pop("PYTHONUNBUFFERED", None)
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(theirs.fileno()), imports],
            stdin=subprocess.DEVNULL,
            # Streams made for a file that can be sought in would take what is put there later for one.
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        process.stdout.close(), process.stderr.close()
        _servers[key] = ours
        atexit.register(_end, ours, process)
    return _servers[key]


def _end(link: socket.socket, server: subprocess.Popen[bytes]) -> None:
    link.close()
    server.wait(60)


class Program:
    """A program that was started, much as a `subprocess.Popen` with pipes and text. It leads a session of its own."""

    def __init__(
        self,
        source: str | Path,
        *arguments: Any,
        strict: bool = False,
        torch: bool = True,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        """Starts it.

        Args:
            source: its text, as for `python -c`, or its file.
            arguments: its arguments.
            strict: whether warnings are errors.
            torch: whether it begins with torch imported; if not, with what packing and the command line import.
            cwd: where it runs, unless where this process does.
            env: its environment, unless that of this process.
        """
        file = str(source) if isinstance(source, Path) else ""
        request = {
            "source": source.read_text() if isinstance(source, Path) else source, "file": file, "strict": strict,
            "arguments": [file or "-c", *map(str, arguments)], "environment": dict(os.environ if env is None else env),
            "folder": os.getcwd() if cwd is None else str(cwd),
        }  # fmt: skip
        pipes = [os.pipe() for _ in range(3)]
        data, link = json.dumps(request).encode(), _server(WITH_TORCH if torch else WITHOUT_TORCH)
        socket.send_fds(link, [len(data).to_bytes(8, "little")], [writer for _, writer in pipes])
        link.sendall(data)
        for _, writer in pipes:
            os.close(writer)
        self._output, self._errors, self._status = (io.FileIO(reader) for reader, _ in pipes)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def readline(self) -> str:
        """Returns the next line of its standard output."""
        return self._output.readline().decode()

    def kill(self) -> None:
        """Kills it, if it has not ended."""
        if self.returncode is None and not select.select([self._status], [], [], 0)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Returns the rest of what it, and whoever has its pipes, writes; then it has ended.

        Raises:
            subprocess.TimeoutExpired: not in so many seconds.
        """
        limit, found = time.monotonic() + timeout, {self._output: b"", self._errors: b""}
        left = list(found)
        while left:
            ready = select.select(left, [], [], max(0.0, limit - time.monotonic()))[0]
            if not ready:
                raise subprocess.TimeoutExpired("the program", timeout)
            for file in ready:
                data = file.read(1 << 16)
                found[file] += data
                if not data:
                    left.remove(file)
        if not select.select([self._status], [], [], max(0.0, limit - time.monotonic()))[0]:
            raise subprocess.TimeoutExpired("the program", timeout)
        self.returncode = os.waitstatus_to_exitcode(int(self._status.readline()))
        for file in (*found, self._status):
            file.close()
        return found[self._output].decode(), found[self._errors].decode()
