"""Steps wait for their shards, in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from shardload.errors import LoaderClosedError, PackError
from shardload.format.table import ShardEntry
from shardload.packing.outbox import Outbox
from shardload.packing.progress import Count
from shardload.packing.unit import Step
from shardload.storage.stopping import current_stop

_LIMIT_SECONDS = 20


class Slow:
    """Deliveries that end when they are told to."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.delivered: list[int] = []

    def __call__(self, entry: ShardEntry) -> None:
        self.begun.set()
        assert self.go_on.wait(_LIMIT_SECONDS)
        if self.error is not None:
            raise self.error
        self.delivered.append(entry.part)


def step(number: int, part: int | None = None) -> Step:
    entry = None if part is None else ShardEntry(1, 0, part, 1, 1, b"", b"", ())
    return Step(0, number, Count(number), entry=entry)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def told() -> list[int]:
    return []


@pytest.fixture
def outbox(slow: Slow, told: list[int]) -> Iterator[Outbox]:
    box = Outbox(slow, lambda news: told.append(news.num_items if isinstance(news, Step) else -news.num_samples))
    yield box
    slow.go_on.set()
    box.close()


def test_nothing_passes_a_shard_that_is_under_way(outbox: Outbox, slow: Slow, told: list[int]) -> None:
    outbox(Count(5))
    outbox(step(1))
    outbox(step(2, part=0))
    assert slow.begun.wait(_LIMIT_SECONDS)
    outbox(step(3))
    outbox(Count(6))
    assert told == [-5, 1] and slow.delivered == []
    slow.go_on.set()
    # Another shard waits for the one before it.
    outbox(step(4, part=1))
    assert told[:4] == [-5, 1, 2, 3] and slow.delivered[0] == 0
    outbox.finish()
    assert told == [-5, 1, 2, 3, 4] and slow.delivered == [0, 1]


def test_a_failure_ends_what_comes_after_it(outbox: Outbox, slow: Slow, told: list[int]) -> None:
    slow.error = PackError("the store is gone")
    outbox(step(1, part=0))
    outbox(step(2))
    slow.go_on.set()
    for again in (lambda: outbox(step(3, part=1)), outbox.finish):
        with pytest.raises(PackError, match="the store is gone"):
            again()
    assert told == []


def test_steps_do_not_pile_up(outbox: Outbox, slow: Slow, told: list[int]) -> None:
    outbox(step(0, part=0))
    assert slow.begun.wait(_LIMIT_SECONDS)
    threading.Timer(0, lambda: slow.go_on.set()).start()
    for number in range(1, 100):
        outbox(step(number))
    assert len(told) >= 100 - 16 and told == list(range(len(told)))


def test_closing_ends_a_delivery(told: list[int]) -> None:
    begun = threading.Event()
    ended: list[bool] = []

    def deliver(_: ShardEntry) -> None:
        begun.set()
        ended.append(current_stop().wait(_LIMIT_SECONDS))
        raise LoaderClosedError("given up")

    outbox = Outbox(deliver, lambda news: told.append(0))
    outbox(step(1, part=0))
    assert begun.wait(_LIMIT_SECONDS)
    outbox.close()
    assert ended == [True] and told == []
