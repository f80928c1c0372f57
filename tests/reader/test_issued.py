"""Batches of a batch sampler that are read together: each is what it is alone, whoever asks for which of them."""

from __future__ import annotations

import operator
import pickle
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import at_once
from torch.utils.data import DataLoader

import shardload
from shardload.reader import ShardDataset, issued

NUM_SAMPLES, BATCH = 203, 8


def sample_of(i: int) -> dict[str, Any]:
    return {"text": f"sample {i} " * (i % 9), "number": i, "row": np.full(150, i, np.float32)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, numbers and wide rows. Read only."""
    path = tmp_path_factory.mktemp("issued") / "d"
    with shardload.ShardWriter(path, {"text": "str", "number": "int32", "row": "float32[150]"}) as writer:
        for i in range(NUM_SAMPLES):
            writer.write(sample_of(i))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The batches of each read that the dataset was asked for."""
    done: list[list[list[int]]] = []
    real = ShardDataset.read_batches

    def read_batches(self: ShardDataset, batches: Any, *more: Any) -> Any:
        done.append([ids.tolist() for ids in batches])
        return real(self, batches, *more)

    monkeypatch.setattr(ShardDataset, "read_batches", read_batches)
    return done


def loaded(path: Path, **options: Any) -> tuple[ShardDataset, Any]:
    dataset = shardload.open(path, engine="map", verify="once", **options)
    return dataset, shardload.ShardSampler(dataset, seed=3, num_replicas=1, rank=0).batch_sampler(BATCH)


def same(batch: Any, ids: Any) -> None:
    wanted = [sample_of(i) for i in ids]
    assert batch["number"].tolist() == list(ids) and batch["text"] == [one["text"] for one in wanted]
    assert torch.equal(batch["row"][:, 7], torch.tensor(ids, dtype=torch.float32))


def test_batches_are_read_together_and_come_one_by_one(small: Path, reads: list[list[list[int]]]) -> None:
    """The first ones alone, so that they do not wait; the state is that of what was issued, not of what was read."""
    dataset, batches = loaded(small)
    order = list(shardload.ShardSampler(dataset, seed=3, num_replicas=1, rank=0))
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=shardload.collate)
    for number, batch in enumerate(loader):
        same(batch, order[number * BATCH : (number + 1) * BATCH])
        assert batches.state_dict() == batches.state_at(number + 1)
    assert [sample for read in reads for ids in read for sample in ids] == order
    assert [len(read) for read in reads] == [1, 1, 2, 4, 8, 8, 2]


@pytest.mark.parametrize("why", ["not in memory", "large", "other engine"])
def test_batches_are_read_alone_where_that_is_better(
    small: Path, reads: list[list[list[int]]], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, batches = loaded(small)
    if why == "large":
        monkeypatch.setattr(issued, "_MOST_BYTES", dataset.num_bytes * BATCH // NUM_SAMPLES)
    elif why == "other engine":
        dataset.engine = "pread"
    else:
        monkeypatch.setattr(ShardDataset, "at_hand", lambda self, ids: False)
    for number, batch in enumerate(DataLoader(dataset, batch_sampler=batches, collate_fn=shardload.collate)):
        same(batch, reads[number][0])
    assert {len(read) for read in reads} == {1}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["read", "leave out", "twice", "late", "cut", "turned", "view"]), max_size=40))
def test_any_use_gives_what_was_asked_for(small: Path, uses: list[str]) -> None:
    """Batches left out at the start, read twice, late, changed by who has them, or asked for of another source."""
    dataset, batches = loaded(small)
    view, kept = dataset.select(range(NUM_SAMPLES - 1, -1, -1)), []
    for use, ids in zip(uses, batches, strict=False):
        wanted = list(ids)
        if use == "late":
            kept.append(ids)
            continue
        if use == "cut":
            del ids[3:], wanted[3:]
        elif use == "turned":
            ids.reverse(), wanted.reverse()
        for _ in range(1 + (use == "twice")):
            found = (view if use == "view" else dataset).__getitems__(ids)
            if use == "view":
                assert found.values_of("text") == [sample_of(NUM_SAMPLES - 1 - i)["text"] for i in wanted]
            elif use != "leave out":
                same(shardload.collate(found), wanted)
    for ids in kept:
        same(shardload.collate(dataset.__getitems__(ids)), list(ids))


def test_a_damaged_sample_is_an_error_of_its_own_batch(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "d"
    shutil.copytree(small, path)
    with open(path / shardload.open(path).table[0].name, "r+b") as file:
        file.seek(file.read().index(sample_of(107)["text"].encode()))
        file.write(b"!")
    dataset, batches = loaded(path)
    failed = []
    for ids in batches:
        try:
            same(shardload.collate(dataset.__getitems__(ids)), list(ids))
        except shardload.ChecksumError as error:
            failed.append((error.sample_id, 107 in list(ids)))
    assert failed == [(107, True)]


def test_a_number_that_is_no_sample_is_an_error_of_its_own_batch(small: Path) -> None:
    """Also in a view of samples that have these numbers: batches read ahead are held against the same ends as others."""
    dataset, _ = loaded(small)
    num_kept = 12 * BATCH
    view = dataset.select(range(num_kept))
    batches = shardload.ShardSampler(dataset, seed=3, num_replicas=1, rank=0, shuffle=False).batch_sampler(BATCH)
    refused = []
    for ids in batches:
        wanted = list(ids)
        try:
            same(shardload.collate(view.__getitems__(ids)), wanted)
        except IndexError as error:
            assert f"sample {wanted[0]} is out of range: there are {num_kept}" in str(error)
            refused.append(wanted[0])
    assert refused == list(range(num_kept, NUM_SAMPLES, BATCH))


def test_a_missing_shard_is_an_error_of_its_own_batches(tmp_path: Path) -> None:
    path = tmp_path / "d"
    with shardload.ShardWriter(path, {"text": "str"}, shard_size="2KiB") as writer:
        for i in range(NUM_SAMPLES):
            writer.write({"text": f"sample {i} " * 20})
    dataset = shardload.open(path, engine="map", verify="once")
    assert len(dataset.table) > 30
    missing = len(dataset.table) // 2
    first, stop = (int(dataset.table.first_sample_ids[i]) for i in (missing, missing + 1))
    (path / dataset.table[missing].name).unlink()
    batches = shardload.ShardSampler(dataset, seed=3, num_replicas=1, rank=0, shuffle=False).batch_sampler(BATCH)
    for ids in batches:
        wanted = list(ids)
        if any(first <= i < stop for i in wanted):
            with pytest.raises(shardload.StorageError, match="is missing"):
                dataset.__getitems__(ids)
        else:
            assert dataset.__getitems__(ids).values_of("text") == [f"sample {i} " * 20 for i in wanted]


def test_several_threads_share_what_is_read(small: Path) -> None:
    """Of one iteration, as a pool of threads that maps over it does."""
    dataset, batches = loaded(small)
    turn, wrong, seen = threading.Lock(), [], []

    def work() -> None:
        for _ in range(20):
            with turn:
                ids = next(iterator, None)
            if ids is None:
                return
            try:
                same(shardload.collate(dataset.__getitems__(ids)), list(ids))
            except Exception as error:
                wrong.append(error)
            seen.extend(ids)

    for _ in range(6):
        iterator = iter(batches)
        at_once(work)
    assert not wrong and sorted(seen) == sorted([*range(NUM_SAMPLES)] * 6)


def test_nothing_of_a_batch_is_kept_that_was_taken(small: Path) -> None:
    dataset, batches = loaded(small)
    taken: list[weakref.ref[Any]] = []
    for ids in batches:
        assert not taken or taken[-1]() is None
        taken.append(weakref.ref(dataset.__getitems__(ids).columns["row"].values))
    assert len(taken) == 26


def test_ids_leave_it_behind_on_their_way_to_another_process(small: Path) -> None:
    _, batches = loaded(small)
    ids = next(iter(batches))
    assert ids.issued is not None and pickle.loads(pickle.dumps(ids)).issued is None
    assert len(pickle.dumps(ids)) < 300


def test_transforms_and_keys_are_those_of_each_batch(small: Path) -> None:
    def transform(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"number": sample["number"], "drawn": float(rng.random())}

    drawn: list[dict[int, float]] = []
    for together in (True, False):
        dataset, batches = loaded(small, transform=transform)
        found = {}
        for ids in batches:
            if not together:
                ids.issued = None
            found |= {one["number"]: one["drawn"] for one in dataset.__getitems__(ids)}
        drawn.append(found)
    assert drawn[0] == drawn[1] and len(set(drawn[0].values())) == NUM_SAMPLES


@pytest.mark.parametrize("kind", ["view", "concat", "mixture", "windows", "windows of phases"])
def test_other_sources_read_together_too(small: Path, tmp_path: Path, kind: str, reads: list[list[list[int]]]) -> None:
    dataset = shardload.open(small, engine="map")
    if kind.startswith("windows"):
        with shardload.ShardWriter(tmp_path / "d", {"tokens": "uint16[*]"}) as writer:
            for i in range(40):
                writer.write({"tokens": np.arange(100 * i, 100 * i + 150, dtype=np.uint16)})
        phase: Any = "epoch" if "phases" in kind else "fixed"
        source: Any = shardload.TokenWindows(shardload.open(tmp_path / "d", engine="map"), "tokens", 16, phase=phase)
        asked, real = [], source.read_batches
        source.read_batches = lambda batches, *more: asked.append(batches) or real(batches, *more)
    else:
        asked = reads
        source = {
            "view": lambda: dataset[10:190],
            "concat": lambda: shardload.concat([dataset, dataset[3:]]),
            "mixture": lambda: shardload.Mixture({"a": (dataset, 0.5), "b": (dataset[3:], 0.5)}),
        }[kind]()
    batches = shardload.ShardSampler(source, seed=3, num_replicas=1, rank=0).batch_sampler(BATCH)
    batches.set_epoch(1)
    found, ids = [], []
    for some in batches:
        found.append(shardload.collate(source.__getitems__(some)))
        ids.append(list(some))
    assert max(map(len, asked)) == 8
    for batch, some in zip(found, ids, strict=True):
        alone = shardload.collate(source.__getitems__(some))
        assert batch.keys() == alone.keys() and len(alone) > 1
        for name, values in batch.items():
            same_values = torch.equal if isinstance(values, torch.Tensor) else operator.eq
            assert same_values(values, alone[name])
