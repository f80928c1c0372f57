"""Mixtures of token windows, whose ids differ by phase, and packed sequences of mixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardload
from shardload.errors import StateMismatchError

LENGTH = 32


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two datasets of documents; item i of the first is i, and of the second 30,000 + i. Read only."""
    paths = []
    for number, count in enumerate((80, 50)):
        path, start = tmp_path_factory.mktemp("streams") / "dataset", 30_000 * number
        rng = np.random.default_rng(number)
        with shardload.ShardWriter(path, {"tokens": "uint16[*]"}, shard_size="8KiB") as writer:
            for length in rng.integers(1, 200, count):
                writer.write({"tokens": np.arange(start, start + length, dtype=np.uint16)})
                start += length
        paths.append(path)
    return paths


def windows(streams: list[Path]) -> dict[str, Any]:
    return {
        f"stream {i}": shardload.TokenWindows(shardload.open(path), "tokens", LENGTH) for i, path in enumerate(streams)
    }


def make(source: Any, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {"batch_size": 16, "shuffle": True, "num_replicas": 1, "rank": 0, "tail": "short"}
    return shardload.ShardLoader(source, **settings | options)


def test_windows_of_two_streams(streams: list[Path]) -> None:
    sources = windows(streams)
    mixture = shardload.Mixture(
        {name: (one, 3 - i) for i, (name, one) in enumerate(sources.items())}, stop="all_exhausted"
    )
    counts = [len(one) for one in sources.values()]
    loader = make(mixture, with_ids=True)
    firsts: list[list[int]] = [[], []]
    for _ in range(2):
        for batch in loader:
            inputs = batch["input_ids"]
            assert torch.equal(batch["labels"][:, :-1], inputs[:, 1:])
            assert torch.equal((inputs[:, 0] >= 30_000).long(), batch["_source"])
            for source, first, sample_id in zip(*(batch["_source"], inputs[:, 0], batch["_sample_id"]), strict=True):
                firsts[source].append(int(first) - 30_000 * int(source))
                assert mixture.locate(int(sample_id))[0] == mixture.names[source]
    for number, (found, count) in enumerate(zip(firsts, counts, strict=True)):
        # Each pass has every window once, all at the phase of that pass.
        for start in range(0, len(found) - count + 1, count):
            places = np.sort(np.array(found[start : start + count]))
            assert (np.diff(places) == LENGTH).all(), number
    batches = shardload.ShardSampler(mixture, 1, 0).batch_sampler(16)
    for _ in range(2):
        loaded = DataLoader(mixture, batch_sampler=batches, collate_fn=shardload.collate)
        again = make(mixture)
        again.set_epoch(_)
        for got, want in zip(loaded, again, strict=True):
            assert torch.equal(got["input_ids"], want["input_ids"])


def test_an_index_is_a_window_as_its_source_has_it(streams: list[Path]) -> None:
    """Whatever other ids there are, of windows that are moved: loaders of torch's own go by the length alone."""
    sources = [
        shardload.TokenWindows(shardload.open(path), "tokens", LENGTH, phase=phase)
        for path, phase in zip((*streams, streams[0]), ("epoch", "epoch", "fixed"), strict=True)
    ]
    mixture = shardload.Mixture({f"stream {i}": (one, 1) for i, one in enumerate(sources)}, stop="all_exhausted")
    listed = [(i, number, window) for i, one in enumerate(sources) for number, window in enumerate(one)]
    assert len(mixture) == len(listed) < mixture.num_ids
    for index, (got, (i, number, want)) in enumerate(zip(mixture, listed, strict=True)):
        assert np.array_equal(got["input_ids"], want["input_ids"])
        assert mixture.locate(index) == mixture.locate(index - len(mixture)) == (f"stream {i}", number)
    for source in (mixture, sources[0]):
        with pytest.raises(ValueError, match="mixes or moves them"):
            shardload.scan(source, 16, 1, 0)
    located = [mixture.locate(i) for i in range(mixture.num_ids)]
    assert sorted(located) == [(f"stream {i}", own) for i, one in enumerate(sources) for own in range(one.num_ids)]
    for batch in make(mixture, with_ids=True):
        for source, first, i in zip(batch["_source"], batch["input_ids"][:, 0], batch["_sample_id"], strict=True):
            name, own = mixture.locate(int(i))
            assert name == mixture.names[source] and sources[source][own]["input_ids"][0] == first
    with pytest.raises(IndexError, match=f"there are {len(mixture)}"):
        mixture[mixture.num_ids]


def test_packed_sequences_of_a_mixture_keep_its_weights(streams: list[Path]) -> None:
    def packed(*weights: float) -> shardload.ShardLoader:
        sources = [(shardload.open(path), weight) for path, weight in zip(streams, weights, strict=True)]
        mixture = shardload.Mixture({"a": sources[0], "b": sources[1]}, stop="repeat", num_samples=120)
        return make(shardload.PackedSequences(mixture, "tokens", 256), batch_size=4)

    loader = packed(3, 1)
    seen = [int((batch["tokens"] >= 30_000).sum()) for batch in loader]
    assert sum(seen) and loader.stats().num_source_samples == {"a": 90, "b": 30}
    state = packed(3, 1).state_at(2)
    again = packed(3, 1)
    again.load_state_dict(state)
    assert [int((batch["tokens"] >= 30_000).sum()) for batch in again] == seen[2:]
    with pytest.raises(StateMismatchError, match=r"in \[3, 1\].*in \[1, 1\]"):
        packed(1, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="reweigh=True"):
        packed(1, 1).load_state_dict(state, reweigh=True)
