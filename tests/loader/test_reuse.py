"""`reuse=True`: batches are right while they are at hand, and keeping them takes no memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loader.test_decode import encoded, pixels_of

import shardload
from shardload.loader.collate import take_back
from shardload.memory import BufferPool

COUNT = 120


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of every kind of tensor, each of which tells its number. Read only."""
    path = tmp_path_factory.mktemp("reuse") / "set"
    schema = {"number": "int64", "big": "uint32[1500]", "items": "uint16[*]", "image": "png", "score": "float32?"}
    with shardload.ShardWriter(path, schema) as writer:
        for i in range(COUNT):
            values = {"number": i, "big": np.full(1500, i, np.uint32), "items": np.full(i % 7 * 100, i, np.uint16)}
            writer.write(values | {"image": encoded(pixels_of(i % 25)), "score": None if i % 3 == 0 else i})
    return path


def make(path: Path, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {
        "batch_size": 8,
        "shuffle": True,
        "reuse": True,
        "with_ids": True,
        "prefetch_batches": 3,
    }
    settings["decode"] = {"image": shardload.ImageDecode(16)}
    return shardload.ShardLoader(shardload.open(path), **settings | options)


def check(batch: dict[str, Any]) -> None:
    for slot, i in enumerate(batch["_sample_id"].tolist()):
        assert batch["number"][slot] == i and (batch["big"][slot] == i).all()
        assert len(batch["items"][slot]) == i % 7 * 100 and (batch["items"][slot] == i).all()
        assert batch["score"][slot] == (0 if i % 3 == 0 else i)
        assert torch.equal(
            batch["image"][slot], torch.from_numpy(shardload.ImageDecode(16)(encoded(pixels_of(i % 25)), None))
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefetch_batches": 0},
        {"num_threads": 3},
        {"device": "cpu"},
        {"dtypes": {"big": torch.int32}},
        {"transform": dict, "fields": ["number", "big"], "decode": None},
        {"collate_fn": shardload.collate},
        {"on_error": "mask"},
    ],
    ids=" ".join,
)
def test_batches_are_right_while_they_are_at_hand(written: Path, options: dict[str, Any]) -> None:
    loader, kept = make(written, **options), []
    for _ in range(3):
        for batch in loader:
            if "image" in batch:
                check(batch)
            assert torch.equal(batch["number"], batch["_sample_id"])
            assert torch.equal(batch["big"][:, 0].long(), batch["number"])
            kept.append(batch)
    assert len(kept) == 3 * COUNT // 8
    loader.close()


def test_kept_batches_take_no_new_memory(written: Path) -> None:
    """The same with batches that are dropped at once, and without the option every batch takes its own."""
    new = {}
    for reuse in (True, False):
        loader = make(written, reuse=reuse, prefetch_bytes="4MiB", batch_transform=lambda batch: batch)
        with warnings.catch_warnings():
            warnings.simplefilter("error" if reuse else "ignore")
            kept = [batch for _ in range(10) for batch in loader]
        new[reuse] = loader.stats().num_buffers_new
        # All but what the last batch of each epoch holds has come back, though everything is still held.
        assert not reuse or loader.stats().leased_bytes <= 10 * 200_000
        assert len(kept) == 150
        loader.close()
    assert new[False] > 4 * 150 > 4 * new[True]


def test_a_batch_stays_until_the_next_is_given(written: Path) -> None:
    loader = make(written)
    *_, batch = loader
    check(batch)
    batches = iter(loader)
    first = next(batches)
    check(batch)
    check(first)
    next(batches)
    third = next(batches)
    loader.close()
    check(third)
    with pytest.raises(shardload.LoaderClosedError):
        next(batches)
    check(batch)
    check(third)


def test_tensors_that_share_memory_give_it_back_once() -> None:
    """Inputs and labels as two views of one tensor: by the second, the memory may be another batch's already."""
    taken: list[np.ndarray] = []

    class Greedy(BufferPool):
        """As if another thread leased what comes back the moment it does."""

        def _give_back(self, *arguments: Any) -> None:
            super()._give_back(*arguments)
            if len(taken) < 3:
                taken.append(self.lease((8, 9), np.dtype(np.int64)))

    pool = Greedy(1 << 20, strict=True)
    tokens = torch.from_numpy(pool.lease((8, 9), np.dtype(np.int64)))
    batch = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:], "both": (tokens, [tokens[0], None, "text"])}
    take_back(batch, pool)
    assert len(taken) == 1 and pool.leased_bytes == 4096
    assert taken[0].__array_interface__["data"][0] == tokens.data_ptr()


def test_batches_of_views_are_right(written: Path) -> None:
    loader = make(
        written, fields=["big"], decode=None, prefetch_batches=4, num_threads=2,
        batch_transform=lambda batch: (batch["big"][:, :-1], batch["big"][:, 1:]), with_ids=False, batch_size=2,
    )  # fmt: skip
    seen = []
    for _ in range(3):
        for inputs, labels in loader:
            assert torch.equal(inputs[:, 1:], labels[:, :-1])
            assert (inputs == inputs[:, :1]).all()
            seen += inputs[:, 0].tolist()
    assert sorted(seen) == sorted([*range(COUNT)] * 3)
    loader.close()


def test_what_is_not_leased_is_let_alone(written: Path) -> None:
    """Sparse tensors do not tell where their memory is, and a batch may be anything."""
    sparse, own = torch.eye(3).to_sparse(), torch.arange(3)
    makers = [
        lambda batch: {"number": batch["number"], "sparse": sparse, "own": own, "empty": torch.empty(0), "none": None},
        lambda batch: batch["number"],
        lambda batch: "text",
        lambda batch: [batch, {"deep": (batch["number"],)}],
    ]
    for maker in makers:
        loader = make(written, batch_transform=maker, with_ids=False, fields=["number"], decode=None)
        assert len(list(loader)) == 15
        loader.close()
    assert own.tolist() == [0, 1, 2]
