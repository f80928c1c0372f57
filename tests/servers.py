"""A real object store on loopback: SeaweedFS, with its S3 gateway and plain HTTP with ranges."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

BUCKET, KEY, SECRET = "tests", "testkey-5e1f0b", "testsecret-c0de77"
_GRPC = 10_000
"""Each port of the server has a second one so much higher."""
_SERVICES = ("master", "volume", "filer", "s3", "admin")
_START_SECONDS = 30.0

# The child dies with whoever started it, also if that is killed, and never outlives a race with its death.
_BOUND_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_program() -> str | None:
    """Returns the path of SeaweedFS's program `weed`, beside this interpreter or on the path; None if it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")


def free_ports() -> list[int]:
    """Returns ports for all services, free now with those for their second ones.

    They lie below those that the system gives to whoever asks for any, and are drawn at random, so that servers of several
    test runs keep out of each other's way.
    """
    while True:
        first = random.randrange(11_000, 22_000 - len(_SERVICES))
        ports = list(range(first, first + len(_SERVICES)))
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in [*ports, *(port + _GRPC for port in ports)]:
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return ports


class ObjectStore:
    """A server as a child process, with one bucket.

    Attributes:
        http_port: where files are read and written by plain HTTP, below `/buckets/<bucket>/`.
        s3_port: where the S3 gateway listens.
    """

    def __init__(self, directory: Path) -> None:
        """Starts a server and waits until it takes and gives files.

        Args:
            directory: where it keeps its data.
        """
        self.directory = directory
        self._num_uploads = 0
        for attempt in range(3):
            self._ports = dict(zip(_SERVICES, free_ports(), strict=True))
            try:
                self.start()
                break
            except RuntimeError:
                # Another server took one of the ports between the look and the start.
                if attempt == 2:
                    raise
        self.s3_port, self.http_port = self._ports["s3"], self._ports["filer"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()
        for name, port in self._ports.items():
            Path(f"/tmp/seaweedfs-{name}-grpc-{port + _GRPC}.sock").unlink(missing_ok=True)

    def start(self) -> None:
        """Starts the server, again on the same ports and data, and waits until it is ready. It ends with the calling thread.

        Raises:
            RuntimeError: it ended, or is not ready in time; with the end of its log.
        """
        program = find_program()
        assert program is not None, "see find_program"
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        # Its report on the usage goes to a server of its makers unless that is switched off.
        options = [
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            f"-bucket={BUCKET}",
        ]
        options += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        options += [f"-{name}.port={port}" for name, port in self._ports.items()]
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.directory), "TMPDIR": str(self.directory)}
        environment |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        start = [sys.executable, "-I", "-S", "-c", _BOUND_TO_PARENT, str(os.getpid())]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*start, program, "-logtostderr", "mini", *options],
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """Ends the server as a crash would."""
        self._process.kill()
        self._process.wait(30)

    def freeze(self) -> None:
        """Stops the server in the midst of whatever it does; its connections stay open."""
        # Its threads stop one after another, and now and then one is seen to run once more.
        num_seen = 0
        while num_seen < 5:
            self._process.send_signal(signal.SIGSTOP)
            num_seen = num_seen + 1 if self._stopped() else 0
            time.sleep(0.002)

    def thaw(self) -> None:
        """Lets a frozen server go on."""
        self._process.send_signal(signal.SIGCONT)

    @property
    def s3_options(self) -> dict[str, Any]:
        """What fsspec needs to find the gateway."""
        return s3_options(self.s3_port)

    def upload(self, directory: Path, name: str | None = None) -> str:
        """Stores all files below a directory under a name of their own in the bucket.

        Args:
            directory: what to store.
            name: the name; None for a new one.

        Returns:
            The name: its files are at `s3://<BUCKET>/<name>` and `<http_url>/<name>`.
        """
        self._num_uploads += 1
        name = name or f"upload-{self._num_uploads}"
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(directory)}", path.read_bytes())
        return name

    def put(self, name: str, data: bytes) -> None:
        """Stores a file in the bucket, in the place of one that is there."""
        self._ask("PUT", name, data)

    def delete(self, name: str) -> None:
        """Removes a file from the bucket."""
        self._ask("DELETE", name)

    def get(self, name: str) -> bytes:
        """Returns a file of the bucket."""
        return self._ask("GET", name)

    @property
    def http_url(self) -> str:
        """URL of the bucket for plain HTTP."""
        return http_url(self.http_port)

    def _ask(self, method: str, name: str, data: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._ports["filer"], timeout=30)
        try:
            connection.request(method, f"/buckets/{BUCKET}/{quote(name)}", data)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise OSError(f"{method} {name}: {answer.status} {answer.reason}")
        return content

    def _stopped(self) -> bool:
        stats = [path.read_text() for path in Path(f"/proc/{self._process.pid}/task").glob("*/stat")]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.put(".ready", b"ready")
                if self.get(".ready") == b"ready" and self._gateway_has_bucket():
                    return
            time.sleep(0.02)  # nothing tells when it is ready but asking again
        self.kill()
        end = (self.directory / "log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the object store did not start:\n{end}")

    def _gateway_has_bucket(self) -> bool:
        """Asks without a signature: the gateway's refusal tells that it has its identities and answers for the bucket."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports["s3"], timeout=30)
        try:
            connection.request("GET", f"/{BUCKET}/.ready")
            return connection.getresponse().status == 403
        finally:
            connection.close()


def s3_options(port: int) -> dict[str, Any]:
    """What fsspec needs to find a gateway, or a proxy before it."""
    return {"key": KEY, "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{port}"}


def http_url(port: int) -> str:
    """URL of the bucket for plain HTTP, at the server or a proxy before it."""
    return f"http://127.0.0.1:{port}/buckets/{BUCKET}"
