"""Windows through loaders and samplers: any way to read, any ranks, any place to go on from."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import shardload
from shardload.format import layout
from shardload.order.rng import stand_in_ids
from shardload.order.windows import phase_of

LENGTH, STRIDE, SEED, NUM_SAMPLES = 50, 30, 4, 140
TOKENS = [(np.arange(37 * i % 150) + 200 * i).astype(np.uint16) for i in range(NUM_SAMPLES)]
STREAM = np.concatenate(TOKENS)
OWNERS = np.repeat(np.arange(NUM_SAMPLES), [len(tokens) for tokens in TOKENS])


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short documents in many shards. Read only."""
    path = tmp_path_factory.mktemp("windows") / "d"
    with shardload.ShardWriter(path, {"tokens": "uint16[*]"}, shard_size="12KiB") as writer:
        for tokens in TOKENS:
            writer.write({"tokens": tokens})
    counts = shardload.open(path).table.entries["num_samples"]
    assert len(counts) > 3 and (counts[:-1] > 5).all()
    return path


def windows_of(path: Path, verify: Any = "auto", **options: Any) -> shardload.TokenWindows:
    options = {"stride": STRIDE, "phase": "epoch"} | options
    return shardload.TokenWindows(shardload.open(path, verify=verify), "tokens", LENGTH, **options)


LOADERS: list[shardload.ShardLoader] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while LOADERS:
        LOADERS.pop().close()


def make(windows: shardload.TokenWindows, batch_size: int = 7, **options: Any) -> shardload.ShardLoader:
    settings = {"shuffle": True, "seed": SEED, "num_replicas": 1, "rank": 0, "tail": "short", "with_ids": True}
    loader = shardload.ShardLoader(windows, batch_size, **settings | options)
    LOADERS.append(loader)
    return loader


def check(batch: dict[str, Any], windows: shardload.TokenWindows) -> list[int]:
    """Checks that each window is the one that its id names, and returns the ids."""
    ids = batch["_sample_id"].tolist()
    for slot, start in enumerate(windows.starts(batch["_sample_id"].numpy()).tolist()):
        assert batch["input_ids"][slot].tolist() == STREAM[start : start + LENGTH].tolist()
        assert batch["labels"][slot].tolist() == STREAM[start + 1 : start + LENGTH + 1].tolist()
        if windows.documents:
            owners = OWNERS[start : start + LENGTH]
            assert batch["doc_id"][slot].tolist() == owners.tolist()
            edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), LENGTH]
            assert batch["cu_seqlens"][slot].tolist() == edges and batch["cu_seqlens"][slot].dtype == torch.int32
            assert (batch["position_ids"][slot][torch.tensor(edges[:-1])] == 0).all()
    return ids


@pytest.mark.parametrize(
    "options",
    [
        {"prefetch_batches": 0},
        {"num_threads": 3, "prefetch_batches": 9},
        {"num_threads": 0, "reuse": True},
        {"helper_process": True},
        {"num_processes": 1},
        {"batch_size": 300},
        {"on_error": "mask"},
        {"shuffle": shardload.BlockShuffle(20, 4)},
    ],
    ids=str,
)
def test_who_reads_does_not_matter(content: Path, options: dict[str, Any]) -> None:
    windows = windows_of(content, documents=True)
    loader = make(windows, **{"batch_size": 7} | options)
    # Each epoch starts processes anew, which takes seconds.
    for epoch in range(1 if options.get("num_processes") else 2):
        found = [i for batch in loader for i in check(batch, windows)]
        first = len(windows) * phase_of(SEED, epoch, STRIDE)
        assert sorted(found) == list(range(first, first + len(windows)))
        assert (
            found == windows.orders(options.get("shuffle", True)).order(epoch, SEED)(np.arange(len(windows))).tolist()
        )
    if options.get("helper_process"):
        assert loader.stats().num_helper_batches > 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_under_a_data_loader(content: Path, num_workers: int) -> None:
    windows = windows_of(content, documents=["doc_id"])
    sampler = shardload.ShardSampler(windows, 1, 0, seed=SEED)
    batches = DataLoader(
        windows, batch_sampler=sampler.batch_sampler(7), collate_fn=shardload.collate, num_workers=num_workers
    )
    plain = DataLoader(windows, 7, sampler=shardload.ShardSampler(windows, 1, 0, seed=SEED), num_workers=num_workers)
    loader = make(windows)
    for _ in range(2):
        for ours, stacked, mine in zip(loader, batches, plain, strict=True):
            check(ours, windows_of(content))
            for name in ("input_ids", "labels", "doc_id"):
                assert torch.equal(ours[name], stacked[name]) and torch.equal(ours[name], mine[name])
                assert ours[name].dtype == stacked[name].dtype == mine[name].dtype == torch.int64


def test_a_state_counts_windows(content: Path) -> None:
    windows = windows_of(content)
    loader = make(windows, 5)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = loader.state_dict()["shardload"]
    assert '"position": 15,' in state and f'"num_samples": {len(windows)},' in state and len(state) < 1024
    assert windows.fingerprint in state and f'"shuffle": "phase of {STRIDE}, shuffle True"' in state
    for other in (
        windows_of(content, phase="fixed"),
        windows_of(content, stride=STRIDE + 1),
        windows_of(content, shift=2),
    ):
        with pytest.raises(shardload.StateMismatchError, match="the state was saved with fingerprint"):
            make(other).load_state_dict({"shardload": state})
    with pytest.raises(
        shardload.StateMismatchError,
        match="shuffle 'phase of 30, shuffle True', this loader has 'phase of 30, shuffle F",
    ):
        make(windows, shuffle=False).load_state_dict({"shardload": state})
    make(windows_of(content, documents=True)).load_state_dict({"shardload": state})


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_resume_goes_on_at_any_number_of_ranks(content: Path, data: st.DataObject) -> None:
    """Two epochs in stretches of other batch sizes and ranks, every window of both phases once."""
    windows = windows_of(content)
    order = [windows.orders(True).order(epoch, SEED)(np.arange(len(windows))).tolist() for epoch in (0, 1)]
    found: list[int] = []
    state: dict[str, str] | None = None
    while len(found) < len(order[0]) + 40:
        world, batch_size = data.draw(st.integers(1, 3), "ranks"), data.draw(st.integers(1, 20), "batch size")
        num_batches = data.draw(st.integers(1, 9), "batches")
        ranks = [
            make(windows, batch_size, num_replicas=world, rank=rank, tail="carry", prefetch_batches=0)
            for rank in range(world)
        ]
        for loader in ranks:
            if state is not None:
                loader.load_state_dict(state)
        runs = [iter(loader) for loader in ranks]
        for _ in range(num_batches):
            parts = [next(run, None) for run in runs]
            if parts[0] is None:
                break
            for group in zip(*(check(part, windows) for part in parts if part is not None), strict=True):
                found.extend(group)
        states = [loader.state_dict() for loader in ranks]
        assert all(one == states[0] for one in states)
        state = states[0]
    assert found[: len(order[0])] == order[0] and found[len(order[0]) :] == order[1][: len(found) - len(order[0])]


@pytest.mark.parametrize("phase", ["fixed", "epoch"])
def test_stand_ins_for_windows_of_a_damaged_block(content: Path, tmp_path: Path, phase: str) -> None:
    path = tmp_path / "d"
    shutil.copytree(content, path)
    dataset = shardload.open(path)
    shard = dataset._process_access().shard(2)
    section = shard.head.section(layout.SECTION_STREAM, 0)
    with open(path / shard.entry.name, "r+b") as file:
        file.seek(section.start)
        byte = file.read(1)[0]
        file.seek(section.start)
        file.write(bytes([byte ^ 1]))
    first = int(dataset.table.entries["num_items"][:2, 0].sum())
    stop = first + min(layout.BLOCK_BYTES, section.stop - section.start) // 2
    windows = windows_of(path, "always", phase=phase, documents=True)

    def hit(ids: Any) -> Any:
        starts = windows.starts(np.array(ids))
        return (starts + LENGTH + 1 > first) & (starts < stop)

    with pytest.raises(shardload.ChecksumError, match=r"field 'tokens' in window \d+ do not have their checksum"):
        list(make(windows))
    loader = make(windows, on_error="mask", max_faults=1000)
    for epoch in range(2):
        order = windows.orders(True).order(epoch, SEED)(np.arange(len(windows)))
        assert 0 < hit(order).sum() < len(order) // 3
        batches = list(loader)
        assert [not valid for batch in batches for valid in batch["_valid"].tolist()] == hit(order).tolist()
        found = [i for batch in batches for i in check(batch, windows)]
        for want, got in zip(order.tolist(), found, strict=True):
            candidates = stand_in_ids(SEED, epoch, want, len(windows), 8) if hit([want])[0] else [want]
            assert got == next(i for i in candidates if not hit([i])[0])


def test_fields_that_are_not_asked_for_are_not_read(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = windows_of(content, documents=True)
    access = windows.dataset._process_access()
    batch = next(iter(make(windows, fields=["labels"])))
    assert set(batch) == {"labels", "_sample_id", "_position", "_epoch"}
    monkeypatch.setattr(access, "read_items", None)
    batch = next(iter(make(windows, fields=["cu_seqlens", "doc_id"], num_threads=0)))
    assert [bounds[-1].item() for bounds in batch["cu_seqlens"]] == [LENGTH] * 7


def test_a_transform_is_called_with_windows(content: Path) -> None:
    def length(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"sum": int(sample["input_ids"].sum()), "drawn": int(rng.integers(1 << 40))}

    windows = windows_of(content, transform=length)
    batches = [list(make(windows, batch_size, with_ids=False)) for batch_size in (7, 40)]
    drawn = [[value for batch in run for value in batch["drawn"].tolist()] for run in batches]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == len(windows)
    with pytest.raises(ValueError, match="the transform takes rng="):
        windows[0]


def test_forked_children_and_copies_read_for_themselves(content: Path) -> None:
    windows = windows_of(content, documents=True)
    want = windows.read_batch(np.arange(40)).columns["doc_id"].values.sum()
    copy = pickle.loads(pickle.dumps(windows))
    assert copy.fingerprint == windows.fingerprint
    child = os.fork()
    if not child:
        same = windows.read_batch(np.arange(40)).columns["doc_id"].values.sum() == want
        os._exit(0 if same and windows.dataset._process_access().process_id == os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert copy.read_batch(np.arange(40)).columns["doc_id"].values.sum() == want


def test_items_travel_to_a_cuda_device_as_stored(content: Path) -> None:
    """Where nobody sees them before they are widened there, and what is asked for is what comes of widening."""

    def kinds(**options: Any) -> list[str]:
        return [field.kind for field in make(windows_of(content), device="cuda", **options)._course.recipe.fields]

    assert kinds() == ["uint16", "uint16"]
    assert kinds(dtypes={"labels": torch.int32}) == ["uint16", "int64"]
    for name in ("transform", "collate_fn", "batch_transform"):
        assert kinds(**{name: lambda batch: batch}) == ["int64", "int64"]
    assert [f.kind for f in make(windows_of(content), device="cpu")._course.recipe.fields] == ["int64", "int64"]
