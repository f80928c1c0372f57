"""Consumers that are ahead of, or behind, what they have asked for: look-ahead, deep queues, sequence packers."""

from __future__ import annotations

import collections
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardload
from shardload.errors import StateMismatchError

NUM_BATCHES = 63
"""Of 1,003 samples in batches of 16."""

Numbers = list[list[int]]


class Side:
    """One of the two paths, with the same words."""

    def __init__(self, path: Path, kind: str, *, seed: int = 5, batch_size: int = 16, **options: Any) -> None:
        dataset = shardload.open(path)
        if kind == "loader":
            settings: dict[str, Any] = {"shuffle": True, "seed": seed, "num_replicas": 1, "rank": 0, "tail": "short"}
            self.order: Any = shardload.ShardLoader(dataset, batch_size, **settings | options)
            self.batches: Any = self.order
        else:
            sampler = shardload.ShardSampler(dataset, 1, 0, seed=seed)
            self.order = sampler.batch_sampler(batch_size, tail="short")
            self.batches = DataLoader(dataset, batch_sampler=self.order, collate_fn=shardload.collate)


def ahead(batches: Any, depth: int) -> Iterator[tuple[int, list[int]]]:
    """Yields batches with their number in the iteration, always `depth` behind what was asked for."""
    waiting: collections.deque[tuple[int, Any]] = collections.deque()
    for number, batch in enumerate(batches):
        # The batch itself waits: its values must last as long.
        waiting.append((number, batch["number"]))
        while len(waiting) > depth:
            number, values = waiting.popleft()
            yield number, values.tolist()
    for number, values in waiting:
        yield number, values.tolist()


@pytest.fixture(scope="module")
def expected(numbers: Path) -> list[Numbers]:
    """The batches of three epochs."""
    side = Side(numbers, "loader", prefetch_batches=0)
    return [[batch["number"].tolist() for batch in side.batches] for _ in range(3)]


@pytest.mark.parametrize("kind", ["loader", "torch"])
@pytest.mark.parametrize("depth", [1, 40])
def test_consumers_that_look_ahead_say_how_far_they_are(
    numbers: Path, expected: list[Numbers], kind: str, depth: int
) -> None:
    """Accelerate and Lightning hold one batch back to know the last one; others fill a queue. state_at is for them."""
    for stop in (1, 2, 30, NUM_BATCHES - depth, NUM_BATCHES - 1, NUM_BATCHES):
        side = Side(numbers, kind)
        batches = ahead(side.batches, depth)
        trained = [next(batches)[1] for _ in range(stop)]
        state = json.loads(json.dumps(side.order.state_at(stop)))
        batches.close()
        again = Side(numbers, kind)
        again.order.load_state_dict(state)
        if stop < NUM_BATCHES:
            trained += [numbers for _, numbers in ahead(again.batches, depth)]
        assert trained == expected[0]
        # A resume that looks ahead, and is resumed again in the next epoch: counted from that epoch's start.
        later = ahead(again.batches, depth)
        assert [next(later)[1] for _ in range(7)] == expected[1][:7]
        third = Side(numbers, kind)
        third.order.load_state_dict(again.order.state_at(7))
        assert [numbers for _, numbers in ahead(third.batches, depth)] == expected[1][7:]
        later.close()


def test_state_at_before_the_place_of_a_resume_is_refused(numbers: Path) -> None:
    """Nobody knows how the batches before it were cut."""
    side = Side(numbers, "loader")
    side.order.load_state_dict(Side(numbers, "loader").order.state_at(20))
    assert side.order.state_at(20) == side.order.state_dict()
    for number in (19, NUM_BATCHES + 1):
        with pytest.raises(ValueError, match="num_batches must be from 20 to 63"):
            side.order.state_at(number)


class Packer:
    """Puts samples of varying lengths one after the other, in rows of a fixed length; a row may span batches and epochs.

    Its state is that of the loader before the oldest batch of which it still holds something, and how many of the samples
    from there on it has used up, and how much of the next one.
    """

    ROW = 64

    def __init__(self, order: Any) -> None:
        self.order = order
        self._held: collections.deque[tuple[dict[str, str], list[list[int]]]] = collections.deque()
        self._used, self._offset = 0, 0

    def rows(self, epochs: int) -> Iterator[list[int]]:
        """Packs so many iterations; what is left at the end stays held."""
        row: list[int] = []
        for _ in range(epochs):
            before = self.order.state_dict()
            for batch in self.order:
                self._held.append((before, [self.tokens(number) for number in batch["number"].tolist()]))
                before = self.order.state_dict()
                while (row := self._take()) is not None:
                    yield row

    @staticmethod
    def tokens(number: int) -> list[int]:
        return [number] * (1 + number % 50)

    def _take(self) -> list[int] | None:
        samples = [tokens for _, batch in self._held for tokens in batch][self._used :]
        flat = [token for tokens in samples for token in tokens][self._offset :]
        if len(flat) < self.ROW:
            return None
        left = self.ROW + self._offset
        for tokens in samples:
            if left < len(tokens):
                break
            left -= len(tokens)
            self._used += 1
        self._offset = left
        while self._held and self._used >= len(self._held[0][1]):
            self._used -= len(self._held.popleft()[1])
        return flat[: self.ROW]

    def state(self) -> dict[str, Any]:
        state = self._held[0][0] if self._held else self.order.state_dict()
        return {"loader": state, "used": self._used, "offset": self._offset}

    def load(self, state: dict[str, Any]) -> None:
        self.order.load_state_dict(state["loader"])
        self._used, self._offset = state["used"], state["offset"]


@pytest.mark.parametrize("tail", ["drop", "short", "carry"])
def test_a_packer_that_holds_a_part_of_a_sequence(numbers: Path, tail: str) -> None:
    def packer() -> Packer:
        return Packer(Side(numbers, "loader", batch_size=50, tail=tail, prefetch_batches=0).order)

    whole = list(packer().rows(2))
    assert len(whole) > 700
    state, rows = packer().state(), []
    # An epoch has 25,506 tokens, or up to 150 less: its last row, which the next epoch fills up, is the 397th to 399th.
    for stop in [1, 2, 17, 200, *range(390, 405), 555, len(whole)]:
        one = packer()
        one.load(json.loads(json.dumps(state)))
        batches = one.rows(3)
        rows += [next(batches) for _ in range(stop - len(rows))]
        state = one.state()
        batches.close()
        assert rows == whole[:stop], stop


@pytest.mark.parametrize("kind", ["loader", "torch"])
def test_every_other_state_is_refused_by_both_values(numbers: Path, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "other"
    with shardload.ShardWriter(other, {"number": "int64"}) as writer:
        for i in range(1003):
            writer.write({"number": i + 1})
    side = Side(numbers, kind)
    before = side.order.state_dict()
    fingerprints = [shardload.open(path).fingerprint for path in (other, numbers)]
    with pytest.raises(StateMismatchError) as error:
        side.order.load_state_dict(Side(other, kind).order.state_at(4))
    assert all(fingerprint in str(error.value) for fingerprint in fingerprints)
    with pytest.raises(StateMismatchError, match=r"seed 6\b.* has 5\b"):
        side.order.load_state_dict(Side(numbers, kind, seed=6).order.state_at(4))
    for nothing in ({}, {"shardload": 5}, {"shardload": ""}, {"shardload": "{}"}, {"shardload": "[]"}, None, "state"):
        with pytest.raises(StateMismatchError):
            side.order.load_state_dict(nothing)
    assert side.order.state_dict() == before


@pytest.mark.parametrize("kind", ["loader", "torch"])
def test_global_generators_neither_move_the_order_nor_are_moved(numbers: Path, expected, kind: str) -> None:
    """So that a validation, or a save, in mid-epoch changes nothing."""
    side = Side(numbers, kind)
    batches = iter(side.batches)
    seen = []
    for number in range(NUM_BATCHES):
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        marks = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        seen.append(next(batches)["number"].tolist())
        if number == 9:
            validation = Side(numbers, "loader", seed=77)
            assert sum(len(batch["number"]) for batch in validation.batches) == 1003
            side.order.state_dict()
        assert marks == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert seen == expected[0]
