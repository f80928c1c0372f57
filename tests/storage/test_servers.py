"""The instruments themselves: a server that is real, and faults that strike as they say."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import subprocess
import sys
from pathlib import Path

import fault_proxy
import pytest
from fault_proxy import CHANGES, FaultProxy
from launch import ROOT
from servers import BUCKET, ObjectStore, s3_options

DATA = bytes(range(256)) * 8


@pytest.fixture
def path(object_store: ObjectStore) -> str:
    object_store.put("servers/file", DATA)
    return f"/buckets/{BUCKET}/servers/file"


def ask(port: int, path: str, start: int, stop: int) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=0.3)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Range": f"bytes={start}-{stop - 1}"})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_ranges_by_http_and_s3(object_store: ObjectStore, path: str, s3_proxy: FaultProxy) -> None:
    import s3fs

    status, headers, body = ask(object_store.http_port, path, 3, 1000)
    assert (status, headers["content-range"], body) == (206, f"bytes 3-999/{len(DATA)}", DATA[3:1000])
    # The signature covers the host that was asked, and is right through the proxy.
    system = s3fs.S3FileSystem(**s3_options(s3_proxy.port), skip_instance_cache=True, use_listings_cache=False)
    system.pipe_file(f"{BUCKET}/servers/new", DATA)
    assert system.cat_file(f"{BUCKET}/servers/new", start=3, end=1000) == DATA[3:1000]
    assert object_store.get("servers/new") == DATA
    assert s3_proxy.num_asked("servers/new", "PUT") == s3_proxy.num_asked("servers/new") == 1


@pytest.mark.parametrize("kind", [*CHANGES, "ignored range", "status"])
def test_changed_answers(path: str, http_proxy: FaultProxy, kind: str) -> None:
    made = {"ignored range": fault_proxy.ignored_range, "status": lambda **o: fault_proxy.status(503, b"no", **o)}
    fault = made[kind](times=1, skip=1) if kind in made else fault_proxy.changed(kind, times=1, skip=1)
    http_proxy.arm(fault)
    right = ask(http_proxy.port, path, 10, 500)
    spoilt = ask(http_proxy.port, path, 10, 500)
    assert right[2] == DATA[10:500] and ask(http_proxy.port, path, 10, 500)[2] == DATA[10:500]
    assert (spoilt[2] == DATA[10:500]) == (kind == "another ETag")
    assert int(spoilt[1]["content-length"]) == len(spoilt[2])
    assert http_proxy.num_hits == 1 and http_proxy.by_range() == {(path, "bytes=10-499"): 3}


@pytest.mark.parametrize("where", ["before", "header", "body", "chunks"])
@pytest.mark.parametrize("ending", ["reset", "fin", "stall"])
def test_answers_that_end(path: str, http_proxy: FaultProxy, where: str, ending: str) -> None:
    http_proxy.arm(fault_proxy.cut(where, ending, times=1))
    errors = {"reset": (ConnectionResetError, http.client.HTTPException), "stall": (TimeoutError,)}
    wanted = errors.get(ending, (http.client.HTTPException,))
    if (where, ending) == ("header", "fin"):
        # The client of the standard library takes a cut header for a whole one; the answer has no right length then.
        with contextlib.suppress(http.client.HTTPException):
            assert ask(http_proxy.port, path, 0, 900)[1].keys() < ask(http_proxy.port, path, 0, 900)[1].keys()
    else:
        with pytest.raises(wanted):
            ask(http_proxy.port, path, 0, 900)
    assert http_proxy.num_hits == 1 and ask(http_proxy.port, path, 0, 900)[2] == DATA[:900]


def test_trickle_and_latency(path: str, http_proxy: FaultProxy) -> None:
    http_proxy.arm(fault_proxy.trickle(0.001))
    http_proxy.latency_seconds = 0.001
    assert ask(http_proxy.port, path, 0, 20)[2] == DATA[:20] and http_proxy.num_hits == 1


def test_the_server_dies_with_whoever_started_it(object_store: ObjectStore, tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from servers import ObjectStore
store = ObjectStore(Path(sys.argv[1]))
store.put("file", b"x")
print(store._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -9, done.stderr
    # Nobody waits for it here: it is gone, or a zombie of the process that takes orphans.
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(int(done.stdout))
        try:
            assert select.select([descriptor], [], [], 10)[0], "the server still runs"
        finally:
            os.close(descriptor)
