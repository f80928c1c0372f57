"""The comparison over a store that answers late: what passes is counted, and what runs gave is told once more in other lines."""

from __future__ import annotations

import http.client
import http.server
import threading
from contextlib import contextmanager

import pytest

from bench import far_peers
from bench.__main__ import measure, text
from bench.case_p4 import ArmError
from bench.case_p33 import COLUMNS, FarMeasured, lines_of
from bench.far_arms import ARMS, FarArm, Stored
from bench.late_proxy import Proxy
from bench.peer_form import Samples
from bench.peers import numbers_digest


class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.path.encode() * 50_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        proxy = Proxy(server.server_port, 0.001)
        threading.Thread(target=proxy.accept, daemon=True).start()
        yield proxy
        server.shutdown()


def test_the_proxy_counts_what_passes(proxy):
    assert proxy.take_counts() == {"requests": 0, "bytes": 0}
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    for path in ("/one", "/three"):
        connection.request("GET", path)
        assert connection.getresponse().read() == path.encode() * 50_000
    counts = proxy.take_counts()
    assert counts["requests"] == 2 and 500_000 < counts["bytes"] < 501_000
    assert proxy.take_counts() == {"requests": 0, "bytes": 0}
    connection.close()


def test_the_proxy_carries_no_writes(proxy):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    connection.request("PUT", "/one")
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    assert proxy.take_counts() == {"requests": 0, "bytes": 0}
    connection.close()


class Listed(FarArm):
    """Gives batches, and leaves a file in its cache."""

    def __init__(self, *batches) -> None:
        self._batches = batches

    @contextmanager
    def open(self, samples, stored, cache, workers):
        with open(f"{cache}/held", "wb") as file:
            file.write(b"x" * 10_000)
            # A hole is no part of what it takes.
            file.truncate(1 << 30)
        yield iter(self._batches)


def test_a_run_tells_what_came_and_what_the_cache_takes(tmp_path):
    batches = [[b"00000002", b"00000000"], [b"00000001"]]
    samples = Samples(tmp_path, "text", None)
    found = far_peers.answer_to("run", Listed(*batches), samples, Stored("b", "f", tmp_path), 0)
    assert (found["samples"], found["numbers"]) == (3, numbers_digest(range(3)))
    assert 0 < found["cache_bytes"] <= 1 << 20
    assert found["first_seconds"] <= found["seconds_a_sample"] * 3
    assert not list(tmp_path.iterdir())


class Runs:
    """A process that answers with these microseconds a sample in turn, and a proxy that tells what passed."""

    def __init__(self, *microseconds: float) -> None:
        self._left = list(microseconds)

    def ask(self, do: str) -> dict:
        assert do == "run"
        if not self._left:
            raise ArmError("it stopped")
        seconds = self._left.pop(0) / 1e6
        found = {"samples": 9, "numbers": "all", "cache_bytes": 4e6, "first_seconds": seconds * 100}
        return found | {"seconds_a_sample": seconds, "seconds_a_later_sample": seconds / 2}

    def take_counts(self) -> dict:
        return {"requests": 7, "bytes": 300}


OURS = [name for name, arm in ARMS.items() if arm.ours]


def measured(arm: str, workers: int, *microseconds: float) -> FarMeasured:
    runs = Runs(*microseconds)
    return FarMeasured(arm, workers, runs, runs, {"samples": 9, "numbers": "all"}, 200, "some 1.0")


def lines(tmp_path, *arms: FarMeasured) -> list[dict]:
    (tmp_path / "samples.bin").write_bytes(b"x" * 800)
    made = lines_of("tokens", list(arms), {"litData, 0 workers": "refused"}, Samples(tmp_path, "tokens", None))
    return [{"case": "P33", "line": line.name} | measure(line, line.limits, 5) for line in made]


def test_every_way_of_ours_is_compared_with_the_best_peer(tmp_path):
    ours = [measured(name, 0, *[time] * 5) for name, time in zip(OURS, (2.0, 8.0, 16.0), strict=True)]
    found = lines(tmp_path, *ours, measured("litData", 0, *[4.0] * 5), measured("webdataset", 2, *[6.0] * 5))
    first = found[0]
    assert [line["value"] for line in found] == [2.0, 0.5, 0.25, 0.5, 2.0, 4.0]
    assert [line["figure"] for line in found] == ["ratio"] * 6
    assert first["facts"]["best"] == "litData, 0 workers" and first["at_least"] is None
    assert {name for name in first["also"] if name.startswith("webdataset, 2 workers: ")} == {
        f"webdataset, 2 workers: {column}" for column in COLUMNS
    }
    shown = text(first)
    assert "webdataset, 2 workers 6.00 us (+-0%), samples/s 166667, after the first batch 333333" in shown
    assert "bytes read of the dataset's 1.5, requests 7, cache MB 4, version some 1.0" in shown
    assert "MISSING litData, 0 workers: refused" in shown


def test_a_peer_that_stops_is_no_best_peer(tmp_path):
    ours = [measured(name, 0, *[2.0] * 5) for name in OURS]
    found = lines(tmp_path, *ours, measured("litData", 0, *[1.0] * 4), measured("webdataset", 0, *[6.0] * 5))
    assert [line["value"] for line in found[:3]] == [3.0, 3.0, 3.0]
    assert found[0]["facts"]["missing"]["litData, 0 workers"] in ("refused", "it stopped")


def test_an_epoch_that_lacks_a_sample_is_no_figure():
    one = measured("litData", 0, 2.0)
    one.expected = {"samples": 9, "numbers": "others"}
    with pytest.raises(ArmError, match="not each once"):
        one.run()
    assert one.runs == []
