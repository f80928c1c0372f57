"""Block shuffle in loaders: the same order on both paths, exact resume, and each window announced as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import shardload
from shardload.loader.ahead import Ahead
from shardload.loader.hints import Carried, Hints
from shardload.order.blocks import Blocked
from shardload.order.cursor import Partition, by_window, rank_batches

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
        list(shardload.ShardLoader(dataset, 12, shuffle=wide, seed=3, tail="short", num_threads=0))
    else:
        sampler = shardload.ShardSampler(dataset, shuffle=wide, seed=3)
        list(
            torch.utils.data.DataLoader(dataset, batch_sampler=sampler.batch_sampler(12), collate_fn=shardload.collate)
        )
    announced: set[int] = set()
    for kind, ids in events:
        if kind == "hint":
            announced |= set(ids)
        else:
            assert set(ids) <= announced
    hints = [ids for kind, ids in events if kind == "hint"]
    assert len(hints) >= 6
    orders, stop = Blocked(1003, wide), 0
    for ids in hints[:5]:
        # Each window whole, and nothing else: also of the batches that lie across two of them.
        start, stop = stop, orders.window_end(0, 3)(stop)
        assert sorted(ids) == sorted(orders.order(0, 3)(np.arange(start, stop)).tolist())


@pytest.mark.parametrize("batch_size, num_replicas", [(1, 1), (7, 1), (10, 3), (64, 1), (400, 2)])
@pytest.mark.parametrize("tail", ["drop", "short", "pad", "mask"])
def test_batches_and_samples_come_once_each_in_the_window_that_they_are_in(batch_size, num_replicas, tail):
    orders, partition = Blocked(503, SIZES), Partition(503, batch_size, num_replicas, tail)
    end = orders.window_end(2, 3)
    for rank in range(num_replicas):
        for cursor in (0, 130):
            batches = list(rank_batches(partition, rank, cursor, orders.order(2, 3)))
            windows = list(by_window(iter(batches), end))
            assert [batch for window in windows for batch in window.batches] == batches
            announced = [i for window in windows for part in window.parts for i in part.sample_ids.tolist()]
            assert sorted(announced) == sorted(i for batch in batches for i in batch.sample_ids.tolist())
            for window in windows[:-1] if batch_size * num_replicas < 50 and tail in ("drop", "short") else ():
                stop = end(int(window.batches[0].positions[0]))
                assert {end(i) for part in window.parts for i in part.positions.tolist()} == {stop}


def hinted(hints, epoch, num_samples, batch_size):
    """Returns what is announced in an epoch, as turn and positions, and after how many batches."""
    partition, ends = Partition(num_samples, batch_size, 1, "short"), lambda position: position // 40 * 40 + 40
    batches, after = (rank_batches(partition, 0, 0, lambda positions: positions) for _ in range(2))
    found = []
    for number, _ in enumerate(hints.batches(batches, after, (ends, ends), epoch)):
        told = (hint for hint in hints.take() if not hint.rows)
        found += [(number, hint.turn, np.concatenate(hint.ids).tolist()) for hint in told]
    return found


def test_the_first_window_of_the_next_epoch_is_announced_in_the_last_one():
    carried, windows = Carried(), [list(range(start, start + 40)) for start in (0, 40, 80)]
    for epoch in range(2):
        own = [(2, epoch, windows[1]), (5, epoch, windows[2])]
        # The first one is on its way from the epoch before, except for the first epoch.
        wanted = [(0, 0, windows[0])] * (not epoch) + own + [(9, epoch + 1, windows[0])]
        assert hinted(Hints(Ahead(4, 8, True), carried), epoch, 120, 9) == wanted
    # From a disk it is announced in any case: meanwhile others may have had the memory.
    near = hinted(Hints(Ahead(4, 8), carried), 2, 120, 9)
    assert [(turn, ids) for _, turn, ids in near] == [(2, ids) for ids in windows] + [(3, windows[0])]


def test_an_epoch_that_is_one_window_keeps_it_for_two():
    carried = Carried()
    for epoch in range(2):
        wanted = [(0, 0, list(range(40)))] * (not epoch) + [(4, epoch + 2, list(range(40)))]
        assert hinted(Hints(Ahead(4, 8, True), carried), epoch, 40, 5) == wanted
