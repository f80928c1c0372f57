"""Scans: each sample once, in order, whatever the ranks and batches; and on from where a state was saved."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import mixed_sample, same

import shardload


def numbers_of(scan: Any) -> list[list[int]]:
    return [batch["number"].tolist() for batch in scan]


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 64, 5000])
def test_ranks_have_ranges_that_are_all_samples(numbers: Path, num_replicas: int, batch_size: int) -> None:
    if batch_size == 1 and num_replicas > 2:
        return
    dataset, everything, sizes = shardload.open(numbers), [], set()
    for rank in range(num_replicas):
        with shardload.scan(dataset, batch_size, num_replicas, rank, with_ids=True) as scan:
            found = []
            for batch in scan:
                assert batch["number"].tolist() == batch["_sample_id"].tolist() == batch["_position"].tolist()
                assert not batch["_epoch"].any()
                found.append(batch["number"].tolist())
            assert len(found) == len(scan) and scan.remaining == 0
            assert all(len(batch) == batch_size for batch in found[:-1]) and all(found)
        everything += [i for batch in found for i in batch]
        sizes.add(sum(map(len, found)))
    assert everything == list(range(1003))
    assert max(sizes) - min(sizes) <= 1


def test_values_are_those_of_the_dataset(mixed: Path) -> None:
    position = 0
    for batch in shardload.scan(shardload.open(mixed), 37, fields=["number", "wide", "text", "facts"]):
        assert set(batch) == {"number", "wide", "text", "facts", "_valid_facts"}
        for i, number in enumerate(batch["number"].tolist()):
            want = mixed_sample(number)
            assert number == position
            assert same(batch["wide"][i].numpy(), want["wide"])
            assert batch["text"][i] == want["text"] and batch["facts"][i] == want["facts"]
            position += 1
    assert position == 500


def test_more_ranks_than_samples_and_no_samples(tmp_path: Path) -> None:
    for num_samples in (0, 2):
        with shardload.ShardWriter(tmp_path / f"{num_samples}", {"number": "int64"}) as writer:
            for i in range(num_samples):
                writer.write({"number": i})
        dataset = shardload.open(tmp_path / f"{num_samples}")
        found = [numbers_of(shardload.scan(dataset, 8, 5, rank)) for rank in range(5)]
        assert [i for batches in found for batch in batches for i in batch] == list(range(num_samples))
        assert all(batch for batches in found for batch in batches)


def test_views_and_several_datasets_are_scanned_in_their_own_order(numbers: Path) -> None:
    dataset = shardload.open(numbers)
    view = dataset.select([9, 3, 700, 4])
    assert numbers_of(shardload.scan(view, 3, 1, 0)) == [[9, 3, 700], [4]]
    both = shardload.concat([view, dataset[1000:]])
    found = [i for rank in range(2) for batch in numbers_of(shardload.scan(both, 4, 2, rank)) for i in batch]
    assert found == [9, 3, 700, 4, 1000, 1001, 1002]


def test_what_has_no_order_of_its_own_is_refused(numbers: Path, documents: Path) -> None:
    dataset, texts = shardload.open(numbers), shardload.open(documents)
    field = texts.field_list[0].name
    mixture = shardload.Mixture({"a": (dataset, 3), "b": (dataset[:10], 1)}, stop="repeat")
    windows = shardload.TokenWindows(texts, field, 16)
    assert len(shardload.scan(windows, len(windows), 1, 0)) == 1
    for other in (mixture, shardload.TokenWindows(texts, field, 16, phase="epoch")):
        with pytest.raises(ValueError, match=f"each sample once, in order, and {type(other).__name__} mixes or moves"):
            shardload.scan(other, 4, 1, 0)
    with pytest.raises(TypeError, match="not PackedSequences"):
        shardload.scan(shardload.PackedSequences(texts, field, 64), 4, 1, 0)


def test_transforms_are_keyed_by_sample(numbers: Path) -> None:
    def noisy(sample: dict, rng: np.random.Generator) -> dict:
        return {"number": sample["number"], "noise": rng.integers(1 << 40)}

    dataset, found = shardload.open(numbers), []
    for num_replicas in (1, 3):
        noise = {}
        for rank in range(num_replicas):
            for batch in shardload.scan(dataset, 100, num_replicas, rank, transform=noisy, seed=4):
                noise |= dict(zip(batch["number"].tolist(), batch["noise"].tolist(), strict=True))
        found.append(noise)
    assert found[0] == found[1] and len(set(found[0].values())) == 1003


@pytest.mark.parametrize("done", [0, 1, 3, 8])
def test_a_state_goes_on_with_the_next_sample_at_any_batch_size(numbers: Path, done: int) -> None:
    dataset = shardload.open(numbers)
    scan = shardload.scan(dataset, 64, 2, 1)
    batches = iter(scan)
    first = [i for _ in range(done) for i in next(batches)["number"].tolist()]
    state = scan.state_dict()
    again = shardload.scan(dataset, 50, 2, 1)
    again.load_state_dict(state)
    assert again.state_dict() == state and pickle.loads(pickle.dumps(again)).state_dict() == state
    remaining, batches_left = again.remaining, numbers_of(again)
    assert remaining == len(batches_left)
    # The first one ends where it would have ended, had there been batches of 50 from the start.
    assert all(batch[-1] % 50 == 0 for batch in batches_left[:-1])
    rest = [i for batch in batches_left for i in batch]
    assert first + rest == list(range(501, 1003))
    # What was finished stays finished; only a new pass begins anew.
    again.load_state_dict(again.state_dict())
    assert numbers_of(again) == []
    assert [i for batch in numbers_of(again) for i in batch] == list(range(501, 1003))
    scan.close()


def test_states_of_others_are_refused(numbers: Path, mixed: Path) -> None:
    state = shardload.scan(shardload.open(numbers), 64, 2, 1).state_dict()
    for path, num_replicas, rank in ((numbers, 2, 0), (numbers, 3, 1), (mixed, 2, 1)):
        with pytest.raises(shardload.StateMismatchError, match="saved with"):
            shardload.scan(shardload.open(path), 64, num_replicas, rank).load_state_dict(state)


def test_settings_that_cannot_be_are_refused(numbers: Path) -> None:
    dataset = shardload.open(numbers)
    for options in ({"batch_size": 0}, {"batch_size": 4, "rank": 1}, {"batch_size": 4, "fields": ["other"]}):
        with pytest.raises(ValueError):
            shardload.scan(dataset, **options)
    with pytest.raises(ValueError, match="rank"):
        len(shardload.scan(dataset, 4, 2))
    scan = shardload.scan(dataset, 4, 1, 0)
    old, new = iter(scan), iter(scan)
    next(new)
    with pytest.raises(shardload.LoaderClosedError):
        next(old)
    scan.close()
    with pytest.raises(shardload.LoaderClosedError, match="closed"):
        iter(scan)


def test_tensors_are_made_as_by_the_loader(mixed: Path) -> None:
    dataset = shardload.open(mixed)
    fields = ["number", "flag", "small", "half", "wide", "big", "score"]
    loader = shardload.ShardLoader(dataset, 50, shuffle=False, fields=fields, with_ids=True)
    for ours, theirs in zip(shardload.scan(dataset, 50, fields=fields, with_ids=True), loader, strict=True):
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            assert values.dtype == theirs[name].dtype
            assert torch.equal(values, theirs[name])
