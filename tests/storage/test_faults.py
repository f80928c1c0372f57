"""What goes wrong on the way to a real store: right bytes, or the named error in time, by a bounded number of requests.

The numbers are those of the fault matrix. One set of parameters each is fast; `tools/test --slow tests/storage/test_faults.py` runs
all.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fault_proxy import Fault, FaultProxy, changed, cut, ignored_range, s3_error, trickle
from servers import BUCKET, ObjectStore, http_url, s3_options
from storage.contract import DATA, OTHER

from shardload.errors import StorageError
from shardload.storage import RemoteStorage
from shardload.storage.answers import AnswerError
from shardload.storage.limits import Limits
from shardload.storage.retrying import RetryingStorage
from shardload.storage.schedule import RetryPolicy

POLICY = RetryPolicy(deadline_seconds=5.0, progress_seconds=0.15, max_retries=3, first_wait_seconds=0.002)
SLACK_SECONDS = 5.0
"""A loaded machine may take so much longer than the deadline and a tenth of it."""

Row = tuple[str, Callable[..., Fault], set[str], int | None]
"""Name, the fault, kinds of the error that may come of it, and the most requests when it strikes for ever (None: retries)."""


def answer(kind: str) -> Callable[..., Fault]:
    return lambda **options: changed(kind, **options)


def ends(where: str, ending: str) -> Callable[..., Fault]:
    return lambda **options: cut(where, ending, **options)


def says(code: int, name: str, **more: Any) -> Callable[..., Fault]:
    return lambda **options: s3_error(code, name, **more, **options)


BROKEN, WRONG, STALLED = {"transient"}, {"wrong", "transient"}, {"stalled"}
ROWS: list[Row] = [
    ("F31 short", answer("short"), WRONG, None),
    ("F31 empty", answer("empty"), WRONG, None),
    ("F31 long", answer("long"), WRONG, None),
    ("F31 whole file", ignored_range, WRONG, None),
    ("F31 200", answer("200 and more"), WRONG, None),
    ("F31 200 of the same length", answer("200 of the same length"), WRONG, None),
    ("F31 another range", answer("another range"), WRONG, None),
    ("F31 gzip", answer("gzip"), WRONG, None),
    ("F31 page", answer("page"), WRONG, None),
    ("F32 reset before", ends("before", "reset"), BROKEN, None),
    ("F32 reset in the header", ends("header", "reset"), BROKEN, None),
    ("F32 reset in the body", ends("body", "reset"), BROKEN, None),
    ("F32 end before", ends("before", "fin"), BROKEN, None),
    ("F32 end in the header", ends("header", "fin"), BROKEN, None),
    ("F32 end in the body", ends("body", "fin"), BROKEN, None),
    ("F32 end in chunks", ends("chunks", "fin"), WRONG, None),
    ("F33 stall before", ends("before", "stall"), STALLED, None),
    ("F33 stall in the header", ends("header", "stall"), STALLED, None),
    ("F33 stall in the body", ends("body", "stall"), STALLED, None),
    ("F34 500", says(500, "InternalError"), BROKEN, None),
    ("F34 502", says(502, "BadGateway"), BROKEN, None),
    ("F34 503 SlowDown", says(503, "SlowDown"), {"throttled"}, None),
    ("F34 429", says(429, "TooManyRequests"), {"throttled"}, None),
    ("F35 403", says(403, "AccessDenied"), {"access"}, 2),
    ("F35 401", says(401, "Unauthorized"), {"access"}, 2),
    ("F35 expired", says(400, "ExpiredToken"), {"access"}, 2),
    ("F35 404", says(404, "NoSuchKey"), {"missing"}, 1),
    ("F36 412", says(412, "PreconditionFailed"), {"changed"}, 1),
    ("F36 another ETag", answer("another ETag"), {"changed"}, 1),
]
FAST = {
    "F31 short",
    "F31 whole file",
    "F31 another range",
    "F31 gzip",
    "F31 page",
    "F32 reset before",
    "F32 end in the body",
}
FAST |= {
    "F33 stall in the body",
    "F34 503 SlowDown",
    "F34 500",
    "F35 403",
    "F35 expired",
    "F35 404",
    "F36 another ETag",
}


def remote(url: str, options: dict[str, Any] | None = None, policy: RetryPolicy = POLICY) -> RetryingStorage:
    return RetryingStorage(RemoteStorage(url, options, Limits(policy.progress_seconds)), policy)


@pytest.fixture(params=["s3", "http"])
def far(request: pytest.FixtureRequest, object_store: ObjectStore) -> tuple[FaultProxy, RetryingStorage]:
    """A store with one file, read through a proxy."""
    object_store.put("faults/file", DATA)
    proxy: FaultProxy = request.getfixturevalue(f"{request.param}_proxy")
    if request.param == "s3":
        storage = remote(f"s3://{BUCKET}/faults", s3_options(proxy.port))
    else:
        storage = remote(f"{http_url(proxy.port)}/faults")
    # The client is made before the clock runs: on a loaded machine that takes longer than some tests have patience.
    assert RetryingStorage(storage.inner, RetryPolicy(max_retries=100)).open("file", len(DATA)).read(0, 9) == DATA[:9]
    proxy.reset()
    return proxy, storage


def table(rows: list[Row]) -> list[Any]:
    """Rows times how often the fault strikes; all but one set of the fast ones are marked slow."""
    found = []
    for row in rows:
        for times in (1, 2, None):
            fast = (row[0] in FAST and times is None) or row[0] == "F32 reset before"
            marks = () if fast else (pytest.mark.slow,)
            found.append(pytest.param(row, times, id=f"{row[0]}, {times or 'for ever'}", marks=marks))
    return found


@pytest.mark.parametrize("row, times", table(ROWS))
def test_one_range(far: tuple[FaultProxy, RetryingStorage], row: Row, times: int | None) -> None:
    proxy, storage = far
    name, make, kinds, most = row
    if name == "F35 expired" and storage.root.startswith("http"):
        # A word of S3's.
        kinds, most = {"refused"}, 1
    file = storage.open("file", len(DATA))
    assert file.read(0, 100) == DATA[:100]
    proxy.reset()
    proxy.arm(make(times=times, path="faults/file"))
    start, buffer = time.monotonic(), bytearray(3_000)
    allowed = POLICY.max_retries if most is None else most - 1
    if times is not None and times <= allowed:
        file.read_into(memoryview(buffer), 500)
        assert buffer == DATA[500:3_500] and proxy.num_hits == times
        assert set(storage.num_retries) <= kinds and proxy.num_asked() == 1 + times
        assert sum(storage.num_retries.values()) == times
    else:
        with pytest.raises(StorageError) as caught:
            file.read_into(memoryview(buffer), 500)
        error = caught.value
        assert isinstance(error, AnswerError) and error.kind in kinds, f"{name}: {error.kind}: {error}"
        assert (error.dataset, error.shard) == (storage.root, "file") and "file" in str(error)
        assert (error.start, error.stop) == (500, 3_500)
        # Also where the connection was kept open before: aiohttp would ask once more by itself.
        assert 1 <= proxy.num_asked() <= 1 + allowed
    assert time.monotonic() - start < POLICY.deadline_seconds * 1.1 + SLACK_SECONDS
    # What went wrong has left nothing behind.
    proxy.reset()
    assert file.read(0, 10_000) == DATA


def test_a_slow_trickle_ends_at_the_deadline(far: tuple[FaultProxy, RetryingStorage]) -> None:
    """F33: a byte comes now and then, so that there is always progress, and never an end."""
    proxy, storage = far
    storage = RetryingStorage(storage.inner, RetryPolicy(0.5, 0.3, 3, 0.002))
    file = storage.open("file", len(DATA))
    assert file.read(0, 9) == DATA[:9]
    proxy.reset()
    proxy.arm(trickle(0.01, path="faults/file"))
    start = time.monotonic()
    with pytest.raises(AnswerError) as caught:
        file.read(0, 10_000)
    assert caught.value.kind == "stalled" and 0.4 < time.monotonic() - start < 0.55 + SLACK_SECONDS
    assert proxy.num_asked() == 1
    # In time it is right.
    proxy.arm(trickle(0.001, path="faults/file"))
    assert file.read(0, 20) == DATA[:20]


def test_the_store_is_left_alone_as_long_as_it_asks_for(far: tuple[FaultProxy, RetryingStorage]) -> None:
    """F34: Retry-After."""
    proxy, storage = far
    waits: list[float] = []
    from shardload.storage.retrying import Retries

    storage = RetryingStorage(storage.inner, retries=Retries(POLICY, draw=lambda: 0.5, wait=waits.append))
    file = storage.open("file", len(DATA))
    proxy.arm(s3_error(503, "SlowDown", retry_after=2, times=2, path="faults/file"))
    assert file.read(0, 9) == DATA[:9] and waits == pytest.approx([2.001, 2.003])
    proxy.arm(s3_error(503, "SlowDown", retry_after=3600, path="faults/file"))
    with pytest.raises(AnswerError, match=r"fewer requests"):
        file.read(0, 9)
    assert len(waits) == 2


def test_expired_credentials_are_read_anew(
    object_store: ObjectStore, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F35: from where they came from, here the environment. The old ones are refused by the server itself."""
    object_store.put("faults/file", DATA)
    options = s3_options(s3_proxy.port)
    key, secret = options.pop("key"), options.pop("secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "outdated")
    storage = remote(f"s3://{BUCKET}/faults", options)
    file = storage.open("file", len(DATA))
    with pytest.raises(AnswerError) as caught:
        file.read(0, 9)
    assert caught.value.kind == "access" and s3_proxy.num_asked() == 2
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    assert file.read(0, 9) == DATA[:9] and storage.num_retries["access"] == 2
    assert file.read(0, 9) == DATA[:9] and s3_proxy.num_asked() == 5


def test_replaced_and_deleted_under_the_reader(
    far: tuple[FaultProxy, RetryingStorage], object_store: ObjectStore
) -> None:
    """F36: an error at once that says so; a reader that opens it anew has the new one."""
    proxy, storage = far
    file = storage.open("file", len(DATA))
    assert file.read(0, 100) == DATA[:100]
    object_store.put("faults/file", OTHER)
    proxy.reset()
    with pytest.raises(AnswerError, match="changed since it was opened") as caught:
        file.read(100, 200)
    assert caught.value.kind == "changed" and proxy.num_asked() == 1
    assert storage.open("file", len(OTHER)).read(100, 200) == OTHER[100:200]
    object_store.delete("faults/file")
    proxy.reset()
    with pytest.raises(StorageError, match=r"missing|changed"):
        file.read(100, 200)
    with pytest.raises(StorageError, match="file is missing"):
        storage.open("file", len(OTHER)).read(100, 200)
    assert proxy.num_asked() == 2


@pytest.mark.parametrize("scheme", [pytest.param("s3", marks=pytest.mark.slow), "http"])
def test_nobody_listens(scheme: str) -> None:
    """F37: connection refused; and no address for the name."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        policy = RetryPolicy(2.0, 1.5, 3, 0.05)
        for host in (f"127.0.0.1:{port}", "there-is-no-such-host.invalid"):
            if scheme == "s3":
                storage = remote("s3://bucket/data", s3_options(port) | {"endpoint_url": f"http://{host}"}, policy)
            else:
                storage = remote(f"http://{host}/data", None, policy)
            start = time.monotonic()
            with pytest.raises(AnswerError, match="file cannot be read") as caught:
                storage.open("file", 100).read(0, 100)
            # Resolvers may take their time to say that there is no such name.
            assert caught.value.kind in {"unreachable"} | ({"stalled"} if "invalid" in host else set())
            assert time.monotonic() - start < 2.2 + SLACK_SECONDS


def test_a_frozen_server(object_store: ObjectStore, far: tuple[FaultProxy, RetryingStorage]) -> None:
    """F33: SIGSTOP. For a moment: right. For good: the error, in time."""
    proxy, storage = far
    file = storage.open("file", len(DATA))
    assert file.read(0, 100) == DATA[:100]
    slow = remote(storage.inner.url, storage.inner.options, RetryPolicy(60.0, 2.0, 30, 0.002))
    object_store.freeze()
    try:
        start = time.monotonic()
        with pytest.raises(AnswerError) as caught:
            file.read(100, 200)
        assert caught.value.kind == "stalled" and time.monotonic() - start < 5.5 + SLACK_SECONDS
        asked = proxy.num_asked()
        thaw = threading.Thread(target=_when, args=(lambda: proxy.num_asked() > asked, object_store.thaw))
        thaw.start()
        try:
            assert slow.open("file", len(DATA)).read(100, 200) == DATA[100:200]
        finally:
            thaw.join(40)
    finally:
        object_store.thaw()


@pytest.mark.slow
def test_a_killed_and_restarted_server(far: tuple[FaultProxy, RetryingStorage], object_store: ObjectStore) -> None:
    """F37: kill -9. Connections break, then nobody listens, then the server is not ready yet, and then all is right."""
    storage = far[1]
    patient = RetryingStorage(storage.inner, RetryPolicy(60.0, 2.0, 20, 0.1))
    file = patient.open("file", len(DATA))
    assert file.read(0, 100) == DATA[:100]
    object_store.kill()
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(file.read(100, 10_000)))
    thread.start()
    # From here, since a server ends with the thread that has started it.
    _when(lambda: sum(patient.num_retries.values()) > 1, object_store.start)
    thread.join(80)
    assert got == [DATA[100:]]


def _when(condition: Callable[[], bool], then: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    then()
