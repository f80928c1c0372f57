"""One cache filled by several processes, some of them killed: exact bytes for all others, and never more than the limit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from storage.stored import NotedStorage, noise

from shardload.storage.cached import CachedStorage
from shardload.storage.slots import MIN_LIMIT_BYTES

NAMES = [f"shards/{letter}" for letter in "abc"]
SIZE = 5 << 20
FILES = {name: noise(SIZE, seed) for seed, name in enumerate(NAMES)}
WAIT_SECONDS = 60.0


def read_at_random(directory: Path, seed: int, num_reads: int) -> None:
    """Reads ranges through the cache, and compares them."""
    storage = CachedStorage(NotedStorage(FILES), str(directory), MIN_LIMIT_BYTES)
    files = {name: storage.open(name, SIZE, name.encode() * 4) for name in NAMES}
    rng = random.Random(seed)
    for _ in range(num_reads):
        name, size = rng.choice(NAMES), rng.choice([128, 4096, 50_000, 200_000])
        start = rng.randrange(SIZE - size)
        assert files[name].read(start, start + size) == FILES[name][start : start + size]
    stats = storage.cache.stats
    # Between processes that take the same slot at the same time blocks get lost, seldom.
    assert stats.num_failures == 0 and stats.num_damaged <= 0.05 * stats.num_hits + 20


def forked(directory: Path, seed: int, num_reads: int) -> int:
    """Starts a process that does so; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        read_at_random(directory, seed, num_reads)
        status = 0
    finally:
        os._exit(status)


def ended(child: int) -> bool:
    """Whether a process has ended: it is reaped then, and must have done so well, unless it was killed."""
    number, status = os.waitpid(child, os.WNOHANG)
    assert number == 0 or os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return number != 0


def disk_bytes(directory: Path) -> int:
    total = 0
    for path in directory.glob("*"):
        # A ledger that is being made has another name for a moment.
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def run_together(directory: Path, children: set[int], kill_after: float) -> None:
    """Waits until processes are done, one of them killed after a while; looks at the disk meanwhile."""
    began, victim = time.monotonic(), min(children)
    while children:
        assert disk_bytes(directory) <= MIN_LIMIT_BYTES
        assert time.monotonic() - began < WAIT_SECONDS
        if victim in children and time.monotonic() - began > kill_after:
            os.kill(victim, signal.SIGKILL)
        children -= {child for child in list(children) if ended(child)}


@pytest.mark.parametrize("locks", [True, False])
def test_four_processes_fill_one_small_cache_and_one_is_killed(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr("fcntl.flock", lambda descriptor, how: None)
    directory = tmp_path / "cache"
    run_together(directory, {forked(directory, seed, 150) for seed in range(4)}, 0.3)
    read_at_random(directory, 9, 20)
    names = {path.name for path in directory.iterdir()}
    assert len(names) == 4, names


@pytest.mark.slow
def test_fifty_rounds_of_starts_and_kills_leave_nothing_that_a_start_trips_over(tmp_path):
    directory, rng = tmp_path / "cache", random.Random(os.environ.get("SHARDLOAD_SEED", 1))
    for number in range(50):
        children = {forked(directory, 100 * number + rank, 10_000) for rank in range(4)}
        # Also while they start: of the first round the directory is being made.
        time.sleep(rng.random() * (0.05 if number % 2 else 1.0))
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
        assert disk_bytes(directory) <= MIN_LIMIT_BYTES
        read_at_random(directory, number, 5)
    assert len([path for path in directory.iterdir() if path.suffix != ".tmp"]) == 4


def test_a_damaged_table_of_jobs_changes_no_byte(tmp_path):
    directory = tmp_path / "cache"
    read_at_random(directory, 1, 30)
    (jobs,) = directory.glob("jobs-*")
    jobs.write_bytes(np.random.default_rng(0).bytes(jobs.stat().st_size))
    read_at_random(directory, 2, 30)
