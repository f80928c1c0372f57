"""The samplers: one order with the loader, right under torch's DataLoader with and without workers."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from samples import mixed_sample
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler
from transforms import draws_own

import shardload
from shardload.order import Permutation


def batches_of(sampler):
    return [list(batch) for batch in sampler]


def test_they_are_torchs_classes(numbers):
    sampler = shardload.ShardSampler(shardload.open(numbers))
    assert isinstance(sampler, DistributedSampler)
    assert isinstance(sampler.batch_sampler(4), BatchSampler)


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_sampler_batch_sampler_and_loader_give_identical_batches(numbers, replicas, drop_last, shuffle):
    dataset = shardload.open(numbers)
    for rank in range(replicas):
        options = {"num_replicas": replicas, "rank": rank, "shuffle": shuffle, "seed": 7, "drop_last": drop_last}
        sampler = shardload.ShardSampler(dataset, **options)
        batches = sampler.batch_sampler(10)
        plain = DataLoader(
            dataset, batch_size=10, sampler=shardload.ShardSampler(dataset, **options), drop_last=drop_last
        )
        loader = shardload.ShardLoader(dataset, 10, with_ids=True, **options)
        for _epoch in range(2):
            assert len(batches) == len(loader) == len(plain)
            want = [batch["_sample_id"].tolist() for batch in loader]
            assert batches_of(batches) == want
            assert [batch["number"].tolist() for batch in plain] == want


def test_sampler_is_torchs_distributed_sampler_in_all_but_the_order(numbers):
    """Lengths and what each rank is padded with follow torch's rule."""
    dataset = shardload.open(numbers)
    for replicas in (1, 2, 3, 7, 8):
        for drop_last in (True, False):
            for rank in range(replicas):
                ours = shardload.ShardSampler(dataset, replicas, rank, shuffle=False, drop_last=drop_last)
                torchs = DistributedSampler(range(1003), replicas, rank, shuffle=False, drop_last=drop_last)
                assert len(ours) == len(torchs)
                assert list(ours) == list(torchs)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_the_dataloader_holds_every_id_once(mixed, workers):
    dataset = shardload.open(mixed)
    batches = shardload.ShardSampler(dataset).batch_sampler(16)
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=shardload.collate, num_workers=workers, timeout=60 * bool(workers)
    )
    orders = []
    for epoch in range(2):
        ids = []
        for batch in loader:
            for slot, i in enumerate(batch["number"].tolist()):
                assert batch["text"][slot] == mixed_sample(i)["text"]
                assert batch["wide"][slot, 5] == i + 5
                ids.append(i)
        assert sorted(ids) == list(range(500))
        assert ids == Permutation(500, seed=0, epoch=epoch).sample_ids(np.arange(500)).tolist()
        orders.append(ids)
    assert orders[0] != orders[1]


def draw(sample, rng):
    return {"number": sample["number"], "draw": float(rng.random())}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_rng_is_equal_for_any_workers_and_the_loader(mixed, workers):
    """Persistent workers cannot hold a stale epoch: it travels with the ids."""
    dataset = shardload.open(mixed, fields=["number"], transform=draw)
    batches = shardload.ShardSampler(dataset, seed=3, drop_last=True).batch_sampler(50)
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0, timeout=60 * bool(workers)
    )
    ours = shardload.ShardLoader(dataset, 50, shuffle=True, seed=3)
    for _epoch in range(3):
        for left, right in zip(loader, ours, strict=True):
            assert torch.equal(left["draw"], right["draw"])
            assert torch.equal(left["number"], right["number"])
    del loader


def test_stock_dataloader_without_anything_of_ours(mixed):
    """A drop-in map-style dataset: default collate, torch's own sampler."""
    dataset = shardload.open(mixed, fields=["number", "text", "small", "wide"])
    numbers = []
    for batch in DataLoader(dataset, batch_size=32, shuffle=True):
        assert batch["wide"].shape[1:] == (256,)
        assert batch["small"].dtype == torch.float32
        numbers += batch["number"].tolist()
    assert sorted(numbers) == list(range(500))


def test_state_counts_batches_and_resumes_anywhere(numbers):
    dataset = shardload.open(numbers)
    want = batches_of(shardload.ShardSampler(dataset, drop_last=True).batch_sampler(16))
    sampler = shardload.ShardSampler(dataset, drop_last=True)
    batches = sampler.batch_sampler(16)
    stream = iter(batches)
    assert [next(stream) for _ in range(5)] == want[:5]
    assert batches.state_dict() == batches.state_at(5) == sampler.state_at(5, 16)
    # DataLoader workers ask ahead; what was trained on is told by state_at.
    state = json.loads(json.dumps(batches.state_at(3)))
    again = shardload.ShardSampler(dataset, drop_last=True).batch_sampler(16)
    again.load_state_dict(state)
    assert (len(again), again.remaining) == (62, 59)
    assert batches_of(again) == want[3:]
    loader = shardload.ShardLoader(dataset, 16, shuffle=True, with_ids=True)
    loader.load_state_dict(state)
    assert [batch["_sample_id"].tolist() for batch in loader] == want[3:]


def test_plain_sampler_resumes(numbers):
    dataset = shardload.open(numbers)
    for rank in range(3):
        want = list(shardload.ShardSampler(dataset, 3, rank))
        sampler = shardload.ShardSampler(dataset, 3, rank)
        stream = iter(sampler)
        assert [next(stream) for _ in range(100)] == want[:100]
        again = shardload.ShardSampler(dataset, 3, rank)
        again.load_state_dict(sampler.state_dict())
        assert list(again) == want[100:]


def test_set_epoch_twice_neither_skips_nor_repeats(numbers):
    sampler = shardload.ShardSampler(shardload.open(numbers))
    batches = sampler.batch_sampler(16)
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches.set_epoch(epoch)
        seen.append([i for batch in batches for i in batch])
    assert seen == [Permutation(1003, seed=0, epoch=e).sample_ids(np.arange(1003)).tolist() for e in range(3)]


def test_an_older_iterator_cannot_move_the_state(numbers):
    batches = shardload.ShardSampler(shardload.open(numbers)).batch_sampler(16)
    first = iter(batches)
    next(first)
    second = iter(batches)
    next(second)
    with pytest.raises(shardload.LoaderClosedError, match="newer"):
        next(first)


def test_pickle(numbers):
    sampler = shardload.ShardSampler(shardload.open(numbers))
    batches = sampler.batch_sampler(16)
    stream = iter(batches)
    for _ in range(3):
        next(stream)
    data = pickle.dumps(batches)
    assert len(data) < 64_000
    copy = pickle.loads(data)
    assert copy.state_dict() == batches.state_dict()


def test_batch_size_without_a_batch(numbers):
    with pytest.raises(ValueError, match="do not fill"):
        shardload.ShardSampler(shardload.open(numbers), drop_last=True).batch_sampler(2000)


@pytest.mark.parametrize("read_ahead", [0, 1, 5, 1000])
def test_reads_are_announced_ahead_and_change_nothing(mixed, monkeypatch, read_ahead):
    dataset = shardload.open(mixed)
    announced = []
    monkeypatch.setattr(type(dataset), "will_need", lambda self, ids, **_: announced.append(ids.tolist()))
    batches = shardload.ShardSampler(dataset).batch_sampler(16, read_ahead=read_ahead)
    want = batches_of(shardload.ShardSampler(dataset).batch_sampler(16, read_ahead=0))
    announced.clear()
    for i, batch in enumerate(batches):
        assert list(batch) == want[i]
        assert len(announced) == (min(len(want), i + 1 + read_ahead) if read_ahead else 0)
    assert announced == (want if read_ahead else [])


def test_announcing_reads_every_kind_of_field_and_tells_nothing_of_its_own(mixed, tmp_path):
    """A hint for samples that are not there is no error: the read is."""
    dataset = shardload.open(mixed)
    dataset.will_need(np.arange(500))
    copy = shutil.copytree(mixed, tmp_path / "copy")
    shutil.rmtree(copy / "shards")
    dataset = shardload.open(copy)
    batches = shardload.ShardSampler(dataset).batch_sampler(16)
    assert sum(map(len, batches)) == 500
    with pytest.raises(shardload.StorageError, match="missing"):
        dataset.__getitems__(next(iter(batches)))


def test_states_of_the_plain_sampler_and_of_batches_agree(numbers):
    """len stays that of the whole epoch after a resume, whichever state it comes from."""
    dataset = shardload.open(numbers)
    for replicas in (1, 2):
        sampler = shardload.ShardSampler(dataset, replicas, 0)
        whole = len(sampler)
        stream = iter(sampler)
        for _ in range(20):
            next(stream)
        for state in (sampler.state_dict(), sampler.state_at(2, 10)):
            again = shardload.ShardSampler(dataset, replicas, 0)
            again.load_state_dict(state)
            assert len(again) == whole
            assert len(DataLoader(dataset, batch_size=10, sampler=again)) == -(-whole // 10)
            batches = shardload.ShardSampler(dataset, replicas, 0).batch_sampler(10)
            batches.load_state_dict(state)
            assert len(batches) == -(-whole // 10)
            assert batches.remaining == len(batches) - 2
            # Counted from the epoch's start, also after the resume.
            assert json.loads(again.state_at(3, 10)["shardload"])["position"] == 30 * replicas


def test_state_at_keeps_the_short_last_batch(tmp_path):
    """With drop_last the sampler drops what does not fill the ranks; DataLoader still gives a short last batch."""
    with shardload.ShardWriter(tmp_path / "d", {"number": "int64"}) as writer:
        for i in range(10):
            writer.write({"number": i})
    dataset = shardload.open(tmp_path / "d")
    sampler = shardload.ShardSampler(dataset, 2, 1, drop_last=True)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler)
    want = [batch["number"].tolist() for batch in loader]
    assert [len(numbers) for numbers in want] == [2, 2, 1]
    for done in (1, 2):
        again = shardload.ShardSampler(dataset, 2, 1, drop_last=True)
        again.load_state_dict(sampler.state_at(done, 2))
        assert [b["number"].tolist() for b in DataLoader(dataset, batch_size=2, sampler=again)] == want[done:]
    assert json.loads(sampler.state_at(3, 2)["shardload"])["epoch"] == 1


def test_len_holds_while_workers_are_ahead(numbers):
    """The sampler is used up long before the training loop is; len is still that of the resumed epoch."""
    dataset = shardload.open(numbers)
    batches = shardload.ShardSampler(dataset, drop_last=True).batch_sampler(100)
    state = batches.state_at(4)
    resumed = shardload.ShardSampler(dataset, drop_last=True).batch_sampler(50)
    resumed.load_state_dict(state)
    loader = DataLoader(dataset, batch_sampler=resumed, collate_fn=shardload.collate, num_workers=2, timeout=60)
    for _batch in loader:
        assert len(loader) == 4 + 12


def test_an_older_iterators_end_does_not_end_the_newer(numbers):
    batches = shardload.ShardSampler(shardload.open(numbers), drop_last=True).batch_sampler(500)
    first = iter(batches)
    assert len(list(first)) == 2
    second = iter(batches)
    next(second)
    with pytest.raises(StopIteration):
        next(first)
    assert batches.remaining == 1


@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_stay_equal_when_a_resume_starts_anywhere(tmp_path, drop_last):
    """The plain sampler, from every cursor of ten samples, on another number of ranks: equal counts, and len is right."""
    with shardload.ShardWriter(tmp_path / "d", {"number": "int64"}) as writer:
        for i in range(10):
            writer.write({"number": i})
    dataset = shardload.open(tmp_path / "d")
    order = Permutation(10, seed=0, epoch=0).sample_ids(np.arange(10)).tolist()
    single = shardload.ShardSampler(dataset, 1, 0)
    for done in range(1, 10):
        for replicas in range(1, 10 - done + 1):
            ranks = [shardload.ShardSampler(dataset, replicas, rank, drop_last=drop_last) for rank in range(replicas)]
            for sampler in ranks:
                sampler.load_state_dict(single.state_at(done, 1))
            shares = [list(sampler) for sampler in ranks]
            assert len({len(share) for share in shares}) == 1
            ids = [i for share in shares for i in share]
            left = 10 - done
            if drop_last:
                assert sorted(ids) == sorted(order[done : done + left // replicas * replicas])
            else:
                assert set(ids) >= set(order[done:])


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_persistent_workers_hold_no_stale_epoch(numbers, method):
    """Three epochs without set_epoch: three orders and three augmentations, those of a loader's thread to the last bit."""
    options = {"shuffle": True, "seed": 3, "tail": "short"}
    own = shardload.ShardLoader(shardload.open(numbers, transform=draws_own), 59, num_replicas=1, rank=0, **options)
    dataset = shardload.open(numbers, transform=draws_own)
    batches = shardload.ShardSampler(dataset, 1, 0, seed=3).batch_sampler(59)
    workers = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context=method,
        timeout=60,
    )
    epochs = []
    for _ in range(3):
        rows = [list(zip(b["number"].tolist(), b["own"].tolist(), strict=True)) for b in workers]
        assert rows == [list(zip(b["number"].tolist(), b["own"].tolist(), strict=True)) for b in own]
        epochs.append([row for batch in rows for row in batch])
    for epoch in epochs:
        assert sorted(number for number, _ in epoch) == list(range(1003))
    orders = {tuple(number for number, _ in epoch) for epoch in epochs}
    draws = {tuple(draw for _, draw in sorted(epoch)) for epoch in epochs}
    assert len(orders) == len(draws) == 3


def test_pickles_do_not_grow_with_the_dataset(numbers, tmp_path):
    with shardload.ShardWriter(tmp_path / "one", {"number": "int64"}) as writer:
        writer.write({"number": 1})
    sizes = []
    for path in (numbers, tmp_path / "one"):
        sampler = shardload.ShardSampler(shardload.open(path), 1, 0)
        loader = shardload.ShardLoader(sampler.dataset, 1, shuffle=True)
        parts = (sampler.dataset, sampler, sampler.batch_sampler(1), loader)
        sizes.append([len(pickle.dumps(part)) for part in parts])
    assert all(abs(large - small) < 1024 and large < 64 << 10 for large, small in zip(*sizes, strict=True))


def test_a_rank_without_a_sample_is_told_what_to_do(numbers):
    """Torch's own collation asks for the first sample of a batch that has none."""
    dataset = shardload.open(numbers)
    batches = shardload.ShardSampler(dataset, 4, 3, shuffle=False).batch_sampler(125, tail="short")
    with pytest.raises(
        IndexError, match=r"no samples: with tail='short' .* use shardload.collate, or tail='mask' or 'pad'"
    ):
        list(DataLoader(dataset, batch_sampler=batches))
    assert len(list(DataLoader(dataset, batch_sampler=batches, collate_fn=shardload.collate))) == 3
