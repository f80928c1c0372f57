"""Secrets are in no log at any level, no error, no state, no pickle of a state, no manifest, no statistics and no run log."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import CHANGES, Fault, FaultProxy, changed, cut, s3_error, status
from launch import ROOT
from servers import BUCKET, KEY, SECRET, ObjectStore, http_url, s3_options

import shardload

TOKEN, USER, QUERY, HEADER = "canary-token-41aa", "canary%2Duser-52bb", "canary-query-63cc", "canary-header-74dd"
CANARIES = [KEY, SECRET, TOKEN, USER, "canary-user-52bb", QUERY, HEADER]
QUICK = {"deadline": 2, "progress_timeout": 0.4, "retries": 1, "first_wait": 0.001}

FAULTS: list[Fault] = [
    *(changed(kind) for kind in CHANGES),
    *(cut(where, ending) for where, ending in (("before", "reset"), ("body", "reset"), ("body", "stall"))),
    *(s3_error(code, name) for code, name in ((403, "AccessDenied"), (400, "ExpiredToken"), (404, "NoSuchKey"))),
    *(s3_error(code, name) for code, name in ((500, "InternalError"), (503, "SlowDown"), (412, "PreconditionFailed"))),
    status(301, b"<html>gone</html>"),
]


class Everything(logging.Handler):
    """Keeps what all loggers say."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log() -> Iterator[Everything]:
    root, handler = logging.getLogger(), Everything()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def told(error: BaseException) -> list[str]:
    """All that an error says of itself."""
    again = pickle.loads(pickle.dumps(error))
    texts = ["".join(traceback.format_exception(one)) for one in (error, again)]
    return [*texts, str(error), repr(error), repr(vars(error)), repr(pickle.dumps(error))]


SETS = [
    pytest.param([2, 14], id="some faults"),
    pytest.param(range(len(FAULTS)), id="all faults", marks=pytest.mark.slow),
]


def use(location: str, options: dict[str, Any], run_log: Path, proxy: FaultProxy, faults: Sequence[int]) -> list[str]:
    """Opens, trains, resumes and fails in all ways; returns all that came out."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        dataset = shardload.open(location, storage_options=options)
        with shardload.ShardLoader(dataset, 64, shuffle=True) as loader:
            loader.log_to(run_log)
            assert sum(1 for _ in loader) == 7
            state = loader.state_dict()
            texts += [repr(state), repr(pickle.dumps(state)), repr(loader.stats()), repr(loader.state_at(7))]
        sampler = shardload.ShardSampler(dataset, num_replicas=1, rank=0, shuffle=True)
        texts += [repr(sampler.state_dict()), repr(dataset), repr(dataset[:9]), dataset.location]
        texts += [dataset.manifest.encode().decode(), repr(dataset.manifest), run_log.read_text()]
        texts += [repr(place) for place in dataset.places([0, 1])]
        for fault in (FAULTS[number] for number in faults):
            for path in ("manifest.json", "shards/"):
                fault.path, fault.num_hits = path, 0
                proxy.arm(fault)
                try:
                    with shardload.ShardLoader(
                        shardload.open(location, storage_options=options), 64, shuffle=True
                    ) as loader:
                        list(loader)
                except shardload.ShardloadError as error:
                    texts += told(error)
                assert fault.num_hits or path == "shards/"
        proxy.reset()
        nowhere = {"endpoint_url": "http://there-is-none.invalid"} if "endpoint_url" in options else {}
        for wrong in (location.replace("upload-", "none-"), location.replace("127.0.0.1", "there-is-none.invalid")):
            with pytest.raises(shardload.ShardloadError) as caught:
                shardload.open(wrong, storage_options=options | nowhere).column("number")
            texts += told(caught.value)
        with pytest.raises(ValueError) as bad:
            shardload.open(location, storage_options=options | {"shardload": {"no": HEADER}})
        texts += told(bad.value)
    return texts + [str(warning.message) for warning in warned]


def assert_clean(texts: list[str]) -> None:
    found = [(secret, text[:400]) for text in texts for secret in CANARIES if secret in text]
    if found:
        pytest.fail(f"{len(found)} hits, such as {found[0]}", pytrace=False)


@pytest.mark.parametrize("faults", SETS)
def test_s3(
    object_store: ObjectStore,
    s3_proxy: FaultProxy,
    mixed: Path,
    tmp_path: Path,
    log: Everything,
    faults: Sequence[int],
) -> None:
    name = object_store.upload(mixed)
    options = s3_options(s3_proxy.port) | {"shardload": QUICK}
    texts = use(f"s3://{BUCKET}/{name}", options, tmp_path / "log", s3_proxy, faults)
    # The server refuses the token, which it has not given.
    with pytest.raises(shardload.ShardloadError) as caught:
        shardload.open(f"s3://{BUCKET}/{name}", storage_options=options | {"token": TOKEN}).column("number")
    assert any(asked.headers.get("x-amz-security-token") == TOKEN for asked in s3_proxy.asked)
    assert_clean(texts + told(caught.value) + log.lines)


@pytest.mark.parametrize("faults", SETS)
def test_http(
    object_store: ObjectStore,
    http_proxy: FaultProxy,
    mixed: Path,
    tmp_path: Path,
    log: Everything,
    faults: Sequence[int],
) -> None:
    name = object_store.upload(mixed)
    location = http_url(http_proxy.port).replace("//", f"//{USER}:{SECRET}@") + f"/{name}?signature={QUERY}"
    options = {"headers": {"X-Api-Key": HEADER}, "shardload": QUICK}
    texts = use(location, options, tmp_path / "log", http_proxy, faults)
    sent = http_proxy.asked[0]
    assert sent.path.endswith(f"?signature={QUERY}") and sent.headers["x-api-key"] == HEADER
    assert sent.headers["authorization"].startswith("Basic ")
    assert_clean(texts + log.lines)


def test_commands(object_store: ObjectStore, mixed: Path) -> None:
    name = object_store.upload(mixed)
    location = object_store.http_url.replace("//", f"//{USER}:{SECRET}@") + f"/{name}"
    for command, wanted in (("verify", 0), ("info", 1)):
        url = f"{location}{'-none' if wanted else ''}?signature={QUERY}"
        done = subprocess.run(
            [sys.executable, "-m", "shardload", command, url],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == wanted, done.stderr
        assert_clean([done.stdout, done.stderr])
