"""Processes that run steps, without a pack around them: order, back-pressure, and what stays when nobody wants the rest."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from shardload.preparation import StepPool, function_step
from shardload.preparation.process import StepProcess

Entry = tuple[str, dict[str, Any] | None]


@pytest.fixture
def pool(monkeypatch) -> Iterator[StepPool]:
    """Two processes, fed four samples at a time."""
    monkeypatch.setattr("shardload.preparation.pool.BATCH_SAMPLES", 4)
    made = StepPool([function_step("filter", "preparing:keep")], 2, 10.0)
    yield made
    made.close()


def entries(taken: list[int], number: int) -> Iterator[Entry]:
    for n in range(number):
        taken.append(n)
        yield f"sample {n}", None if n % 7 == 6 else {"number": n, "part": 0, "data": bytes([n % 256])}


def expected(number: int) -> list[tuple[str, Any]]:
    samples = entries([], number)
    return [(tag, None if values is None else [values] if values["number"] % 5 else []) for tag, values in samples]


def test_results_come_in_order_and_no_more_is_read_than_keeps_the_processes_busy(pool: StepPool) -> None:
    taken: list[int] = []
    results = pool.run(entries(taken, 50))
    found = [next(results)]
    assert 16 <= len(taken) <= 24
    found += results
    assert found == expected(50) and pool.cpu_seconds > 0


def test_whoever_wants_no_more_leaves_nothing_behind(pool: StepPool) -> None:
    for wanted in (1, 4, 6):
        results = pool.run(entries([], 50))
        assert list(itertools.islice(results, wanted)) == expected(50)[:wanted]
        results.close()
    assert list(pool.run(entries([], 9))) == expected(9)
    assert list(pool.run(entries([], 0))) == []


def test_work_that_nobody_wants_any_more_holds_up_what_comes_and_ends_nothing(pool: StepPool, monkeypatch) -> None:
    results = pool.run(entries([], 50))
    next(results)
    results.close()
    pool.start()
    asked, real = [False] * 3, StepProcess.wants_more.fget
    monkeypatch.setattr(StepProcess, "wants_more", property(lambda self: asked.pop() if asked else real(self)))
    assert list(pool.run(entries([], 9))) == expected(9) and not asked


def test_a_copy_has_no_process_yet(pool: StepPool) -> None:
    pool.start()
    copy = pickle.loads(pickle.dumps(pool))
    assert (copy.steps, copy.num_processes, copy.timeout_seconds) == (pool.steps, 2, 10.0)
    assert len(pickle.dumps(pool)) < 1000 and not copy._processes
    assert list(copy.digests) == ["preparing:keep"] == list(pool.digests)
    copy.close()


def test_what_a_source_raises_comes_after_all_before_it(pool: StepPool) -> None:
    def broken() -> Iterator[Entry]:
        yield from entries([], 11)
        raise ValueError("torn")

    found = []
    with pytest.raises(ValueError, match="torn"):
        for result in pool.run(broken()):
            found.append(result)
    assert found == expected(11)


def test_no_more_processes_are_started_than_there_are_batches_for(pool: StepPool) -> None:
    assert list(pool.run(entries([], 4))) == expected(4) and len(pool._processes) == 1
    assert list(pool.run(entries([], 9))) == expected(9) and len(pool._processes) == 2


def test_large_samples_pass_while_results_are_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither side waits for the other to read: what goes down and what comes up are each more than a socket holds."""
    pool = StepPool([function_step("map", "preparing:same")], 2, 30.0)
    monkeypatch.setattr("shardload.preparation.pool.BATCH_BYTES", 4 << 20)
    samples = [(str(number), {"number": number, "data": bytes(1 << 20)}) for number in range(12)]
    try:
        assert [(tag, result) for tag, result in pool.run(samples)] == [(tag, [values]) for tag, values in samples]
    finally:
        pool.close()
