"""What was given is taken in when somebody asks. Whether, when and where somebody does must not show in anything."""

from __future__ import annotations

import copy
import functools
import pickle
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardload
from shardload.loader.progress import Progress
from shardload.loader.state import Place
from shardload.order.cursor import Partition

TAILS = ["drop", "short", "pad", "mask", "carry"]
STEPS = ["iter", "iter", "next", "next", "next", "rest", "rest", "set_epoch", "set_epoch", "load", "copy", "older"]


def make(numbers: Path, tail: str, batch_size: int, num_replicas: int, single: bool) -> Any:
    samples = shardload.ShardSampler(
        shardload.open(numbers)[:53], num_replicas=num_replicas, rank=0, drop_last=tail == "drop"
    )
    return samples if single else samples.batch_sampler(batch_size, tail=tail)


def heard(work: Callable[[], Any]) -> Any:
    """What some work returns, raises and warns of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = work()
        except (ValueError, StopIteration, shardload.LoaderClosedError) as error:
            result = repr(error)
    return result, [str(one.message) for one in warned]


def answers(sampler: Any, single: bool) -> list[Any]:
    """All that can be asked for."""
    found: list[Any] = [heard(sampler.state_dict), len(sampler)]
    progress: Progress = (sampler if single else sampler.sampler).progress
    found += [
        progress.entered,
        progress.place,
        progress.seed,
        progress._now.next,
        progress._now.live,
        progress._now.reached,
    ]
    if not single:
        found += [sampler.remaining, *(heard(lambda n=n: sampler.state_at(n)) for n in (0, 1, 2, 5, 99))]
    return found


def at_once(self: Progress, cursor: int, turn: int, partition: Partition, *, whole_batch: bool = True) -> None:
    """In place of `Progress.deliver`: all that follows from what is given is worked out there and then, as it is written."""
    if turn != self.turn:
        raise shardload.LoaderClosedError("this iterator is closed: a newer one of the same order took over")
    now = self._standing
    place = Place(now.place.epoch, cursor, now.place.batches + 1 if whole_batch else 0)
    live, coming = now.live, now.next
    if not self.in_epoch(partition, place.epoch).has_batch(cursor):
        live = False
        if partition.tail == "carry" and coming == Place(now.entered.epoch + 1):
            coming = place
    self._move(replace(now, place=place, reached=place, live=live, next=coming))


def run(
    sampler: Any, single: bool, steps: list[tuple[str, int]], states: list[Any], ask: Callable[[], bool]
) -> list[Any]:
    """Goes some steps, and asks between them when `ask` says so."""
    told: list[Any] = []
    iterators: list[Iterator[Any]] = []
    for step, number in [("iter", 0), *steps]:
        if step == "iter":
            iterators.append(iter(sampler))
        elif step == "set_epoch":
            told.append(heard(functools.partial(sampler.set_epoch, number % 4)))
        elif step == "load":
            told.append(heard(functools.partial(sampler.load_state_dict, states[number % len(states)])))
        elif step == "copy":
            # Of one that was not asked either; iterators stay with the one they were made of.
            sampler = copy.deepcopy(sampler) if number % 2 else pickle.loads(pickle.dumps(sampler))
            iterators = []
        elif iterators and (step != "older" or len(iterators) > 1):
            batches = iterators[-2 if step == "older" else -1]
            count = 99 if step == "rest" else 1 + number % 3
            told.append(heard(lambda batches=batches, count=count: [next(batches) for _ in range(count)]))
        if ask():
            answers(sampler, single)
    return [*told, answers(sampler, single)]


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.sampled_from(TAILS),
    st.sampled_from([1, 7, 16]),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), min_size=2, max_size=16),
    st.randoms(use_true_random=False),
)
def test_asking_changes_nothing(
    numbers: Path,
    tail: str,
    batch_size: int,
    num_replicas: int,
    single: bool,
    steps: list[tuple[str, int]],
    rng: random.Random,
) -> None:
    other = make(numbers, tail, batch_size, num_replicas, False)
    states = [other.state_dict(), other.state_at(1), other.state_at(len(other))]
    asks: list[Callable[[], bool]] = [lambda: False, lambda: True, lambda: rng.random() < 0.3]
    found = [run(make(numbers, tail, batch_size, num_replicas, single), single, steps, states, ask) for ask in asks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "deliver", at_once)
        found.append(run(make(numbers, tail, batch_size, num_replicas, single), single, steps, states, asks[0]))
    assert found[0] == found[1] == found[2] == found[3]


def test_an_answer_of_another_thread_undoes_nothing(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress bar, or whoever saves states in a thread, asks while the next epoch begins."""
    loader = shardload.ShardLoader(
        shardload.open(numbers), 100, shuffle=True, num_replicas=1, rank=0, tail="carry", prefetch_batches=0
    )
    for _ in loader:
        pass
    progress, inside, go_on = loader._progress, threading.Event(), threading.Event()
    in_epoch = Progress.in_epoch

    def held(self: Progress, partition: Partition, epoch: int) -> Partition:
        if threading.current_thread() is thread:
            inside.set()
            assert go_on.wait(30)
        return in_epoch(self, partition, epoch)

    monkeypatch.setattr(Progress, "in_epoch", held)
    thread = threading.Thread(target=loader.state_dict)
    thread.start()
    assert inside.wait(30)
    batches = iter(loader)
    ids = next(batches)["number"].tolist()
    go_on.set()
    thread.join()
    assert (progress.place.epoch, progress.place.batches, loader.remaining) == (1, 1, 9)
    # An epoch under way is not given up for the one that is set.
    loader.set_epoch(5)
    assert progress.place.epoch == 1
    state = loader.state_dict()
    rest = [batch["number"].tolist() for batch in batches]
    again = shardload.ShardLoader(shardload.open(numbers), 100, shuffle=True, num_replicas=1, rank=0, tail="carry")
    again.load_state_dict(state)
    assert [batch["number"].tolist() for batch in again] == rest and ids not in rest


def test_a_warning_that_is_an_error_moves_nothing(numbers: Path) -> None:
    samples = make(numbers, "short", 7, 1, False)
    samples.load_state_dict(samples.state_at(2))
    batches = iter(samples)
    next(batches)
    before = answers(samples, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="was left after at most one"):
            next(iter(samples))
    assert answers(samples, False) == before
    next(batches)
    assert samples.sampler.progress.place.batches == 4


def test_a_state_is_loaded_where_what_was_given_cannot_be_worked_out(
    documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether another batch follows may take a read of lengths, and an error of the storage is what one loads a state after."""
    loader = shardload.ShardLoader(
        shardload.open(documents),
        batch_tokens=("tokens", 4000),
        shuffle=True,
        num_replicas=1,
        rank=0,
        prefetch_batches=0,
    )
    state = loader.state_at(1)
    batches = iter(loader)
    next(batches), next(batches)

    def broken(self: Progress, partition: Partition, epoch: int) -> Partition:
        raise OSError("no lengths")

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "in_epoch", broken)
        loader.load_state_dict(state)
    assert loader.state_dict() == state
