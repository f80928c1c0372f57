"""Datasets behind URLs: what a local one gives, few requests, and damage on the way told from damage where they are stored."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from any_dataset import assert_same
from range_server import Answer, RangeServer
from samples import write_everything, write_mixed
from torch.utils.data import DataLoader

import shardload
from shardload.errors import ChecksumError, FormatError, StateMismatchError
from shardload.reader import access, later
from shardload.reader.verify import verify_dataset
from shardload.storage import AnswerError

NUM_SAMPLES = 300


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("far")
    write_mixed(root / "mixed", NUM_SAMPLES)
    write_everything(root / "every")
    rng = np.random.default_rng(0)
    with shardload.ShardWriter(root / "wide", {"tokens": "int32[1024]"}, shard_size="1MiB") as writer:
        for _ in range(1000):
            writer.write({"tokens": rng.integers(0, 1 << 20, 1024, dtype=np.int32)})
    with shardload.ShardWriter(root / "streams", {"tokens": "uint16[*]"}, shard_size="256KiB") as writer:
        for i in range(200):
            writer.write({"tokens": np.full(i * 40, i, dtype=np.uint16)})
    with shardload.ShardWriter(root / "images", {"image": "bytes"}, shard_size="4MiB") as writer:
        for i in range(160):
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


def same(got: Any, want: Any) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        if isinstance(value, list):
            assert len(got[name]) == len(value)
            for one, other in zip(got[name], value, strict=True):
                assert_same(one, other)
        else:
            assert_same(got[name], value)


@pytest.mark.parametrize(("verify", "budget"), [("auto", 256 << 20), ("auto", 0), ("once", 256 << 20), ("off", 0)])
@pytest.mark.parametrize("name", ["mixed", "every", "streams", "images"])
def test_samples_are_those_of_the_files(
    root: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch, name: str, verify: Any, budget: int
) -> None:
    monkeypatch.setattr(access, "INDEX_BUDGET_BYTES", budget)
    local, far = shardload.open(root / name), shardload.open(f"{server.url}/{name}", verify=verify)
    assert far.fingerprint == local.fingerprint and far.engine_name == "ranges"
    ids = np.random.default_rng(1).permutation(len(local))
    far.will_need(ids[:50])
    for part in (ids[:50], ids[20:30], ids, ids[:3]):
        for got, want in zip(far.__getitems__(part), local.__getitems__(part), strict=True):
            same(got, want)
    assert far.transfers().needed_bytes > 0


def test_other_ways_to_read(root: Path, server: RangeServer) -> None:
    local, far = shardload.open(root / "every"), shardload.open(f"{server.url}/every")
    assert (far.column("label") == local.column("label")).all()
    for name in ("tokens", "text"):
        assert (far.lengths(name) == local.lengths(name)).all()
    assert far.statistics() == local.statistics()
    assert far.find(local[21]["id"]) == 21
    assert far.places([3, 20]) == local.places([3, 20])
    assert (np.array(far.record_sizes()) == np.array(local.record_sizes())).all()
    assert far[10:28].select([5, 1]).fingerprint == local[10:28].select([5, 1]).fingerprint
    assert verify_dataset(f"{server.url}/every", samples=True) == []
    windows = [shardload.TokenWindows(one, "tokens", 64) for one in (local, far)]
    for got, want in zip(windows[1].__getitems__(range(9)), windows[0].__getitems__(range(9)), strict=True):
        same(got, want)


def test_by_any_protocol(root: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(f"{root}/mixed", "/far", recursive=True)
    try:
        far = shardload.open("memory://far")
        for got, want in zip(
            far.__getitems__(range(40)), shardload.open(root / "mixed").__getitems__(range(40)), strict=True
        ):
            same(got, want)
    finally:
        files.rm("/far", recursive=True)


@pytest.mark.parametrize("shuffle", [True, "block", False])
def test_loaders_agree_and_go_on_from_each_others_states(root: Path, server: RangeServer, shuffle: Any) -> None:
    def loader(dataset: Any) -> shardload.ShardLoader:
        return shardload.ShardLoader(dataset, 16, shuffle=shuffle, seed=3, with_ids=True)

    local, far = shardload.open(root / "mixed"), shardload.open(f"{server.url}/mixed")
    want = list(loader(local))
    with loader(far) as there:
        got = []
        for batch in there:
            got.append(batch)
            if len(got) == 7:
                state = there.state_dict()
                break
        stats = there.stats()
    assert stats.engine == "ranges" and stats.num_requests > 0 and stats.amplification >= 0.9
    assert stats.requested_bytes >= stats.num_bytes // 2
    with loader(local) as here:
        here.load_state_dict(state)
        got += list(here)
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        same(
            {k: v.tolist() if hasattr(v, "tolist") else v for k, v in one.items()},
            {k: v.tolist() if hasattr(v, "tolist") else v for k, v in other.items()},
        )


class ReadFirst:
    """Announcements none of which is made before somebody reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = threading.Event()
        let_pass, will_need = later.Later.let_pass, access.Access.will_need

        def reading(own: later.Later, ids: Any) -> None:
            self.read.set()
            let_pass(own, ids)

        def announcing(own: access.Access, *arguments: Any) -> None:
            assert self.read.wait(20)
            will_need(own, *arguments)

        monkeypatch.setattr(later.Later, "let_pass", reading)
        monkeypatch.setattr(access.Access, "will_need", announcing)


@pytest.mark.parametrize("how", [{}, {"num_threads": 0}, {"verify": "off"}], ids=str)
def test_of_blocks_that_are_mixed_each_is_asked_for_once(
    root: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    """Whoever reads first, and whichever batches lie across two windows: a request a block, or less."""
    far = shardload.open(f"{server.url}/images", verify=how.pop("verify", "auto"))
    far._process_access().num_samples()
    ReadFirst(monkeypatch)
    opened, num_shards, block, window = far.transfers(), len(far.table), 8, 5
    with shardload.ShardLoader(far, 30, shuffle=shardload.BlockShuffle(block, window), tail="short", **how) as loader:
        for epoch in range(3):
            assert sum(len(batch["image"]) for batch in loader) == len(far)
            asked = far.transfers()
            # Four windows an epoch, and the first one of the next; a block at the edge of two shards is asked for in two parts.
            most = (epoch + 1) * (len(far) // block + num_shards) + window + num_shards
            assert asked.num_requests - opened.num_requests <= most
            assert asked.requested_bytes - opened.requested_bytes <= (epoch + 1.3) * 1.01 * far.num_bytes


def test_an_epoch_that_is_one_window_is_fetched_once(root: Path, server: RangeServer) -> None:
    far = shardload.open(f"{server.url}/images")
    with shardload.ShardLoader(far, 30, shuffle=shardload.BlockShuffle(8, 100), tail="short") as loader:
        asked = []
        for _ in range(5):
            assert sum(len(batch["image"]) for batch in loader) == len(far)
            assert far._process_access().announcements.settle(20)
            asked.append(far.transfers().num_requests)
    assert asked[1] == asked[-1]


OTHERS: list[Any] = [{"helper_process": True}, pytest.param({"num_processes": 2}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("how", OTHERS, ids=str)
def test_what_other_processes_fetch_is_told(root: Path, server: RangeServer, how: dict[str, Any]) -> None:
    far = shardload.open(f"{server.url}/wide")
    with shardload.ShardLoader(far, 100, shuffle=True, **how) as loader:
        for epoch in (1, 2):
            assert len(list(loader)) == 10
            stats = loader.stats()
            assert not far.transfers().num_requests
            assert stats.num_requests > 0 and epoch * far.num_bytes <= 1.01 * stats.needed_bytes
            assert stats.requested_bytes >= 0.9 * epoch * far.num_bytes


def test_mixtures_of_both(root: Path, server: RangeServer) -> None:
    def mixture(first: Any) -> shardload.Mixture:
        return shardload.Mixture({"a": (shardload.open(first), 0.7), "b": (shardload.open(root / "mixed"), 0.3)})

    loaders = [shardload.ShardLoader(mixture(p), 16, shuffle=True) for p in (root / "mixed", f"{server.url}/mixed")]
    found = [[batch["number"].tolist() for batch in loader] for loader in loaders]
    assert found[0] == found[1]
    assert loaders[1].stats().num_requests > 0
    for loader in loaders:
        loader.close()


def test_opening_a_shard_is_one_request_and_so_is_a_sample(server: RangeServer) -> None:
    far = shardload.open(f"{server.url}/images")
    assert len(far.table) == 4
    assert len(server.requests) == 2
    far[0]
    assert len(server.requests) == 2 + 2
    far[1]
    assert len(server.requests) == 2 + 3
    far.__getitems__(range(len(far)))
    # Heads and rows of three more shards, and each shard's samples, in parts of some megabytes.
    assert len(server.requests) <= 2 + 3 + 3 + 4 * 5


def test_large_samples_in_random_order(server: RangeServer) -> None:
    far = shardload.open(f"{server.url}/images")
    ids = np.random.default_rng(2).permutation(len(far))
    needed = 0
    for part in np.split(ids, 8):
        needed += sum(len(one["image"]) for one in far.__getitems__(part))
    assert len(server.requests) <= 2 + len(far.table) + len(far)
    assert far.transfers().requested_bytes <= 1.1 * needed


def test_blocks_cost_what_reading_in_order_does(server: RangeServer) -> None:
    far = shardload.open(f"{server.url}/wide")
    shuffle = shardload.BlockShuffle(128, 4)
    with shardload.ShardLoader(far, 32, shuffle=shuffle, seed=1) as loader:
        assert sum(len(batch["tokens"]) for batch in loader) == 992
        stats = loader.stats()
    # The first window of the next epoch is announced as well. Blocks that cross shards are two ranges.
    assert stats.requested_bytes <= 1.05 * (stats.needed_bytes + 4 * 128 * 4096)
    assert stats.num_requests <= len(far.table) + 2 * 12


def _flip(server: RangeServer, name: str, start: int, stop: int, times: int | None) -> list[int]:
    """Has a byte of a range arrive flipped, so many times or always."""
    lock, hits = threading.Lock(), [0]

    def change(answer: Answer) -> None:
        at = start + 20 if stop - start > 1000 else (start + stop) // 2
        with lock:
            if name in answer.name and answer.start <= at < answer.stop and (times is None or hits[0] < times):
                hits[0] += 1
                body = bytearray(answer.body)
                body[at - answer.start] ^= 4
                answer.body = bytes(body)

    server.change = change
    return hits


PARTS: dict[str, tuple[str, Callable[[Any], tuple[int, int]]]] = {
    "footer": ("mixed", lambda shard: (shard.entry.num_bytes - 200, shard.entry.num_bytes)),
    "magic": ("mixed", lambda shard: (shard.entry.num_bytes - 2, shard.entry.num_bytes)),
    "rows": ("mixed", lambda shard: _section(shard, 3)),
    "records": ("mixed", lambda shard: _section(shard, 1)),
    "wide": ("mixed", lambda shard: _section(shard, 2)),
    "items": ("streams", lambda shard: _section(shard, 5)),
    "sums": ("streams", lambda shard: _section(shard, 10)),
    "values": ("images", lambda shard: _section(shard, 1)),
}


def _section(shard: Any, kind: int) -> tuple[int, int]:
    section = next(one for one in shard.head.sections if one.kind == kind)
    return section.start, section.stop


@pytest.mark.parametrize(
    ("part", "budget"),
    [(part, 256 << 20) for part in PARTS] + [(part, 0) for part in ("footer", "rows", "sums", "wide")],
)
def test_damage_on_the_way_is_fetched_again_and_damage_in_the_store_is_told(
    root: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch, part: str, budget: int
) -> None:
    name, place = PARTS[part]
    local = shardload.open(root / name)
    shard = local._process_access().shard(0)
    monkeypatch.setattr(access, "INDEX_BUDGET_BYTES", budget)
    ids = range(min(100, shard.entry.num_samples))
    far = shardload.open(f"{server.url}/{name}")
    # Read by page, the end of so small a shard has the bytes once already, for nothing.
    times = 2 if budget == 0 and part == "sums" else 1
    hits = _flip(server, shard.entry.name, *place(shard), times)
    for got, want in zip(far.__getitems__(ids), local.__getitems__(ids), strict=True):
        same(got, want)
    assert hits == [times] and far.transfers().num_rereads == 1
    hits = _flip(server, shard.entry.name, *place(shard), None)
    other = shardload.open(f"{server.url}/{name}")
    with pytest.raises(FormatError, match="the stored object differs from what was written") as caught:
        other.__getitems__(ids)
    assert hits[0] == times + 1 and caught.value.shard == shard.entry.name
    assert part == "magic" or isinstance(caught.value, ChecksumError)
    server.change = None
    for got, want in zip(other.__getitems__(ids), local.__getitems__(ids), strict=True):
        same(got, want)


def test_damage_in_what_was_announced_with_other_samples_is_fetched_again(root: Path, server: RangeServer) -> None:
    far, local = shardload.open(f"{server.url}/wide"), shardload.open(root / "wide")
    hits = _flip(server, local.table[0].name, *_section(local._process_access().shard(0), 2), 1)
    far.will_need(np.arange(3))
    assert far._process_access().announcements.settle(20)
    # The bytes stay, as those of its neighbours were not read yet; they must not be looked at again.
    same(far[0], local[0])
    assert hits == [1] and far.transfers().num_rereads == 1


def test_verify_finds_damage_of_the_header_that_reading_never_sees(root: Path, server: RangeServer) -> None:
    _flip(server, "0000.shard", 0, 100, None)
    far = shardload.open(f"{server.url}/wide")
    far.__getitems__(range(len(far)))
    damages = verify_dataset(f"{server.url}/wide")
    assert damages and all(one.section in ("padding", "head", "header", None) for one in damages)
    _flip(server, "0000.shard", 0, 100, 1)
    assert verify_dataset(f"{server.url}/wide") == []


def test_pickles_states_and_messages(root: Path, server: RangeServer) -> None:
    options = {"headers": {"X-Key": "canary-header"}}
    far = shardload.open(f"{server.url}/mixed?sig=canary-query", storage_options=options)
    assert far[3]["number"] == 3 and far.location == f"{server.url}/mixed"
    request = server.requests[-1]
    assert (request.query, request.headers["x-key"]) == ("sig=canary-query", "canary-header")
    again = pickle.loads(pickle.dumps(far))
    assert again[3]["number"] == 3 and server.requests[-1].query == "sig=canary-query"
    with shardload.ShardLoader(far, 8, shuffle=True) as loader:
        next(iter(loader))
        shown = [repr(far), repr(loader.state_dict()), repr(loader.stats()), str(far.manifest)]
    with pytest.raises(StateMismatchError) as caught:
        shardload.open(f"{server.url}/mixed?sig=canary-query", fingerprint="0" * 64).fingerprint  # noqa: B018
    assert not [text for text in [*shown, str(caught.value)] if "canary" in text]
    with pytest.raises(AnswerError, match="is missing"):
        shardload.open(f"{server.url}/mixed", version=7)[0]


def test_forked_workers_have_connections_of_their_own(root: Path, server: RangeServer) -> None:
    far = shardload.open(f"{server.url}/mixed")
    want = [sample["number"] for sample in far.__getitems__(range(40))]
    # Forked in the midst of fetching: locks may be held, and threads are not there.
    far.will_need(np.arange(40, NUM_SAMPLES))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if [sample["number"] for sample in far.__getitems__(range(40))] == want else 2
            del far
            gc.collect()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert [sample["number"] for sample in far.__getitems__(range(NUM_SAMPLES))] == list(range(NUM_SAMPLES))
    loader = DataLoader(far, batch_size=30, num_workers=1, collate_fn=shardload.collate)
    assert [int(i) for batch in loader for i in batch["number"]] == list(range(NUM_SAMPLES))


def test_memory_of_what_was_announced_is_given_back(server: RangeServer) -> None:
    far = shardload.open(f"{server.url}/wide")
    with shardload.ShardLoader(far, 32, shuffle=False, epochs=1) as loader:
        for _ in loader:
            pass
    arrivals = far._process_access().engine._arrivals
    far.__getitems__(range(len(far)))
    assert not arrivals._held_bytes and not arrivals._announced
