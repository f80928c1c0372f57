"""Loaders over a real store whose answers go wrong: the batches of a local dataset, or the error."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault_proxy import FaultProxy, changed, cut, s3_error, trickle
from servers import BUCKET, ObjectStore, http_url, s3_options
from storage.test_faults import SLACK_SECONDS

import shardload
from shardload.errors import ChecksumError, FormatError, LoaderClosedError, StorageError
from shardload.loader import ahead
from shardload.reader import range_engine
from shardload.reader.arrivals import Arrivals, Fetch
from shardload.reader.extents import Keeper

QUICK = {"deadline": 5, "progress_timeout": 3, "retries": 3, "first_wait": 0.002}
HELD_BYTES = 256 << 10


# A connection that is being made when its request is given up is dropped as it is by the libraries below; it ends when collected.
gives_up = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def name(object_store: ObjectStore, mixed: Path) -> str:
    return object_store.upload(mixed, "far-loaders")


@pytest.fixture(params=["s3", "http"])
def far(request: pytest.FixtureRequest, name: str) -> tuple[FaultProxy, str, dict[str, Any]]:
    """A proxy, and how the dataset is opened through it."""
    proxy: FaultProxy = request.getfixturevalue(f"{request.param}_proxy")
    if request.param == "s3":
        return proxy, f"s3://{BUCKET}/{name}", {**s3_options(proxy.port), "shardload": QUICK}
    return proxy, f"{http_url(proxy.port)}/{name}", {"shardload": QUICK}


@pytest.fixture(scope="module")
def wide(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """256 samples of 8 KiB, and where they are in the store."""
    path = tmp_path_factory.mktemp("wide") / "dataset"
    with shardload.ShardWriter(path, {"tokens": "int32[2048]"}, shard_size="256KiB") as writer:
        for number in range(256):
            writer.write({"tokens": np.full(2048, number, dtype=np.int32)})
    return path, object_store.upload(path, "far-loaders-wide")


def batches(
    location: Any, options: dict[str, Any] | None = None, batch_size: int = 64, **settings: Any
) -> Iterator[Any]:
    dataset = shardload.open(location, storage_options=options)
    with shardload.ShardLoader(dataset, batch_size, shuffle=True, seed=3, **settings) as loader:
        yield from loader
        yield loader.stats()


def assert_equal(got: Any, want: Any) -> None:
    assert got.keys() == want.keys()
    for field, value in want.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[field], value)
        else:
            assert got[field] == value


FAULTS = {
    "F30 flip": lambda **o: changed("scramble", **o),
    "F31 short": lambda **o: changed("short", **o),
    "F31 page": lambda **o: changed("page", **o),
    "F32 end in the body": lambda **o: cut("body", "fin", **o),
    "F34 503": lambda **o: s3_error(503, "SlowDown", **o),
}


SLOW_ENDS = [("stall", 0), ("reset", 2)]
PLACES = [("shards/", 0), ("shards/", 3), ("shards/", 9), ("manifest.json", 0), ("tables/", 0)]
"""Where and when a fault strikes: all that is read has its turn, heads, rows and records of shards, manifest and table."""


@pytest.mark.parametrize(
    "fault, places",
    [
        pytest.param("F30 flip", PLACES[2:4], id="F30 flip, twice"),
        *(pytest.param(fault, PLACES, id=fault, marks=pytest.mark.slow) for fault in FAULTS),
    ],
)
def test_a_loader_recovers(
    far: tuple[FaultProxy, str, dict[str, Any]], mixed: Path, fault: str, places: list[tuple[str, int]]
) -> None:
    proxy, location, options = far
    *want, _ = batches(mixed)
    for path, skip in places:
        proxy.reset()
        proxy.arm(FAULTS[fault](path=path, skip=skip, times=2 if skip == 3 and fault != "F30 flip" else 1))
        *got, stats = batches(location, options)
        assert len(got) == len(want) and proxy.num_hits >= 1
        for one, other in zip(got, want, strict=True):
            assert_equal(one, other)
        if path == "shards/":
            assert sum(stats.num_retries.values()) + stats.num_rereads == proxy.num_hits, stats
            assert (stats.num_rereads > 0) == (fault == "F30 flip")


@pytest.mark.parametrize("path", ["shards/", "manifest.json", pytest.param("tables/", marks=pytest.mark.slow)])
def test_what_is_damaged_for_good_is_an_error(far: tuple[FaultProxy, str, dict[str, Any]], path: str) -> None:
    """F30: read once more, and then an error that names the place and says that it is damaged where it is stored."""
    proxy, location, options = far
    proxy.arm(changed("flip", path=path))
    with pytest.raises(FormatError, match=r"the stored object differs from what was written") as caught:
        list(batches(location, options))
    assert caught.value.shard is not None and path.rstrip("/") in caught.value.shard
    most = max(proxy.by_range(path).values())
    # A burst that fails is read once more batch by batch, so that the batches before the one concerned come first.
    assert 2 <= most <= 4, proxy.by_range(path)


def test_a_loader_fails_in_time(far: tuple[FaultProxy, str, dict[str, Any]]) -> None:
    proxy, location, options = far
    options["shardload"] = QUICK | {"progress_timeout": 0.3}
    loader = shardload.ShardLoader(shardload.open(location, storage_options=options), 64, shuffle=True, seed=3)
    iterator = iter(loader)
    next(iterator)
    proxy.arm(cut("body", "stall", path="shards/"))
    start = time.monotonic()
    with pytest.raises(StorageError, match="in time"):
        for _ in iterator:
            pass
    assert time.monotonic() - start < 5.5 + SLACK_SECONDS
    assert max(proxy.by_range("shards/").values()) <= 1 + int(QUICK["retries"])
    loader.close()
    # The next one, from its state, goes on where this one was.
    proxy.reset()
    again = shardload.ShardLoader(shardload.open(location, storage_options=options), 64, shuffle=True, seed=3)
    again.load_state_dict(loader.state_dict())
    with again:
        left = again.remaining
        assert left and sum(1 for _ in again) == left


@gives_up
def test_a_shard_that_is_gone_is_an_error_at_once(far: tuple[FaultProxy, str, dict[str, Any]]) -> None:
    """F35: a listed shard that is not there, and access that was taken away."""
    proxy, location, options = far
    for fault, text, most in ((s3_error(404, "NoSuchKey"), "is missing", 1), (s3_error(403, "Denied"), "access", 2)):
        proxy.reset()
        fault.path = "shards/"
        proxy.arm(fault)
        with pytest.raises(StorageError, match=text) as caught:
            list(batches(location, options))
        # What was announced and is missing is asked for once more by who needs it; other threads may be at the same range.
        assert caught.value.shard is not None and max(proxy.by_range("shards/").values()) <= 2 * most


@gives_up
@pytest.mark.parametrize(
    "ending, num_threads", [("stall", 2), ("reset", 0), *(pytest.param(*p, marks=pytest.mark.slow) for p in SLOW_ENDS)]
)
def test_a_loader_that_is_closed_waits_for_nothing(
    far: tuple[FaultProxy, str, dict[str, Any]], ending: str, num_threads: int
) -> None:
    """A thread that waits for an answer, or for its next attempt, ends when the loader is closed."""
    proxy, location, options = far
    options["shardload"] = {"deadline": 600, "progress_timeout": 600, "retries": 100, "first_wait": 100}
    dataset = shardload.open(location, storage_options=options)
    loader = shardload.ShardLoader(dataset, 64, shuffle=True, num_threads=num_threads)
    iterator = iter(loader)
    next(iterator)
    proxy.arm(cut("before", ending, path="shards/"))
    failures: list[BaseException] = []

    def train() -> None:
        try:
            for _ in iterator:
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    deadline = time.monotonic() + 30
    while not proxy.num_hits and time.monotonic() < deadline:
        time.sleep(0.001)
    start = time.monotonic()
    loader.close()
    thread.join(20)
    assert not thread.is_alive() and isinstance(failures[0], LoaderClosedError)
    assert time.monotonic() - start < SLACK_SECONDS
    gc.collect()


@pytest.mark.parametrize("far", ["http", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_a_slow_link_stalls_the_loop_and_fills_no_memory(
    far: tuple[FaultProxy, str, dict[str, Any]], wide: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F38: all comes by two requests at a time and a part each ten milliseconds, which is far less than the loop could use."""
    proxy, location, options = far
    path, place = wide
    made: list[Arrivals] = []

    def few(fetch: Fetch, keeper: Keeper | None) -> Arrivals:
        made.append(Arrivals(fetch, keeper=keeper, max_held_bytes=HELD_BYTES, max_requests=2))
        return made[-1]

    monkeypatch.setattr(range_engine, "Arrivals", few)
    monkeypatch.setattr(ahead, "_HINTED_BYTES", HELD_BYTES // 2)
    dataset = shardload.open(f"{location.rpartition('/')[0]}/{place}", storage_options=options)
    proxy.arm(trickle(0.01, step_bytes=8192, path="shards/"))
    held = [0]
    with shardload.ShardLoader(dataset, 4, shuffle=True, seed=3, epochs=1) as loader:
        for got, want in zip(loader, batches(path, batch_size=4, epochs=1)):
            assert_equal(got, want)
            held.append(made[0]._held_bytes)
        stats = loader.stats()
    assert stats.num_samples == 256
    # What is waited for has room in any case.
    assert HELD_BYTES / 4 < max(held) <= 2 * HELD_BYTES < stats.needed_bytes / 2, (max(held), stats)
    least_seconds = stats.requested_bytes / 8192 / 2 * 0.01
    assert stats.stall_fraction > 0.5 and stats.stall_seconds > least_seconds / 3, stats


def test_replaced_in_mid_epoch(
    object_store: ObjectStore, mixed: Path, far: tuple[FaultProxy, str, dict[str, Any]]
) -> None:
    """F36: another dataset of the same shape in the place of the one that is open."""
    _, location, options = far
    place = object_store.upload(mixed)
    location = location.rpartition("/")[0] + f"/{place}"
    dataset = shardload.open(location, storage_options=options)
    shard = dataset.table[0].name
    assert dataset[0]["number"] == 0
    data = bytearray((mixed / shard).read_bytes())
    data[len(data) // 2] ^= 1
    object_store.put(f"{place}/{shard}", bytes(data))
    with pytest.raises(StorageError, match="changed since it was opened") as caught:
        dataset[:100].read_batch(torch.arange(100).numpy())
    assert caught.value.shard == shard
    assert isinstance(caught.value, StorageError) and not isinstance(caught.value, ChecksumError)
