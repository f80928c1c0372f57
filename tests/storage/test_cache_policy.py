"""What stays in a cache that is too small: hardly less than what would stay if one could choose with all knowledge."""

from __future__ import annotations

import functools
import heapq
import itertools
import time

import numpy as np

from shardload.storage.cache import Cache
from shardload.storage.slots import BLOCK_BYTES, MIN_LIMIT_BYTES, Geometry, key_of

SLOTS = Geometry.within(MIN_LIMIT_BYTES).num_sets * 512
KEY = key_of(b"k" * 32, 1 << 30)
WINDOW = 64


def best_hits(sequence: np.ndarray, num_slots: int) -> np.ndarray:
    """Which reads of a sequence hit where what is needed last gives way (Belady, 1966): bool of shape (reads,)."""
    following, last = np.full(len(sequence), 1 << 60), {}
    for i in range(len(sequence) - 1, -1, -1):
        following[i] = last.get(sequence[i], 1 << 60)
        last[sequence[i]] = i
    held: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    hits = np.zeros(len(sequence), dtype=np.bool_)
    for i, block in enumerate(sequence.tolist()):
        hits[i] = block in held
        held[block] = int(following[i])
        heapq.heappush(heap, (-held[block], block))
        while len(held) > num_slots:
            key, other = heapq.heappop(heap)
            if held.get(other) == -key:
                del held[other]
    return hits


class Replay:
    """Reads blocks through a cache, a window at a time; with or without a word on when they are needed again."""

    def __init__(self, cache: Cache, job: int, sequence: np.ndarray, num_positions: int, told: bool = True) -> None:
        self.cache, self.job, self.sequence, self.told = cache, job, sequence, told
        self.num_positions = num_positions
        self.following = np.full(len(sequence), 1 << 50)
        last: dict[int, int] = {}
        for i in range(len(sequence) - 1, -1, -1):
            self.following[i] = last.get(sequence[i], 1 << 50)
            last[sequence[i]] = i
        self.hits = np.zeros(len(sequence), dtype=np.bool_)

    def read(self, first: int, stop: int) -> None:
        for low in range(first, stop, WINDOW):
            part = slice(low, min(low + WINDOW, stop))
            blocks = self.sequence[part]
            starts, keys = blocks * BLOCK_BYTES, np.tile(KEY, (len(blocks), 1))
            if self.told:
                self.cache.tell(self.job, low, self.num_positions)
                self.cache.expect(
                    keys, starts, starts + BLOCK_BYTES, np.arange(part.start, part.stop), self.following[part]
                )
            targets = list(np.empty((len(blocks), BLOCK_BYTES), dtype=np.uint8))
            lost = [number for number, _, _ in self.cache.read(keys, starts, targets)]
            self.hits[part] = True
            self.hits[low + np.array(lost, dtype=int)] = False
            if lost:
                pieces = [np.full(BLOCK_BYTES, block % 251, dtype=np.uint8) for block in blocks[lost].tolist()]
                self.cache.write(keys[lost], starts[lost], pieces)


def epochs_of(num: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.concatenate([rng.permutation(num) for _ in range(count)])


def test_a_cache_of_half_the_data_hits_as_often_as_is_possible_less_five_points_also_over_the_epochs_edge(tmp_path):
    num = 2 * SLOTS
    sequence = epochs_of(num, 4)
    replay = Replay(Cache(str(tmp_path / "cache"), MIN_LIMIT_BYTES), 7, sequence, num)
    replay.read(0, 3 * num)
    best = best_hits(sequence, SLOTS)
    for epoch in (1, 2):
        mine = slice(epoch * num, (epoch + 1) * num)
        assert replay.hits[mine].mean() >= best[mine].mean() - 0.05
    edge = slice(2 * num - num // 8, 2 * num + num // 8)
    assert replay.hits[edge].mean() >= best[edge].mean() - 0.05


def test_without_a_word_on_the_order_what_was_used_last_stays(tmp_path, monkeypatch):
    # Last uses are noted to a tenth of a second: on a fast machine all reads would be at one time.
    monkeypatch.setattr(time, "time", functools.partial(next, itertools.count(1.7e9, 0.002)))
    # Most reads go to a few blocks: those have to stay though all others pass through.
    rng = np.random.default_rng(5)
    often, seldom = rng.integers(0, SLOTS // 8, 9 * SLOTS), rng.integers(SLOTS, 50 * SLOTS, 9 * SLOTS)
    sequence = np.where(rng.random(9 * SLOTS) < 0.5, often, seldom)
    replay = Replay(Cache(str(tmp_path / "cache"), MIN_LIMIT_BYTES), 7, sequence, 1, told=False)
    replay.read(0, len(sequence))
    late = np.arange(len(sequence)) > 4 * SLOTS
    assert replay.hits[late & (sequence < SLOTS)].mean() > 0.9


def test_what_another_job_reads_does_not_drive_out_what_is_needed_soon(tmp_path):
    cache = Cache(str(tmp_path / "cache"), MIN_LIMIT_BYTES)
    num = SLOTS // 2
    first = Replay(cache, 7, epochs_of(num, 3), num)
    first.read(0, num)
    second = Replay(cache, 8, np.arange(num, num + 4 * SLOTS), 4 * SLOTS)
    second.read(0, 2 * SLOTS)
    first.read(num, 2 * num)
    assert first.hits[num : 2 * num].mean() > 0.9
