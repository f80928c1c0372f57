"""What the ranks tell each other on request, with planted faults. The ranks are threads: the exchange is a list."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardload
from shardload.errors import StateMismatchError
from shardload.loader import audit as module


class Exchange:
    """Stands for a process group whose processes are threads of this one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.size = size
        self._numbers = threading.local()
        self._barrier = threading.Barrier(size, timeout=30)
        self._given: dict[int, Any] = {}
        monkeypatch.setattr(module, "_place_in", lambda group: (size, self._numbers.value))
        monkeypatch.setattr(module, "_gather", self._gather)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Runs `work(number)` in each process; returns what it returned or raised."""
        results: list[Any] = [None] * self.size

        def one(number: int) -> None:
            self._numbers.value = number
            try:
                results[number] = work(number)
            except Exception as error:
                results[number] = error

        threads = [threading.Thread(target=one, args=(number,)) for number in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results

    def _gather(self, report: Any, group: Any) -> list[Any]:
        self._given[self._numbers.value] = report
        self._barrier.wait()
        reports = [self._given[number] for number in range(self.size)]
        self._barrier.wait()
        return reports


@pytest.fixture
def exchange(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Exchange]:
    return lambda size: Exchange(monkeypatch, size)


def make(numbers: Path, rank: int, world: int, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"batch_size": 16, "shuffle": True, "num_replicas": world, "rank": rank}
    return shardload.ShardLoader(shardload.open(numbers), **settings | options)


def steps(loader: shardload.ShardLoader, count: int | None) -> None:
    for number, _ in enumerate(loader, 1):
        if number == count:
            return


@pytest.mark.parametrize("tail", ["drop", "short", "pad", "mask", "carry"])
@pytest.mark.parametrize("world", [1, 3, 4])
def test_what_is_right_passes_at_every_step(numbers: Path, exchange, tail: str, world: int) -> None:
    def work(rank: int) -> None:
        loader = make(numbers, rank, world, tail=tail)
        loader.check_ranks()
        loader.audit()
        for _ in range(2):
            for number, _ in enumerate(loader):
                if number % 7 == 0:
                    loader.audit()
            loader.audit()
        loader.close()

    assert exchange(world).run(work) == [None] * world


@pytest.mark.parametrize("tail", ["drop", "short", "pad", "mask", "carry"])
def test_after_a_resume_the_rest_is_what_counts(numbers: Path, exchange, tail: str) -> None:
    state = make(numbers, 0, 1, batch_size=100, tail=tail).state_at(5)

    def work(rank: int) -> None:
        loader = make(numbers, rank, 3, tail=tail, with_ids=True)
        loader.load_state_dict(state, reseed=8)
        loader.check_ranks()
        loader.audit()
        ids = [batch["_sample_id"].numpy() for batch in loader]
        loader.audit()
        loader.audit(sample_ids=ids)
        batches = shardload.ShardSampler(loader.dataset, 3, rank).batch_sampler(16, tail=tail)
        batches.load_state_dict(state, reseed=8)
        lists = [list(ids)[: ids.num_valid] for ids in batches]
        batches.audit(lists)

    assert exchange(3).run(work) == [None] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda rank: {"seed": rank}, r"disagree on seed: process 0 of the group has 0, process 1 1"),
        (lambda rank: {"batch_size": 16 + rank // 3}, r"disagree on batch_size: .* process 3 17"),
        (lambda rank: {"tail": ["drop", "short"][rank % 2]}, r"disagree on tail"),
        (lambda rank: {"shuffle": rank != 2, "tail": "drop"}, r"disagree on shuffle"),
        (lambda rank: {"rank": rank % 2}, r"rank 0 of 4 is there 2 times instead of 1 .*\[0, 1, 0, 1\]\): was a local rank"),
        (lambda rank: {"rank": min(rank, 2)}, r"rank 2 of 4 is there 2 times"),
        (lambda rank: {"num_replicas": 2, "rank": rank % 2}, r"2 replicas, but the group has 4 processes: were the ranks of one"),
        (lambda rank: {"num_replicas": 1, "rank": 0}, r"1 replicas, but the group has 4 processes"),
        (lambda rank: {"num_replicas": 8}, r"8 replicas, but the group has 4 processes: are all of them in it"),
    ],
)  # fmt: skip
def test_ranks_that_disagree_are_all_told_before_the_first_batch(
    numbers: Path, exchange, options, message: str
) -> None:
    def work(rank: int) -> None:
        make(numbers, **{"rank": rank, "world": 4}).close()
        settings = {"num_replicas": 4, "rank": rank} | options(rank)
        loader = make(numbers, settings.pop("rank"), settings.pop("num_replicas"), **settings)
        loader.check_ranks()

    errors = exchange(4).run(work)
    assert all(isinstance(error, StateMismatchError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1
    with pytest.raises(StateMismatchError, match=message):
        raise errors[0]


def test_another_dataset(numbers: Path, mixed: Path, exchange) -> None:
    errors = exchange(2).run(lambda rank: make([numbers, mixed][rank], rank, 2).check_ranks())
    with pytest.raises(StateMismatchError, match="disagree on fingerprint"):
        raise errors[1]


def test_a_rank_that_is_behind(numbers: Path, exchange) -> None:
    def work(rank: int) -> None:
        loader = make(numbers, rank, 3)
        steps(loader, 5 if rank == 1 else 6)
        loader.audit()

    errors = exchange(3).run(work)
    with pytest.raises(
        StateMismatchError, match=r"disagree on position: process 0 of the group has 288, process 1 240"
    ):
        raise errors[2]


def used(numbers: Path, rank: int, world: int, of_rank: int) -> list[np.ndarray]:
    """The ids of the first six batches of a rank."""
    loader = make(numbers, of_rank, world, with_ids=True)
    batches = [batch["_sample_id"].numpy() for batch, _ in zip(loader, range(6), strict=False)]
    loader.close()
    return batches


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda ids, rank: ids[rank::3], r"something has split each part over the ranks a second time"),
        (lambda ids, rank: [one[rank::3] for one in ids], r"something has split each part over the ranks a second time"),
        (lambda ids, rank: ids[:-1] if rank == 1 else ids, r"some are missing"),
        (lambda ids, rank: [*ids, ids[0]] if rank == 2 else ids, r"some came more than once"),
        (lambda ids, rank: [*ids[:-1], ids[0]], r"the numbers are right and the samples are not"),
    ],
)  # fmt: skip
def test_what_was_really_trained_on(numbers: Path, exchange, plant, message: str) -> None:
    mine = [used(numbers, rank, 3, rank) for rank in range(3)]

    def work(rank: int) -> None:
        loader = make(numbers, rank, 3)
        steps(loader, 6)
        loader.audit(sample_ids=plant(mine[rank], rank))

    errors = exchange(3).run(work)
    assert len({str(error) for error in errors}) == 1
    with pytest.raises(StateMismatchError, match=message):
        raise errors[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda rank: [0], r"ranks \[0, 1, 2\] had the same ones"),
        (lambda rank: [0, 1, 2], r"every rank had all of them"),
    ],
)
def test_a_split_that_is_missing(numbers: Path, exchange, source, message: str) -> None:
    mine = [used(numbers, rank, 3, rank) for rank in range(3)]

    def work(rank: int) -> None:
        loader = make(numbers, rank, 3)
        steps(loader, 6)
        loader.audit(sample_ids=[ids for one in source(rank) for ids in mine[one]])

    with pytest.raises(StateMismatchError, match=message):
        raise exchange(3).run(work)[0]


def test_alone_there_is_nobody_to_ask(numbers: Path) -> None:
    loader = make(numbers, 0, 1)
    steps(loader, 9)
    loader.check_ranks()
    loader.audit()
    with pytest.raises(StateMismatchError, match="some are missing"):
        loader.audit(sample_ids=[[1, 2, 3]])
    with pytest.raises(StateMismatchError, match="2 replicas, but the group has 1 processes"):
        make(numbers, 0, 2).check_ranks()
    with pytest.raises(ValueError, match="without rank"):
        shardload.ShardLoader(loader.dataset, 8, shuffle=True, num_replicas=2).check_ranks()
    loader.close()
