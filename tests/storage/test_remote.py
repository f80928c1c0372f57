"""Storages of URLs: answers that are wrong, and what must not be shown."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from range_server import Answer, RangeServer

import shardload
from shardload.errors import FormatError, ShardloadError, StorageError
from shardload.storage import (
    AnswerError,
    LocalStorage,
    RemoteStorage,
    RetryingStorage,
    RetryPolicy,
    remote,
    storage_of,
)
from shardload.storage.answers import RefusalError, seconds_of
from shardload.storage.ranges import Limits
from shardload.storage.secrets import is_url, redact, secrets_of, shown
from shardload.writer.prune import prune
from shardload.writer.rebuild import rebuild_index

DATA = np.random.default_rng(5).bytes(100_003)
FILES = {"manifest.json": b'{"a": 1}', "shards/one": DATA}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    for name, data in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def running(directory: Path) -> Iterator[RangeServer]:
    with RangeServer(directory) as server:
        yield server


@pytest.fixture
def server(running: RangeServer) -> Iterator[RangeServer]:
    running.requests.clear()
    yield running
    running.change = None


def test_a_range_is_one_request_of_the_first_tag(server: RangeServer) -> None:
    file = RemoteStorage(server.url).open("shards/one", len(DATA))
    assert not server.requests
    file.read(10, 20)
    file.read(30, 50)
    first, second = server.requests
    assert (first.start, first.stop, second.start, second.stop) == (10, 20, 30, 50)
    assert "if-match" not in first.headers and second.headers["if-match"].startswith('"')
    assert first.headers["accept-encoding"] == "identity"


def _of_status(status: int, **headers: str) -> Any:
    def change(answer: Answer) -> None:
        answer.status, answer.headers, answer.body = (
            status,
            {k.replace("_", "-"): v for k, v in headers.items()},
            b"<html>",
        )

    return change


def _headers(**headers: str) -> Any:
    return lambda answer: answer.headers.update({key.replace("_", "-"): value for key, value in headers.items()})


def _body(make: Any) -> Any:
    def change(answer: Answer) -> None:
        answer.body = make(answer.body)

    return change


def _cut(answer: Answer) -> None:
    answer.close_after = 3


def _chunks(extra: bytes, stop: int | None = None) -> Any:
    """An answer whose length only its chunks tell."""

    def change(answer: Answer) -> None:
        body = answer.body[:stop] + extra
        answer.headers |= {"Transfer-Encoding": "chunked", "Content-Length": ""}
        answer.body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)

    return change


WRONG = {
    "no ranges": (_of_status(200), "wrong"),
    "error page with 200": (lambda a: (setattr(a, "status", 200), a.headers.clear()), "wrong"),
    "no content": (_of_status(203), "wrong"),
    "short": (_body(lambda body: body[:-1]), "wrong"),
    "long": (_body(lambda body: body + b"x"), "wrong"),
    "no Content-Range": (_headers(Content_Range=""), "wrong"),
    "nonsense in Content-Range": (_headers(Content_Range="bytes ten-20/30"), "wrong"),
    "another range": (_headers(Content_Range=f"bytes 11-20/{len(DATA)}"), "wrong"),
    "a wider range": (_headers(Content_Range=f"bytes 10-29/{len(DATA)}"), "wrong"),
    "encoded": (_headers(Content_Encoding="gzip"), "wrong"),
    "another tag": (_headers(ETag='"other"'), "changed"),
    "another weak tag": (_headers(ETag='W/"other"'), "changed"),
    "ended in the body": (_cut, "transient"),
    "short in chunks": (_chunks(b"", -1), "transient"),
    "long in chunks": (_chunks(b"x"), "wrong"),
    "500": (_of_status(500), "transient"),
    "502": (_of_status(502), "transient"),
    "408": (_of_status(408), "transient"),
    "503": (_of_status(503, Retry_After="7"), "throttled"),
    "429": (_of_status(429, Retry_After="7"), "throttled"),
    "401": (_of_status(401), "access"),
    "403": (_of_status(403), "access"),
    "404": (_of_status(404), "missing"),
    "410": (_of_status(410), "missing"),
    "412": (_of_status(412), "changed"),
    "416": (_of_status(416), "changed"),
    "300": (_of_status(300), "refused"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_answers(server: RangeServer, case: str) -> None:
    file = RemoteStorage(server.url).open("shards/one", len(DATA))
    file.read(0, 1)
    change, kind = WRONG[case]
    server.change = change
    with pytest.raises(AnswerError) as caught:
        file.read(10, 20)
    assert caught.value.kind == kind and caught.value.shard == "shards/one", caught.value
    assert caught.value.retry_after_seconds == (7.0 if kind == "throttled" else None)
    assert kind == "missing" or (caught.value.start, caught.value.stop) == (10, 20)
    # One attempt: that of the file, and the one before.
    assert len(server.requests) == 2
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.kind, str(again)) == (AnswerError, kind, str(caught.value))
    assert again.retry_after_seconds == caught.value.retry_after_seconds
    server.change = None
    assert file.read(10, 20) == DATA[10:20]


def test_a_file_cut_or_replaced_since_it_was_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA[:100])
    with RangeServer(tmp_path) as server:
        file = RemoteStorage(server.url).open("file", 100)
        assert file.read(0, 50) == DATA[:50]
        (tmp_path / "file").write_bytes(DATA[100:200])
        with pytest.raises(AnswerError, match="changed since it was opened") as caught:
            file.read(50, 60)
        assert caught.value.kind == "changed"
        (tmp_path / "file").write_bytes(DATA[:40])
        with pytest.raises(FormatError, match="has 40 bytes instead of 100"):
            RemoteStorage(server.url).open("file", 100).read(50, 60)


def test_nobody_answers(directory: Path) -> None:
    with RangeServer(directory) as server:
        pass
    with pytest.raises(AnswerError, match=r"manifest\.json cannot be read") as caught:
        RemoteStorage(server.url).read_small("manifest.json", 100)
    assert caught.value.kind == "unreachable"


def test_no_byte_in_time(server: RangeServer) -> None:
    storage = RemoteStorage(server.url, None, Limits(progress_seconds=0.05))
    try:
        server.delay_seconds = 0.3
        with pytest.raises(AnswerError, match="in time") as caught:
            storage.read_small("manifest.json", 100)
        assert caught.value.kind == "stalled"
        with pytest.raises(AnswerError, match="in time"):
            RemoteStorage(server.url).open("shards/one", len(DATA)).read_into(memoryview(bytearray(9)), 0, 0.05)
    finally:
        server.delay_seconds = 0.0


def test_retry_after() -> None:
    assert seconds_of("3") == 3.0 and seconds_of(None) is None and seconds_of("soon") is None
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


SECRETS = ["alice77", "pass%word77", "signature77", "header77", "token77"]


def test_secrets_are_shown_nowhere(directory: Path, server: RangeServer) -> None:
    url = server.url.replace("//", "//alice77:pass%25word77@") + "/?sig=signature77&x=1"
    options = {"headers": {"X-Key": "header77"}, "client_kwargs": {"headers": {"Y": "token77"}}}
    storage = RemoteStorage(url, options)
    assert storage.read_small("manifest.json", 99) == FILES["manifest.json"]
    request = server.requests[-1]
    assert request.query == "sig=signature77&x=1" and request.headers["x-key"] == "header77"
    assert request.headers["y"] == "token77" and request.headers["authorization"].startswith("Basic ")
    shown_texts = [repr(storage), storage.root]
    for change in (None, _of_status(403), _of_status(500), _cut, _of_status(300, Location="http://[/?sig=signature77")):
        server.change = change
        with pytest.raises(ShardloadError) as caught:
            storage.open("none" if change is None else "shards/one", 100_003).read(0, 50)
        assert caught.value.__cause__ is None and caught.value.__context__ is None
        shown_texts += [str(caught.value), repr(vars(caught.value)), "".join(traceback.format_exception(caught.value))]
    for secret in SECRETS:
        assert not [text for text in shown_texts if secret in text]
    again: Any = pickle.loads(pickle.dumps(storage))
    server.change = None
    assert again.read_small("manifest.json", 99) == FILES["manifest.json"]


def test_errors_of_ours_come_without_those_of_libraries(server: RangeServer) -> None:
    def ask(ranges: Any, limits: Any) -> None:
        try:
            raise OSError("with a secret")
        except OSError:
            raise FormatError("of ours")  # noqa: B904

    with pytest.raises(FormatError, match="of ours") as caught:
        RemoteStorage(server.url)._asked("name", None, ask)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_threads_that_begin_at_once_share_one_client(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made, make, together = [], remote._ranges_of, threading.Barrier(2)

    def noted(*arguments: Any) -> Any:
        made.append(make(*arguments))
        # Another one that makes a client has time to come, too.
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.3)
        return made[-1]

    monkeypatch.setattr(remote, "_ranges_of", noted)
    storage, got = RemoteStorage(server.url), list[bytes]()
    threads = [
        threading.Thread(target=lambda: got.append(storage.read_small("manifest.json", 99)), daemon=True)
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(got) == 8 and len(made) == 1


def test_a_failure_is_explained_though_credentials_are_read_anew_meanwhile(server: RangeServer) -> None:
    storage = RemoteStorage(server.url)

    def ask(ranges: Any, limits: Any) -> None:
        storage.renew()
        raise RefusalError("throttled", "later", 3.0)

    with pytest.raises(AnswerError, match="later") as caught:
        storage._asked("name", None, ask)
    assert (caught.value.kind, caught.value.retry_after_seconds) == ("throttled", 3.0)


def test_locations_as_shown() -> None:
    assert shown("https://u:p@host:1/a/b?x=1#y") == "https://host:1/a/b"
    assert shown("zip://a.zip::s3://u:p@bucket/key?v=1") == "zip://a.zip::s3://bucket/key"
    assert shown("/path/with@at?") == "/path/with@at?"
    assert redact("x long1234 y", secrets_of("s3://b/k", {"a": ["long1234"], "anon": True, "b": "ab"})) == "x *** y"
    assert secrets_of("s3://b", {"endpoint_url": "http://me11:you22@host"}) == ["me11:you22", "you22", "me11"]
    assert is_url("s3://b/k") and is_url("simplecache::s3://b/k") and not is_url("a/b") and not is_url("/a://b")


def test_local_or_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for location in ("data", f"file://{tmp_path}/data", f"local://{tmp_path}/data", tmp_path / "data"):
        storage = storage_of(location)
        assert isinstance(storage, LocalStorage) and storage.root == str(tmp_path / "data")
    with pytest.raises(ValueError, match="storage_options are for URLs"):
        storage_of("data", {"key": "x"})
    far = storage_of("s3://bucket/data", {"key": "k", "shardload": {"retries": 2}})
    assert isinstance(far, RetryingStorage) and isinstance(far.inner, RemoteStorage)
    assert far.inner.options == {"key": "k"} and far.policy == RetryPolicy(max_retries=2)
    with pytest.raises(ValueError, match="s3://bucket/data is a URL: only pack and ShardWriter write to such"):
        rebuild_index("s3://me:secret@bucket/data")
    for url, reason in {"https://me:secret@host/data": "not written", "memory://data": "only if there is none"}.items():
        for write in (lambda url: shardload.ShardWriter(url, {"a": "int64"}), partial(shardload.pack, tmp_path), prune):
            with pytest.raises(ValueError, match=reason) as caught:
                write(url)
            assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_protocol_that_is_not_known() -> None:
    for url in ("nope://user:secret@bucket/x", "zip://x::nope://user:secret@bucket/a.zip"):
        with pytest.raises(StorageError, match=r"^\S*nope://bucket/\S*: there is no protocol 'nope'") as caught:
            shardload.open(url)
        assert "secret" not in str(caught.value)


def test_the_end_of_a_program_is_quiet(server: RangeServer) -> None:
    program = (
        "import sys; from shardload.storage import storage_of; storage = storage_of(sys.argv[1]);"
        "file = storage.open('shards/one', int(sys.argv[2])); print(len([file.read(i, i + 5) for i in range(9)]))"
    )
    words = [sys.executable, "-X", "dev", "-W", "error", "-c", program, server.url, str(len(DATA))]
    found = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (found.stdout.strip(), found.stderr, found.returncode) == ("9", "", 0)


def test_local_use_loads_no_network_library(mixed: Path) -> None:
    program = (
        "import sys, shardload; shardload.open(sys.argv[1])[0]; shardload.storage.storage_of('s3://b/k');"
        "print([name for name in ('fsspec', 'aiohttp', 's3fs', 'botocore', 'asyncio') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program, str(mixed)], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr + found.stdout
