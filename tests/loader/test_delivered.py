"""The sum over what was delivered: the training loop adds to it while another thread sums up, and others ask."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shardload
from shardload.errors import StateMismatchError
from shardload.loader import audit as module
from shardload.loader.audit import KEPT_BATCHES, Delivered, mixed_sum

NUM_SAMPLES = 1003


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Threads that take turns far more often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_nothing_is_lost_or_counted_twice(eager_switches: None) -> None:
    delivered, done = Delivered(), threading.Event()
    wrong: list[int] = []

    def sum_up(least: int) -> None:
        while not done.is_set():
            delivered.fold(least)
            count, total = delivered.totals()
            if total != mixed_sum(np.arange(count)):
                wrong.append(count)

    threads = [threading.Thread(target=sum_up, args=(least,)) for least in (1, 3)]
    for thread in threads:
        thread.start()
    for number in range(20_000):
        delivered.add(np.arange(number, number + 1))
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert delivered.totals() == (20_000, mixed_sum(np.arange(20_000)))


def test_an_error_in_the_middle_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    delivered = Delivered()
    delivered.add(np.arange(5))
    with monkeypatch.context() as patch:
        patch.setattr(module, "mixed_sum", lambda ids: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            delivered.totals()
    assert delivered.totals() == (5, mixed_sum(np.arange(5)))


def test_a_process_that_is_forked_in_the_middle_has_it_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    delivered = Delivered()
    delivered.add(np.arange(5))
    inside, go_on = threading.Event(), threading.Event()

    def held(ids: np.ndarray) -> int:
        if threading.current_thread() is thread:
            inside.set()
            assert go_on.wait(30)
        return mixed_sum(ids)

    monkeypatch.setattr(module, "mixed_sum", held)
    thread = threading.Thread(target=delivered.fold, args=(0,))
    thread.start()
    assert inside.wait(30)
    child = os.fork()
    if not child:
        # The child's own end, if it waits for a lock that nobody holds any more.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        delivered.add(np.arange(5, 7))
        os._exit(0 if delivered.totals() == (7, mixed_sum(np.arange(7))) else 1)
    go_on.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert delivered.totals() == (5, mixed_sum(np.arange(5)))


def test_copies_go_their_own_way() -> None:
    delivered = Delivered()
    for number in range(KEPT_BATCHES + 3):
        delivered.add(np.arange(number, number + 1))
    for made in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        other = made(delivered)
        other.add(np.arange(9))
        assert other.totals()[0] == KEPT_BATCHES + 3 + 9
    assert delivered.totals() == (KEPT_BATCHES + 3, mixed_sum(np.arange(KEPT_BATCHES + 3)))


def test_batches_that_are_told_are_summed_up_as_they_come(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank's ids of an epoch need not fit in memory."""
    most = 0
    add = Delivered.add

    def watched(self: Delivered, ids: np.ndarray) -> None:
        nonlocal most
        add(self, ids)
        most = max(most, len(self._waiting))

    monkeypatch.setattr(Delivered, "add", watched)
    sampler = shardload.ShardSampler(shardload.open(numbers), num_replicas=1, rank=0).batch_sampler(2, tail="short")
    batches = list(sampler)
    assert len(batches) > 2 * KEPT_BATCHES
    sampler.audit(batches)
    with pytest.raises(StateMismatchError):
        sampler.audit([batches[1], *batches[1:]])
    assert most == KEPT_BATCHES


@pytest.mark.parametrize("prefetch_batches", [0, 3])
def test_a_long_epoch_that_is_told(numbers: Path, prefetch_batches: int) -> None:
    """More batches than are summed up at once, told by the training loop or not."""
    options = {"num_replicas": 1, "rank": 0, "tail": "short", "with_ids": True, "prefetch_batches": prefetch_batches}
    loader = shardload.ShardLoader(shardload.open(numbers), 5, shuffle=True, **options)
    ids = [batch["_sample_id"] for batch in loader]
    assert len(ids) > 3 * KEPT_BATCHES
    loader.audit()
    loader.audit(sample_ids=ids)
    with pytest.raises(StateMismatchError):
        loader.audit(sample_ids=[ids[1], *ids[1:]])
    assert loader._course.delivered.totals()[0] == NUM_SAMPLES
