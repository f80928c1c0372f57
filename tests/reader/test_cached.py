"""Datasets behind URLs with a cache: what a local one gives, nothing fetched twice, and damage of the cache mended in passing."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from any_dataset import assert_same
from range_server import Answer, RangeServer
from samples import write_everything, write_mixed

import shardload
from shardload.errors import StorageError
from shardload.format.external import ExternalFile
from shardload.planner import Worth
from shardload.reader.far import cache_stats
from shardload.reader.gauge import Gauge
from shardload.storage.slots import MIN_LIMIT_BYTES, Geometry

LIMIT = "32MiB"
NUM_ROWS = 3200


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("far")
    write_mixed(root / "mixed", 300)
    write_everything(root / "every")
    rng = np.random.default_rng(0)
    with shardload.ShardWriter(root / "rows", {"tokens": "int32[1024]"}, shard_size="4MiB") as writer:
        for number in range(NUM_ROWS):
            writer.write({"tokens": np.full(1024, number, dtype=np.int32)})
    with shardload.ShardWriter(root / "images", {"image": "bytes"}, shard_size="4MiB") as writer:
        for i in range(100):
            writer.write({"image": i.to_bytes(4, "little") + rng.bytes(int(rng.integers(90_000, 110_000)))})
    return root


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[RangeServer]:
    with RangeServer(root) as server:
        yield server


@pytest.fixture
def server(running: RangeServer) -> Iterator[RangeServer]:
    running.requests.clear()
    running.change = None
    yield running
    running.change = None


def shard_requests(server: RangeServer) -> list[Any]:
    return [request for request in server.requests if "/shards/" in request.name]


def assert_equal(got: Any, want: Any) -> None:
    for one, other in zip(got, want, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, list):
                for a, b in zip(one[name], value, strict=True):
                    assert_same(a, b)
            else:
                assert_same(one[name], value)


@pytest.mark.parametrize("engine", ["auto", "pread"])
@pytest.mark.parametrize("name", ["mixed", "every"])
def test_samples_are_those_of_the_files_and_come_from_the_cache_the_second_time(
    root: Path, server: RangeServer, tmp_path: Path, name: str, engine: Any
) -> None:
    local = shardload.open(root / name)
    ids = np.random.default_rng(1).permutation(len(local))
    options = {"cache_dir": tmp_path / "cache", "cache_limit": LIMIT, "engine": engine}
    first = shardload.open(f"{server.url}/{name}", **options)
    first.will_need(ids[:50])
    for part in (ids[:50], ids[20:30], ids):
        assert_equal(first.__getitems__(part), local.__getitems__(part))
    assert shard_requests(server)
    server.requests.clear()
    for again in (shardload.open(f"{server.url}/{name}", **options), pickle.loads(pickle.dumps(first))):
        again.will_need(ids[:9])
        assert_equal(again.__getitems__(ids), local.__getitems__(ids))
    assert not shard_requests(server)


def test_large_samples_in_random_order_cost_hardly_more_than_their_bytes(server: RangeServer, tmp_path: Path) -> None:
    far = shardload.open(f"{server.url}/images", cache_dir=tmp_path / "cache", cache_limit=LIMIT)
    far.__getitems__([0, 99])
    server.requests.clear()
    needed = 0
    for part in np.split(np.random.default_rng(2).permutation(100), 10):
        needed += sum(len(one["image"]) for one in far.__getitems__(part))
    fetched = sum(request.stop - request.start for request in shard_requests(server))
    assert fetched <= 1.1 * needed + 200_000
    assert len(shard_requests(server)) <= 100 + 3 * len(far.table)


def rows_of(loader: shardload.ShardLoader, damaged: Path | None = None) -> int:
    """Goes through an epoch, compares its samples, and damages a cache in the middle; returns how many there were."""
    count = 0
    for number, batch in enumerate(loader):
        assert (batch["tokens"].numpy() == batch["_sample_id"].numpy()[:, None]).all()
        count += len(batch["tokens"])
        if number == 5 and damaged is not None:
            with damaged.open("r+b") as file:
                for place in range(0, damaged.stat().st_size, 3000):
                    file.seek(place)
                    file.write(b"\xff")
    return count


def loader_of(dataset: Any, seed: int = 1, **options: Any) -> shardload.ShardLoader:
    return shardload.ShardLoader(
        dataset, 64, shuffle=True, seed=seed, with_ids=True, num_replicas=1, rank=0, helper_process=False, **options
    )


def test_an_epoch_with_a_cache_of_half_the_size_hits_about_as_often_as_is_possible(
    server: RangeServer, tmp_path: Path
) -> None:
    """All but what waits in memory, announced at the end of the epoch before: of so small a dataset that may be much of it."""
    far = shardload.open(f"{server.url}/rows", cache_dir=tmp_path / "cache", cache_limit=MIN_LIMIT_BYTES)
    best = Geometry.within(MIN_LIMIT_BYTES).num_sets * 512 / NUM_ROWS
    with loader_of(far) as loader:
        assert rows_of(loader) == NUM_ROWS
        before = loader.stats()
        assert rows_of(loader) == NUM_ROWS
        after = loader.stats()
    hits = after.num_cache_hits - before.num_cache_hits
    misses = after.num_cache_misses - before.num_cache_misses
    assert hits + misses == NUM_ROWS
    assert best - 0.25 <= hits / NUM_ROWS <= best + 0.05
    assert after.num_cache_evicted > 0 and after.num_cache_damaged == 0
    assert 0 < after.cache_bytes <= MIN_LIMIT_BYTES


@pytest.mark.slow
def test_batch_samplers_tell_when_samples_are_needed_again(server: RangeServer, tmp_path: Path) -> None:
    far = shardload.open(f"{server.url}/rows", cache_dir=tmp_path / "cache", cache_limit=MIN_LIMIT_BYTES)
    best = Geometry.within(MIN_LIMIT_BYTES).num_sets * 512 / NUM_ROWS
    batches = shardload.ShardSampler(far, num_replicas=1, rank=0, seed=1).batch_sampler(64)
    counts = []
    for _ in range(2):
        for ids in batches:
            for number, sample in zip(ids, far.__getitems__(ids), strict=True):
                assert sample["tokens"][5] == number
        stats = cache_stats(far)
        counts.append((stats.num_hits, stats.num_misses))
    (first_hits, first_misses), (hits, misses) = counts
    assert hits + misses - first_hits - first_misses == NUM_ROWS
    assert (hits - first_hits) / NUM_ROWS >= best - 0.05


def test_damage_of_the_cache_in_the_middle_of_an_epoch_changes_no_sample(server: RangeServer, tmp_path: Path) -> None:
    far = shardload.open(f"{server.url}/rows", cache_dir=tmp_path / "cache", cache_limit=LIMIT)
    with loader_of(far) as loader:
        rows_of(loader)
        server.requests.clear()
        (blocks,) = (tmp_path / "cache").glob("blocks-*")
        assert rows_of(loader, blocks) == NUM_ROWS
        assert loader.stats().num_cache_damaged > 0 and shard_requests(server)
        rows_of(loader)
        server.requests.clear()
        rows_of(loader)
    assert not shard_requests(server), "what was fetched again is kept"


def test_a_removed_cache_ends_no_epoch(server: RangeServer, tmp_path: Path) -> None:
    far = shardload.open(f"{server.url}/rows", cache_dir=tmp_path / "cache", cache_limit=LIMIT)
    with loader_of(far) as loader:
        batches = iter(loader)
        next(batches)
        # Threads that read ahead may be the first to notice.
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for path in (tmp_path / "cache").iterdir():
                path.unlink()
            assert sum(len(batch["tokens"]) for batch in batches) == NUM_ROWS - 64
        assert loader.stats().cache_bytes == 0
    assert len([one for one in told if "going on without it" in str(one.message)]) == 1


def test_what_arrives_damaged_does_not_stay(root: Path, server: RangeServer, tmp_path: Path) -> None:
    hits = [0]

    def flip(answer: Answer) -> None:
        if "/shards/" in answer.name and len(answer.body) > 90_000 and hits[0] == 0:
            hits[0] += 1
            answer.body = answer.body[:70_000] + bytes([answer.body[70_000] ^ 4]) + answer.body[70_001:]

    far = shardload.open(f"{server.url}/images", cache_dir=tmp_path / "cache", cache_limit=LIMIT)
    server.change = flip
    local = shardload.open(root / "images")
    for _ in range(2):
        assert_equal(far.__getitems__(range(30)), local.__getitems__(range(30)))
    assert hits == [1]
    server.requests.clear()
    again = shardload.open(f"{server.url}/images", cache_dir=tmp_path / "cache", cache_limit=LIMIT)
    assert_equal(again.__getitems__(range(30)), local.__getitems__(range(30)))
    assert not shard_requests(server)


def test_views_and_joined_sources_are_told_of_and_counted(root: Path, server: RangeServer, tmp_path: Path) -> None:
    far = shardload.open(f"{server.url}/rows", cache_dir=tmp_path / "cache", cache_limit=LIMIT)
    joined = shardload.concat([far[:500], far[1000:1500], shardload.open(root / "rows")[:10]])
    with shardload.ShardLoader(joined, 32, shuffle=True, seed=1, helper_process=False) as loader:
        assert sum(len(batch["tokens"]) for batch in loader) == 992
        first = loader.stats()
        assert first.num_cache_hits + first.num_cache_misses >= 980
        server.requests.clear()
        assert sum(len(batch["tokens"]) for batch in loader) == 992
        second = loader.stats()
    # Fetched are only the 18 samples that the first epoch has dropped. The others come from the cache, or wait in memory by then.
    assert second.num_cache_hits - first.num_cache_hits >= 500
    assert second.num_requests - first.num_requests <= 20


def dear_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """As to a store that is far away."""
    monkeypatch.setattr(Gauge, "worth", Worth(600_000.0, 8 << 20))


def test_an_epoch_of_all_that_has_room_comes_by_few_requests_and_once(
    root: Path, server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear_requests(monkeypatch)
    far = shardload.open(f"{server.url}/rows", cache_dir=tmp_path / "cache", cache_limit=LIMIT)
    with loader_of(far) as loader:
        assert rows_of(loader) == NUM_ROWS
        stats = loader.stats()
        # The first batch, which is read at once, comes by itself.
        assert stats.requested_bytes <= 1.1 * far.num_bytes and stats.num_requests <= 64 + 3 * far.num_bytes / (1 << 19)
        server.requests.clear()
        assert rows_of(loader) == NUM_ROWS
    assert not shard_requests(server)
    keeping, all_of_it = far._process_access().engine._keeping, [(0, 0, far.table[0].num_bytes), (1, 5000, 9000)]
    assert keeping.lacking(all_of_it) == []
    keeping._cache.drop(keeping._keys[np.array([1])][0], 4096, 8192)
    assert keeping.lacking(all_of_it) == all_of_it[1:]


@pytest.mark.parametrize(
    ("what", "whole"),
    [
        ("all", True),
        ("nearly all", True),
        ("half", False),
        ("no room", False),
        ("a node's part", False),
        ("one node", True),
        ("who knows where", False),
        ("a part beside others", False),
        ("files beside shards", False),
    ],
)
def test_requests_reach_further_where_all_is_needed_and_has_room(
    root: Path, server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, whole: bool
) -> None:
    limit = "12MiB" if what == "no room" else LIMIT
    far = shardload.open(f"{server.url}/rows", cache_dir=tmp_path / "cache", cache_limit=limit)
    places: dict[str, Any] = {}
    near = {"a node's part": "1", "one node": "2", "who knows where": ""}.get(what)
    if near is not None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", near)
        places = {"num_replicas": 2, "rank": 1}
    if what == "files beside shards":
        far._process_access().engine.add([ExternalFile("rows.tar", 1 << 20, "0" * 64)])
    parts: dict[str, Any] = {"half": far[::2], "nearly all": far[: NUM_ROWS - 100]}
    parts["a part beside others"] = shardload.concat([far[:1000], shardload.open(root / "rows")])
    with shardload.ShardLoader(
        parts.get(what, far), 64, shuffle=True, helper_process=False, **({"num_replicas": 1, "rank": 0} | places)
    ) as loader:
        assert sum(len(batch["tokens"]) for batch in loader) > 1500
    assert far._process_access().engine._keeping.whole == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_dir": "cache"}, "cache_dir needs cache_limit"),
        ({"cache_limit": "1GB"}, "give its directory too, by cache_dir"),
        ({"cache_dir": "cache", "cache_limit": "4MiB"}, "cache_limit must be at least 8388608 bytes"),
        ({"cache_dir": "cache", "cache_limit": "much"}, "cache_limit must be a number of bytes"),
    ],
)
def test_what_cannot_be_is_told_at_once(server: RangeServer, tmp_path: Path, monkeypatch, options, message) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        shardload.open(f"{server.url}/rows", **options)
    assert not list(tmp_path.iterdir()) and not server.requests


def test_local_datasets_have_no_cache_and_others_files_no_owner(
    root: Path, server: RangeServer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"cache_dir is for URLs: .*/rows is a directory, and is read where it lies"):
        shardload.open(root / "rows", cache_dir=tmp_path / "cache", cache_limit=LIMIT)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StorageError, match="holds files that are not a cache's"):
        shardload.open(f"{server.url}/rows", cache_dir=tmp_path, cache_limit=LIMIT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
