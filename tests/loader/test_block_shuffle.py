"""Block shuffle in loaders: the same order on both paths, exact resume, and each window announced as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import shardload
from shardload.order.blocks import Blocked

SIZES = shardload.BlockShuffle(10, 5)


def expected(epoch: int) -> list[int]:
    return Blocked(1003, SIZES).order(epoch, 3)(np.arange(1003)).tolist()


@pytest.mark.parametrize("how", [{}, {"prefetch_batches": 0}, {"num_threads": 0}, {"helper_process": True}], ids=str)
def test_a_loader_gives_the_order(numbers, how):
    loader = shardload.ShardLoader(shardload.open(numbers), 8, shuffle=SIZES, seed=3, tail="short", **how)
    for epoch in range(2):
        assert [i for batch in loader for i in batch["number"].tolist()] == expected(epoch)


def test_ranks_and_a_resume_at_another_size(numbers):
    def loader(rank, num_replicas, batch_size):
        how = {"rank": rank, "num_replicas": num_replicas}
        return shardload.ShardLoader(shardload.open(numbers), batch_size, shuffle=SIZES, seed=3, tail="short", **how)

    loaders = [loader(rank, 3, 4) for rank in range(3)]
    iterators, ids = [iter(one) for one in loaders], []
    for _ in range(7):
        parts = [next(iterator)["number"].tolist() for iterator in iterators]
        ids += [part[i] for i in range(4) for part in parts]
    state = loaders[0].state_dict()
    assert all(one.state_dict() == state for one in loaders)
    again = loader(0, 1, 13)
    again.load_state_dict(state)
    ids += [i for batch in again for i in batch["number"].tolist()]
    assert ids == expected(0)
    for one in loaders:
        one.close()


def test_a_dataloader_gives_the_order(numbers):
    dataset = shardload.open(numbers)
    sampler = shardload.ShardSampler(dataset, shuffle=SIZES, seed=3)
    batches = torch.utils.data.DataLoader(dataset, batch_sampler=sampler.batch_sampler(8), collate_fn=shardload.collate)
    assert [i for batch in batches for i in batch["number"].tolist()] == expected(0)


def test_states_name_it(numbers):
    dataset = shardload.open(numbers)
    state = shardload.ShardLoader(dataset, 8, shuffle=SIZES).state_dict()
    assert "block(10x5)" in state["shardload"]
    for shuffle in (True, False, "block", shardload.BlockShuffle(10, 6)):
        with pytest.raises(shardload.StateMismatchError, match="shuffle"):
            shardload.ShardLoader(dataset, 8, shuffle=shuffle).load_state_dict(state)
    usual = shardload.ShardLoader(dataset, 8, shuffle="block")
    usual.load_state_dict(shardload.ShardLoader(shardload.open(numbers), 8, shuffle="block").state_dict())


@pytest.mark.parametrize("path", ["loader", "sampler"])
def test_windows_are_announced_whole_before_their_first_batch(numbers, monkeypatch, path):
    events: list[tuple[str, list[int]]] = []
    plain_read = shardload.ShardDataset.read_batches

    def hint(self, ids, fields=None, *, rows_announced=False, uses=None):
        events.append(("hint", ids.tolist()))

    def read(self, batches, buffers, fields):
        events.extend(("read", ids.tolist()) for ids in batches)
        return plain_read(self, batches, buffers, fields)

    monkeypatch.setattr(shardload.ShardDataset, "will_need", hint)
    monkeypatch.setattr(shardload.ShardDataset, "read_batches", read)
    dataset, wide = shardload.open(numbers), shardload.BlockShuffle(50, 4)
    if path == "loader":
        list(shardload.ShardLoader(dataset, 10, shuffle=wide, seed=3, tail="short", num_threads=0))
    else:
        sampler = shardload.ShardSampler(dataset, shuffle=wide, seed=3)
        list(
            torch.utils.data.DataLoader(dataset, batch_sampler=sampler.batch_sampler(10), collate_fn=shardload.collate)
        )
    announced: set[int] = set()
    for kind, ids in events:
        if kind == "hint":
            announced |= set(ids)
        else:
            assert set(ids) <= announced
    hints = [ids for kind, ids in events if kind == "hint"]
    assert len(hints) >= 6
    for ids in hints:
        # Whole blocks but for the batches that lie across two windows: at random there would be hardly two neighbours.
        runs = 1 + int((np.diff(np.sort(ids)) > 1).sum())
        assert runs <= wide.window_blocks + 20, (len(ids), runs)
