"""Samples that cannot be used: another one in their place, the same whoever looks for it, and nothing else changes."""

from __future__ import annotations

import errno
import itertools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import FailAt, injected
from forge import Forge
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reader.hostile import write_raw
from transforms import SampleError, refuses

import shardload
from shardload.format import layout
from shardload.loader import iteration
from shardload.loader.stand_ins import made_whole
from shardload.order.rng import stand_in_ids
from shardload.order.sample_ids import SampleIds
from shardload.reader import ShardDataset

COUNT = 60
BAD = frozenset({7, 8, 33, 59})
"""Samples with a flipped bit, in two of the shards and next to each other."""
GOLDEN_SMALL = [1, 57, 16, 30, 49, 54, 43, 27]
GOLDEN_LARGE = [6183292134, 3695424192, 2254628626, 9136527799]
SCHEMA = {"number": "int64", "wide": "int32[256]", "text": "str?", "items": "uint16[*]"}


def text_of(i: int) -> str | None:
    return None if i % 5 == 1 else f"text of {i:03d} " * 12


def write(path: Path, count: int = COUNT, shard_size: str = "24KiB") -> Path:
    with shardload.ShardWriter(path, SCHEMA, shard_size=shard_size) as writer:
        for i in range(count):
            values = {"wide": np.full(256, i + 1000, np.int32), "items": np.full(1800, i + 1000, np.uint16)}
            writer.write({"number": i, "text": text_of(i), **values})
    return path


def flip(path: Path, needle: bytes) -> None:
    """Flips a bit of the shard that holds some bytes."""
    for shard in sorted((path / "shards").iterdir()):
        data = bytearray(shard.read_bytes())
        if needle in data:
            data[data.index(needle)] ^= 4
            shard.write_bytes(data)
            return
    raise AssertionError("no shard holds that")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples of which those in `BAD` are damaged. Read only."""
    path = write(tmp_path_factory.mktemp("damaged") / "set")
    for i in BAD:
        flip(path, f"text of {i:03d}".encode())
    assert len(shardload.open(path).table) >= 4
    return path


def make(path: Path, **options: Any) -> shardload.ShardLoader:
    settings: dict[str, Any] = {
        "batch_size": 7, "shuffle": True, "seed": 3, "num_replicas": 1, "rank": 0, "tail": "short", "with_ids": True,
        "on_error": "substitute",
    }  # fmt: skip
    return shardload.ShardLoader(shardload.open(path), **settings | options)


def replaced(sample_id: int, epoch: int, unreadable: frozenset[int], refused: frozenset[int], seed: int = 3) -> int:
    """Returns the sample that is to be delivered in the place of one, which may be itself."""
    if sample_id in unreadable:
        sample_id = next(i for i in stand_in_ids(seed, epoch, sample_id, COUNT, 8) if i not in unreadable)
    if sample_id in refused:
        sample_id = next(i for i in stand_in_ids(seed, epoch, sample_id, COUNT, 8) if i not in unreadable | refused)
    return sample_id


@pytest.fixture(scope="module")
def order(damaged: Path) -> dict[tuple[int, int], int]:
    """The sample at each epoch and position of two epochs without faults."""
    return places_of(write_once(damaged), on_error="raise")


def check(batch: dict[str, Any]) -> None:
    """Checks that every value belongs to the sample that `_sample_id` names."""
    ids = batch["_sample_id"].tolist()
    for slot, i in enumerate(ids):
        if i < 0:
            continue
        assert batch["number"][slot] == i and (batch["wide"][slot] == i + 1000).all()
        assert batch["text"][slot] == text_of(i) and batch["_valid_text"][slot] == (text_of(i) is not None)
        assert (batch["items"][slot] == i + 1000).all() and len(batch["items"][slot]) == 1800


def places_of(path: Path, num_epochs: int = 2, **options: Any) -> dict[tuple[int, int], int]:
    """Returns the sample at each epoch and position, over all ranks."""
    found: dict[tuple[int, int], int] = {}
    world = options.pop("num_replicas", 1)
    for rank in range(world):
        with make(path, num_replicas=world, rank=rank, **options) as loader:
            for batch in (batch for _ in range(num_epochs) for batch in loader):
                if "wide" in batch:
                    check(batch)
                columns = (batch[name].tolist() for name in ("_epoch", "_position", "_sample_id", "number"))
                for epoch, position, sample_id, number in zip(*columns, strict=True):
                    assert number == sample_id and (epoch, position) not in found
                    found[epoch, position] = sample_id
    return found


def test_golden_stand_ins() -> None:
    """A run that goes on with a later version must see the same."""
    assert stand_in_ids(3, 0, 7, 60, 8) == GOLDEN_SMALL
    assert stand_in_ids(0, 5, 12345, 10**10, 4) == GOLDEN_LARGE
    assert stand_in_ids(0, 5, 12346, 10**10, 4) != GOLDEN_LARGE


@given(st.integers(0, 2**64 - 1), st.integers(0, 1000), st.data())
def test_stand_ins_are_different_others(seed: int, epoch: int, data: st.DataObject) -> None:
    num_samples = data.draw(st.integers(1, 30) | st.integers(1, 10**10))
    sample_id, count = data.draw(st.integers(0, num_samples - 1)), data.draw(st.integers(1, 9))
    ids = stand_in_ids(seed, epoch, sample_id, num_samples, count)
    assert len(ids) == len(set(ids)) == min(count, num_samples - 1)
    assert all(0 <= i < num_samples and i != sample_id for i in ids)


@pytest.mark.parametrize(
    "options",
    [
        {"prefetch_batches": 0},
        {"prefetch_batches": 0, "num_threads": 3},
        {"num_threads": 0, "prefetch_batches": 5},
        {"num_threads": 3, "prefetch_batches": 5},
        {"batch_size": 1},
        {"batch_size": 60},
        {"num_replicas": 3, "batch_size": 4},
        {"on_error": "mask"},
        {"reuse": True, "device": "cpu"},
        {"fields": ["number", "text"]},
        {"collate_fn": shardload.collate},
    ],
    ids=" ".join,
)
def test_who_reads_does_not_matter(damaged: Path, order: dict[tuple[int, int], int], options: dict[str, Any]) -> None:
    found = places_of(damaged, **options)
    assert found == {(e, p): replaced(i, e, BAD, frozenset()) for (e, p), i in order.items()}
    assert sum(found[place] != order[place] for place in order) == 2 * len(BAD)
    stand_ins = [{found[place] for place in order if place[0] == e and order[place] in BAD} for e in (0, 1)]
    assert stand_ins[0] != stand_ins[1]


def write_once(damaged: Path) -> Path:
    """Returns the same dataset undamaged, written at the first call."""
    path = damaged.parent / "whole"
    return path if path.exists() else write(path)


REFUSED = frozenset(i for i in range(COUNT) if i % 10 in (3, 6))


@pytest.mark.parametrize("options", [{}, {"prefetch_batches": 0, "num_replicas": 3, "batch_size": 4}])
def test_transforms_that_fail_or_return_none(
    damaged: Path, order: dict[tuple[int, int], int], options: dict[str, Any]
) -> None:
    found = places_of(damaged, transform=refuses, **options)
    assert found == {(e, p): replaced(i, e, BAD, REFUSED) for (e, p), i in order.items()}


@pytest.mark.usefixtures("quick_processes")
def test_processes_find_the_same(damaged: Path) -> None:
    """Damaged samples, transforms that fail, and what stand-ins draw from the global generators."""
    order = places_of(write_once(damaged), 1, on_error="raise")
    drawn = []
    for num_processes, batch_size in ((1, 7), (2, 4)):
        found = {}
        with make(damaged, transform=refuses, num_processes=num_processes, batch_size=batch_size) as loader:
            for batch in loader:
                places = batch["_position"].tolist()
                found |= {(0, p): i for p, i in zip(places, batch["_sample_id"].tolist(), strict=True)}
                assert torch.equal(batch["number"], batch["_sample_id"])
                drawn += batch["drawn"].tolist()
        assert found == {(e, p): replaced(i, e, BAD, REFUSED) for (e, p), i in order.items()}
    assert drawn[:COUNT] == drawn[COUNT:]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_else_changes(damaged: Path, data: st.DataObject) -> None:
    """Places, states, numbers of batches and fillers are those of a run without faults, from any place, for any rank."""
    world = data.draw(st.integers(1, 3), "ranks")
    tail = data.draw(st.sampled_from(["drop", "short", "pad", "mask", "carry"]), "tail")
    refused = data.draw(st.frozensets(st.integers(0, COUNT - 1), max_size=8), "refused")
    policy = data.draw(st.sampled_from(["substitute", "mask"]), "policy")
    options: dict[str, Any] = {
        "num_replicas": world, "rank": data.draw(st.integers(0, world - 1), "rank"), "tail": tail,
        "batch_size": data.draw(st.integers(1, 9), "batch size"), "seed": data.draw(st.integers(0, 3), "seed"),
        "prefetch_batches": data.draw(st.sampled_from([0, 3]), "prefetched"),
    }  # fmt: skip

    def transform(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["number"] in refused:
            raise SampleError("refused")
        return {"number": sample["number"]}

    plain = make(write_once(damaged), on_error="raise", **options)
    loader = make(damaged, transform=transform, on_error=policy, max_faults=10**6, **options)
    state = plain.state_at(data.draw(st.integers(0, len(plain) - 1), "batches done"))
    plain.load_state_dict(state)
    loader.load_state_dict(state)
    trained, count = [], 0
    for _ in range(2):
        assert loader.remaining == plain.remaining
        for want, batch in zip(plain, loader, strict=True):
            assert torch.equal(batch["_position"], want["_position"]) and torch.equal(batch["_epoch"], want["_epoch"])
            valid = []
            for slot, (i, epoch) in enumerate(zip(want["_sample_id"].tolist(), want["_epoch"].tolist(), strict=True)):
                try:
                    stand_in = -1 if i < 0 else replaced(i, epoch, BAD, refused, options["seed"])
                except StopIteration:
                    assume(False)
                assert batch["_sample_id"][slot] == stand_in and (i < 0 or batch["number"][slot] == stand_in)
                valid.append(i >= 0 and i == stand_in)
                count += i >= 0 and i != stand_in
            if policy == "mask":
                assert batch["_valid"].tolist() == valid
            elif tail == "mask":
                assert torch.equal(batch["_valid"], want["_valid"])
            else:
                assert "_valid" not in batch
            trained.append(batch["_sample_id"])
            assert loader.state_dict() == plain.state_dict() and len(loader) == len(plain)
        if world == 1:
            loader.audit()
            loader.audit(sample_ids=trained)
            if len(trained) > 1:
                with pytest.raises(shardload.StateMismatchError):
                    loader.audit(sample_ids=trained[1:])
        trained.clear()
    assert loader.stats().num_faults == count and loader.stats().num_samples == plain.stats().num_samples
    assert loader.stats().leased_bytes == 0


@pytest.mark.parametrize("transform", [None, refuses])
def test_what_an_epoch_leaves_is_replaced_as_of_its_own_epoch(damaged: Path, transform: Any) -> None:
    """The first samples of a batch may belong to the epoch before, which keys their stand-ins."""
    refused = REFUSED if transform else frozenset()
    found = 0
    for seed in range(6):
        loaders = [make(write_once(damaged), on_error="raise", seed=seed, tail="carry", prefetch_batches=0)]
        loaders.append(make(damaged, transform=transform, seed=seed, tail="carry", prefetch_batches=0))
        wanted, given = (next(itertools.islice(itertools.chain(loader, loader), 8, None)) for loader in loaders)
        assert wanted["_epoch"].tolist() == [0] * 4 + [1] * 3 == given["_epoch"].tolist()
        pairs = list(zip(wanted["_sample_id"].tolist(), wanted["_epoch"].tolist(), strict=True))
        assert given["_sample_id"].tolist() == [replaced(i, epoch, BAD, refused, seed) for i, epoch in pairs]
        found += sum(i in BAD for i, epoch in pairs if epoch == 0)
    assert found


@pytest.mark.parametrize("policy", ["substitute", "mask"])
def test_fillers_are_no_faults(damaged: Path, policy: str, caplog: pytest.LogCaptureFixture) -> None:
    """So that the faults of all ranks are as many as there are bad samples."""
    counts = []
    for world, batch_size in ((1, 50), (3, 19)):
        caplog.clear()
        loaders = [make(damaged, num_replicas=world, rank=rank, batch_size=batch_size, tail="mask", on_error=policy)
                   for rank in range(world)]  # fmt: skip
        batches = [batch for loader in loaders for batch in loader]
        counts.append(sum(loader.stats().num_faults for loader in loaders))
        assert len(caplog.records) == counts[-1]
        valid, ids = (torch.cat([batch[name] for batch in batches]) for name in ("_valid", "_sample_id"))
        assert len(ids) in (100, 114) and (ids == -1).sum() == len(ids) - COUNT
        assert valid.sum() == COUNT - (len(BAD) if policy == "mask" else 0) and not valid[ids == -1].any()
    assert counts == [len(BAD)] * 2


def cut(path: Path) -> None:
    with sorted((path / "shards").iterdir())[1].open("r+b") as file:
        file.truncate(5000)


def rows_of_a_shard(path: Path) -> None:
    flip(path, bytes(Forge(path).shards[1].section(layout.SECTION_ROWS).data))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "record": lambda path: flip(path, b"text of 012"),
    "wide": lambda path: flip(path, np.full(256, 1023, np.int32).tobytes()),
    "stream": lambda path: flip(path, np.full(1800, 1031, np.uint16).tobytes()),
    "rows": rows_of_a_shard,
    "missing": lambda path: sorted((path / "shards").iterdir())[1].unlink(),
    "cut": cut,
}


@pytest.mark.parametrize("engine", ["map", "pread"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_damage(damaged: Path, tmp_path: Path, damage: str, engine: Any) -> None:
    path = tmp_path / "set"
    shutil.copytree(write_once(damaged), path)
    DAMAGES[damage](path)
    bad, dataset = set(), shardload.open(path, engine=engine)
    for i in range(COUNT):
        try:
            dataset[i]
        except (shardload.FormatError, shardload.StorageError):
            bad.add(i)
    assert 1 <= len(bad) <= 20
    for verify in ("once", "always"):
        dataset = shardload.open(path, engine=engine, verify=verify)  # type: ignore[arg-type]
        loader = shardload.ShardLoader(dataset, 10, shuffle=True, seed=3, tail="short", with_ids=True, on_error="mask")
        for epoch in range(2):
            ids: list[int] = []
            for batch in loader:
                check(batch)
                ids += batch["_sample_id"][batch["_valid"]].tolist()
            assert sorted(ids) == sorted(set(range(COUNT)) - bad)
            assert loader.stats().num_faults == len(bad) * (epoch + 1)


@pytest.mark.usefixtures("quick_processes")
def test_damaged_images(tmp_path: Path) -> None:
    from loader.test_decode import encoded, pixels_of

    def run(bad: int | None, **options: Any) -> dict[int, tuple[int, bytes]]:
        path = tmp_path / f"images-{bad}"
        if not path.exists():
            with shardload.ShardWriter(path, schema={"image": "jpeg", "number": "int64"}) as writer:
                for i in range(20):
                    data = encoded(pixels_of(i), "JPEG")
                    writer.write({"image": data[: len(data) // 2] if i == bad else data, "number": i})
        decode = {"image": shardload.ImageDecode(16, crop="random", flip=0.5)}
        with make(path, decode=decode, **options) as loader:
            return {
                position: (i, image.numpy().tobytes())
                for batch in loader
                for position, i, image in zip(
                    batch["_position"].tolist(), batch["_sample_id"].tolist(), batch["image"], strict=True
                )
            }

    whole, found = run(None), run(11, num_threads=2)
    place = next(place for place, (i, _) in whole.items() if i == 11)
    stand_in = stand_in_ids(3, 0, 11, 20, 1)[0]
    # Cropped as at its own place in this epoch.
    assert found == whole | {place: next(one for one in whole.values() if one[0] == stand_in)}
    assert run(11, num_processes=1) == found == run(11, reuse=True) == run(11, transform=dict)


@pytest.mark.usefixtures("quick_processes")
@pytest.mark.parametrize(
    "options", [{}, {"transform": dict}, {"collate_fn": list, "with_ids": False}, {"num_processes": 1}]
)
@pytest.mark.parametrize(("kind", "data"), [("str", b"\xff\xfe"), ("json", b"{")])
def test_bytes_that_are_no_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: bytes, options: dict[str, Any]
) -> None:
    """Their checksum is right; that they are no text or JSON shows only when a batch is made of them."""
    path = write_raw(tmp_path / "d", monkeypatch, kind, [b'"good"'] * 4 + [data] + [b'"good"'] * 5)
    with make(path, batch_size=5, shuffle=False, **options) as loader:
        batches = list(loader)
    stand_in = next(i for i in stand_in_ids(3, 0, 4, 10, 8))
    rows = [row["number"] for row in batches[0]] if "collate_fn" in options else batches[0]["number"].tolist()
    assert rows == [0, 1, 2, 3, stand_in]
    assert loader.stats().num_faults == 1
    with pytest.raises(shardload.FormatError, match="sample 4") as caught:
        list(make(path, on_error="raise", **options))
    # It is not the transform that failed.
    assert not any("transform" in note.partition("\n")[0] for note in getattr(caught.value, "__notes__", ()))
    with make(path, fields=["number"], on_error="raise", **options) as loader:
        assert len(list(loader)) == 2


@given(st.integers(1, 300), st.data())
def test_few_faults_are_found_by_few_reads(count: int, data: st.DataObject) -> None:
    """The same faults as by asking for each sample by itself."""
    bad = data.draw(st.frozensets(st.integers(0, count - 1), max_size=3))
    num_before, calls = data.draw(st.integers(0, count)), []

    def read(ids: SampleIds) -> list[tuple[int, int]]:
        calls.append(len(ids))
        if bad & set(ids):
            raise shardload.FormatError("bad")
        return list(zip(ids, ids.epochs, strict=True))

    def others(seed: int, epoch: int, sample_id: int, number: int) -> list[int]:
        return stand_in_ids(seed, epoch, sample_id, 1000, number)

    made, ids, faults = made_whole(SampleIds(range(count), 3, 5, num_before), others, read)
    epochs = [4] * num_before + [5] * (count - num_before)
    assert made == [
        (next(c for c in stand_in_ids(3, epoch, i, 1000, 8) if c not in bad) if i in bad else i, epoch)
        for i, epoch in enumerate(epochs)
    ]
    assert [(fault.slot, fault.sample_id, fault.epoch) for fault in faults] == [(i, i, epochs[i]) for i in sorted(bad)]
    assert ids == [i for i, _ in made]
    assert len(calls) <= 3 + 22 * len(bad) and sum(calls) <= count * (3 + 3 * len(bad)) + 30


def test_a_fault_is_told_once_with_its_first_cause(damaged: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = stand_in_ids(3, 0, 7, COUNT, 8)[0]
    second = next(i for i in stand_in_ids(3, 0, first, COUNT, 8) if i not in BAD)

    def transform(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["number"] == first:
            raise SampleError("refused,\nin two lines")
        return {"number": sample["number"]}

    with caplog.at_level(logging.WARNING, "shardload"), make(damaged, transform=transform) as loader:
        list(loader)
    told = {record.args[0]: record.getMessage() for record in caplog.records if record.name == "shardload"}
    assert len(caplog.records) == len(told) == loader.stats().num_faults == 5
    assert told[7].startswith(f"sample 7 of epoch 0 is replaced by sample {second}: ChecksumError: {damaged}: shards/")
    assert told[first] == (
        f"sample {first} of epoch 0 is replaced by sample {second}: SampleError: refused, in two lines; in the transform of sample "
        f"{first} of {damaged}"
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING, "shardload"), make(damaged, on_error="mask") as loader:
        list(loader)
    assert sorted(record.getMessage().partition(":")[0] for record in caplog.records) == sorted(
        f"sample {i} of epoch 0 is masked" for i in BAD
    )


def always_fails(calls: list[int]) -> Callable[[dict[str, Any]], Any]:
    def transform(sample: dict[str, Any]) -> Any:
        calls.append(sample["number"])
        raise SampleError("never")

    return transform


def test_a_transform_that_always_fails_ends_at_once(damaged: Path) -> None:
    calls: list[int] = []
    loader = make(write_once(damaged), transform=always_fails(calls), prefetch_batches=0)
    state = loader.state_dict()
    with pytest.raises(SampleError, match="never") as caught:
        next(iter(loader))
    assert len(calls) == 9 and len(set(calls)) == 9
    assert any("nor could any of the 8 samples" in note for note in caught.value.__notes__)
    assert loader.state_dict() == state


@pytest.mark.parametrize(
    "options", [{"prefetch_batches": 0}, {"num_threads": 2, "prefetch_batches": 4}, {"transform": dict}]
)
@pytest.mark.parametrize("name", ["preadv", "open_read"])
def test_a_dead_disk_ends_the_run_at_once(damaged: Path, name: str, options: dict[str, Any]) -> None:
    dataset = shardload.open(write_once(damaged), engine="pread", verify="always")
    assert len(dataset) == COUNT  # the manifest is read
    loader = shardload.ShardLoader(dataset, 7, shuffle=True, on_error="substitute", **options)
    failing = FailAt(1 if name == "open_read" else 20, errno.EIO, lasting=True, names=(name,))
    with injected(failing), pytest.raises(shardload.StorageError, match="Input/output error") as caught:
        list(loader)
    assert any("this is not about one sample" in note for note in caught.value.__notes__)
    assert loader.stats().num_faults == 0
    # Each burst under way asks for a batch, a sample, and its stand-ins; hints are another matter.
    assert failing.fired < 200
    loader.close()


@pytest.mark.usefixtures("quick_processes")
def test_a_dataset_of_one_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "one", 1)
    flip(path, b"text of 000")
    for options in ({}, {"num_processes": 1}):
        with pytest.raises(shardload.ChecksumError, match="sample 0") as caught:
            list(make(path, batch_size=1, **options))
        assert "there is no other sample in the dataset" in caught.value.__notes__[0]


def test_of_two_samples_the_other_one_always_stands_in(tmp_path: Path) -> None:
    path = write(tmp_path / "two", 2)
    flip(path, b"text of 000")
    loader = make(path, batch_size=2)
    for _ in range(20):
        assert next(iter(loader))["number"].tolist() == [1, 1]


@pytest.mark.usefixtures("quick_processes")
def test_a_batch_of_nothing_but_bad_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "set")
    for i in (0, 2, 3, 4):
        flip(path, f"text of {i:03d}".encode())
    flip(path, np.full(256, 1001, np.int32).tobytes())
    for options in ({}, {"transform": dict}, {"num_processes": 1}):
        loader = make(path, batch_size=5, shuffle=False, on_error="mask", fields=["number", "wide", "text"], **options)
        batches = iter(loader)
        batch = next(batches)
        assert not batch["_valid"].any() and set(batch["number"].tolist()).isdisjoint(range(5))
        assert batch["_position"].tolist() == list(range(5))
        assert next(batches)["_valid"].all()
        loader.close()


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.usefixtures("quick_processes")
def test_one_fault_too_many_ends_the_run(damaged: Path, most: int) -> None:
    for options in ({}, {"num_processes": 1})[: 1 + (most == 1)]:
        loader = make(damaged, batch_size=1, max_faults=most, **options)
        batches, delivered, states = iter(loader), [], [loader.state_dict()]
        with pytest.raises(
            shardload.FaultLimitError, match=f"at most {most} may be .max_faults=.*ChecksumError"
        ) as caught:
            for batch in batches:
                delivered.append(batch["_sample_id"])
                states.append(loader.state_dict())
        assert loader.stats().num_faults == most
        assert caught.value.dataset == str(damaged) and caught.value.sample_id in BAD
        # The batch that was too much was not delivered, and a new iteration begins to count anew.
        assert loader.state_dict() == states[-1] == loader.state_at(len(delivered))
        with pytest.raises(shardload.LoaderClosedError):
            next(batches)
    with make(damaged, max_faults=len(BAD)) as loader:
        for _ in range(3):
            assert len(list(loader)) == 9


def test_the_limit_unless_told_otherwise(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(every: int) -> Callable[[dict[str, Any]], Any]:
        return lambda sample: None if sample["number"] % every == 0 else sample

    with pytest.raises(shardload.FaultLimitError, match=r"^101 of 2\d\d samples .* at most 100 may be"):
        list(make(numbers, transform=refusing(2), batch_size=1))
    assert len(list(make(numbers, transform=refusing(11)))) == 144
    # Of long runs a twentieth.
    monkeypatch.setattr(iteration, "_FAULTS_FREE", 12)
    assert len(list(make(numbers, transform=refusing(30)))) == 144
    with pytest.raises(shardload.FaultLimitError):
        list(make(numbers, transform=refusing(11)))


@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, MemoryError, torch.cuda.OutOfMemoryError, shardload.LoaderClosedError]
)
@pytest.mark.parametrize("place", ["sample", "stand-in"])
def test_what_is_not_about_a_sample_is_never_swallowed(numbers: Path, kind: type[BaseException], place: str) -> None:
    calls: list[int] = []

    def transform(sample: dict[str, Any]) -> Any:
        calls.append(sample["number"])
        if place == "stand-in" and len(calls) == 1:
            raise SampleError("refused")
        raise kind("stop")

    with pytest.raises(kind, match="stop"):
        list(make(numbers, transform=transform, prefetch_batches=0))
    assert len(calls) == (1 if place == "sample" else 2)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, ImportError, shardload.LoaderClosedError])
def test_nor_when_it_comes_from_a_read(
    numbers: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    calls: list[int] = []

    def fails(self: ShardDataset, *arguments: Any) -> Any:
        calls.append(1)
        raise kind("stop")

    monkeypatch.setattr(ShardDataset, "read_batches", fails)
    with pytest.raises(kind, match="stop"):
        list(make(numbers, prefetch_batches=0))
    assert len(calls) == 1


@pytest.mark.parametrize("where", ["collate_fn", "batch_transform"])
def test_errors_of_whole_batches_are_nobodys_stand_in(numbers: Path, where: str) -> None:
    calls: list[int] = []

    def fails(batch: Any) -> Any:
        calls.append(1)
        raise SampleError("a whole batch")

    with pytest.raises(SampleError, match="a whole batch"):
        list(make(numbers, prefetch_batches=0, with_ids=False, **{where: fails}))
    assert len(calls) == 1


def test_a_mask_needs_a_dict(numbers: Path) -> None:
    with pytest.raises(TypeError, match="on_error='mask' adds fields"):
        list(make(numbers, collate_fn=list, with_ids=False, on_error="mask"))


def test_policies_that_cannot_be(numbers: Path) -> None:
    with pytest.raises(ValueError, match="on_error must be 'raise', 'substitute' or 'mask', not 'skip'"):
        make(numbers, on_error="skip")
    with pytest.raises(ValueError, match="max_faults goes with on_error"):
        make(numbers, on_error="raise", max_faults=3)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="max_faults must be an integer from 0"):
            make(numbers, max_faults=wrong)


def test_several_ranks_audit_what_stands_in(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loader.test_audit import Exchange

    def work(rank: int) -> None:
        with make(damaged, num_replicas=3, rank=rank, tail="pad") as loader:
            ids = [batch["_sample_id"].numpy() for batch in loader]
            loader.audit()
            loader.audit(sample_ids=ids)
            if rank == 1:
                ids[0] = ids[0][::-1].copy()
                ids[0][0] = (ids[0][0] + 1) % COUNT
            with pytest.raises(shardload.StateMismatchError, match="the numbers are right and the samples are not"):
                loader.audit(sample_ids=ids)

    assert Exchange(monkeypatch, 3).run(work) == [None] * 3
