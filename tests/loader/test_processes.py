"""Transforms in child processes: the same batches, whatever they draw from."""

from __future__ import annotations

import json
import os
import random
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transforms import (
    SampleError,
    add_noise,
    anonymous,
    as_list,
    dies,
    draws_both,
    draws_for_a_batch,
    draws_globally,
    draws_own,
    fails,
    fails_awkwardly,
)

import shardload
from shardload.loader import processes


def make(dataset: Path | shardload.ShardDataset, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"batch_size": 100, "shuffle": True, "num_replicas": 1, "rank": 0, "tail": "short"}
    opened = dataset if isinstance(dataset, shardload.ShardDataset) else shardload.open(dataset)
    return shardload.ShardLoader(opened, **settings | options)


def by_number(batches: list[dict[str, Any]], name: str) -> dict[int, Any]:
    return {n: v for b in batches for n, v in zip(b["number"].tolist(), b[name].tolist(), strict=True)}


@pytest.mark.usefixtures("quick_processes")
def test_what_is_drawn_does_not_depend_on_who_draws(numbers: Path) -> None:
    """Any number of processes, ranks, batch sizes, and a resume; and another draw in another epoch."""
    one = make(numbers, transform=draws_both, num_processes=1, reproducible=True)
    first, second = [by_number(list(one), "drawn") for _ in range(2)]
    assert len(first) == 1003 and len({tuple(v) for v in first.values()}) == 1003
    assert not any(first[n] == second[n] for n in first)
    rest: dict[int, Any] = {}
    for rank in range(2):
        loader = make(numbers, transform=draws_both, num_processes=2, batch_size=37, num_replicas=2, rank=rank)
        loader.load_state_dict(one.state_at(10) if one.remaining else make(numbers).state_at(10))
        rest |= by_number(list(loader), "drawn")
    assert len(rest) == 3 and all(first[n] == v for n, v in rest.items())
    # rng= is the same in a thread and in a process.
    threads = by_number(list(make(numbers, transform=draws_own)), "own")
    assert threads == by_number(list(make(numbers, transform=draws_both, num_processes=1)), "own")


@pytest.mark.usefixtures("quick_processes")
def test_a_collate_fn_that_draws_is_seeded_by_its_batch(numbers: Path) -> None:
    """Whatever else its process had before: any number of them, and a resume."""
    options: dict[str, Any] = {"collate_fn": draws_for_a_batch, "reproducible": True}
    whole = [batch["drawn"] for batch in make(numbers, num_processes=2, **options)]
    assert len({tuple(drawn) for drawn in whole}) == len(whole)
    again = make(numbers, num_processes=1, **options)
    again.load_state_dict(again.state_at(7))
    assert [batch["drawn"] for batch in again] == whole[7:]


@pytest.mark.usefixtures("quick_processes")
def test_batches_without_a_transform_are_the_same(mixed: Path) -> None:
    options: dict[str, Any] = {"batch_size": 64, "with_ids": True}
    for mine, theirs in zip(make(mixed, **options), make(mixed, num_processes=1, **options), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[name]) and value.dtype == theirs[name].dtype
            elif value and isinstance(value[0], torch.Tensor):
                assert all(torch.equal(a, b) for a, b in zip(value, theirs[name], strict=True))
            else:
                assert value == theirs[name]


def test_collation_is_in_the_process_and_batch_transform_in_the_thread(numbers: Path) -> None:
    options: dict[str, Any] = {"collate_fn": as_list, "batch_transform": add_noise}
    in_processes = list(make(numbers, num_processes=1, **options))
    in_a_thread = list(make(numbers, **options))
    assert [b["number"] for b in in_processes] == [b["number"] for b in in_a_thread]
    assert {b["process"] for b in in_a_thread} == {os.getpid()} and os.getpid() not in {
        b["process"] for b in in_processes
    }
    noise = [b["noise"] for b in in_processes]
    assert noise == [b["noise"] for b in in_a_thread] and len(set(noise)) == len(noise)
    again = make(numbers, **options)
    again.load_state_dict(again.state_at(4))
    assert [b["noise"] for b in again] == noise[4:]


@pytest.mark.parametrize("num_processes", [0, 1])
@pytest.mark.usefixtures("quick_processes")
def test_an_error_of_the_transform_is_the_one_that_it_raised(numbers: Path, num_processes: int) -> None:
    loader = make(shardload.open(numbers, transform=fails), num_processes=num_processes, seed=1)
    with pytest.raises(SampleError) as caught:
        list(loader)
    assert str(caught.value) == "no such picture"
    notes = "\n".join(caught.value.__notes__)
    assert "in the transform of sample 777 of" in notes
    assert "in fails" in notes or num_processes == 0
    # The batches before it were delivered, and it can be gone on with behind it.
    state = json_place(loader)
    loader.load_state_dict(loader.state_dict(), skip_samples=100)
    assert sum(len(b["number"]) for b in loader) == 1003 - state - 100
    loader.close()


def json_place(loader: shardload.ShardLoader) -> int:
    return int(json.loads(loader.state_dict()["shardload"])["position"])


@pytest.mark.usefixtures("quick_processes")
def test_an_error_that_cannot_travel_is_told_in_words(numbers: Path) -> None:
    with pytest.raises(RuntimeError, match=r"Awkward: one"):
        list(make(numbers, transform=fails_awkwardly, num_processes=1))


def test_a_process_that_is_killed_is_an_error(numbers: Path) -> None:
    loader = make(numbers, transform=dies, num_processes=1)
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
        list(loader)


def test_a_queue_that_was_closed_before_is_closed_again() -> None:
    """As by the garbage collector, which does so before torch does."""
    queue: Any = processes._Context().Queue()
    queue.put(1)
    Queue.close(queue)
    queue._thread.join(30)
    assert not queue._thread.is_alive()
    queue.close()


def test_a_queue_whose_reader_has_died_is_closed_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that feeds it waits for room that nobody makes."""
    queue: Any = processes._Context().Queue()
    queue.put(bytes(1 << 20))
    queue.cancel_join_thread()
    thread, pipe = queue._thread, os.dup(queue._reader.fileno())
    while processes._has_room(queue._writer):
        thread.join(0.01)
    with monkeypatch.context() as patched:
        patched.setattr(thread, "join", None)
        queue.close()
    assert thread.is_alive()
    while thread.is_alive():
        os.read(pipe, 1 << 20)
        thread.join(0.01)
    os.close(pipe)


@pytest.mark.usefixtures("quick_processes")
def test_damage_is_the_same_error(tmp_path: Path) -> None:
    with shardload.ShardWriter(tmp_path / "out", {"text": "str"}) as writer:
        for n in range(50):
            writer.write({"text": f"sample {n}" * 20})
    shard = next((tmp_path / "out" / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[data.index(b"sample 33") + 3] ^= 1
    shard.write_bytes(data)
    errors = []
    for num_processes in (0, 1):
        loader = make(tmp_path / "out", num_processes=num_processes, batch_size=5)
        with pytest.raises(shardload.ChecksumError) as caught:
            list(loader)
        errors.append((str(caught.value), caught.value.sample_id))
    assert errors[0] == errors[1] and errors[0][1] == 33


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": draws_globally}, r"transform runs in a thread.*parameter rng.*num_processes="),
        ({"collate_fn": as_list}, r"collate_fn runs in a thread.*num_processes="),
        ({"batch_transform": anonymous}, r"batch_transform runs in a thread.*parameter rng"),
        ({"batch_transform": anonymous, "num_processes": 1}, r"batch_transform runs in a thread"),
    ],
)
def test_what_cannot_be_reproducible_is_refused(numbers: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(numbers, reproducible=True, **options)
    make(numbers, **options)


def test_what_can_is_not(numbers: Path) -> None:
    make(numbers, reproducible=True)
    make(numbers, reproducible=True, transform=draws_own, batch_transform=add_noise)
    make(numbers, reproducible=True, transform=draws_globally, collate_fn=as_list, num_processes=1)
    with pytest.raises(ValueError, match="num_processes must be"):
        make(numbers, num_processes=-1)


@pytest.mark.usefixtures("quick_processes")
def test_no_generator_of_the_program_is_touched(numbers: Path) -> None:
    """So that a validation loader, a state or a process more cannot change how training goes on."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for num_processes in (0, 1):
        loader = make(numbers, num_processes=num_processes, transform=draws_own)
        batches = iter(loader)
        next(batches)
        validation = make(numbers, shuffle=False, transform=draws_own)
        list(validation)
        loader.load_state_dict(loader.state_dict(), reseed=5)
        list(loader)
    sampler = shardload.ShardSampler(shardload.open(numbers), 1, 0)
    assert len(list(sampler)) == 1003 and len(list(sampler.batch_sampler(100))) == 11
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert before[0] == after[0] and torch.equal(before[2], after[2])
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
