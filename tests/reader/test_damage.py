"""Damaged files: every flipped byte and every cut is reported, and no read gives a wrong sample."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from samples import mixed_sample, same, write_mixed

import shardload
from shardload.reader.verify import verify_dataset


@pytest.fixture
def small(tmp_path) -> Path:
    """A dataset of 12 mixed samples in one shard: all kinds of sections, few bytes."""
    return write_mixed(tmp_path / "small", 12)


def files(dataset: Path) -> list[Path]:
    return sorted(path for path in dataset.rglob("*") if path.is_file())


def read_all(path: Path) -> str:
    """Returns "right" if every sample is as written, or the error's name; anything else fails the test."""
    try:
        dataset = shardload.open(path, verify="always")
        for i in range(12):
            assert same(dataset[i], mixed_sample(i)), f"a wrong sample {i} was delivered"
    except (shardload.FormatError, shardload.StorageError) as error:
        return type(error).__name__
    return "right"


def offsets(size: int, every: int, dense: int = 1) -> list[int]:
    """Returns places in a file in steps; of its dense parts, the start and the end, in smaller ones."""
    return sorted({*range(0, size, every), *range(0, min(size, 200), dense), *range(max(0, size - 700), size, dense)})


@pytest.mark.parametrize(("every", "dense"), [(331, 13), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_every_flipped_byte_is_reported(small, every, dense):
    for path in files(small):
        good = path.read_bytes()
        bad = bytearray(good)
        for at in offsets(len(good), every if "shard" in path.name else dense, dense):
            bad[at] ^= 1 << (at % 8)
            path.write_bytes(bad)
            assert verify_dataset(small, workers=1), f"verify did not see byte {at} of {path.name}"
            read_all(small)
            bad[at] = good[at]
        path.write_bytes(good)
    assert verify_dataset(small) == []
    assert read_all(small) == "right"


@pytest.mark.parametrize(("every", "dense"), [(331, 7), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_every_cut_is_an_error(small, every, dense):
    for path in files(small):
        good = path.read_bytes()
        for size in {*offsets(len(good), every if "shard" in path.name else 5, dense), len(good) - 1}:
            path.write_bytes(good[:size])
            assert verify_dataset(small, workers=1), f"verify did not see {path.name} cut to {size} bytes"
            # manifests/1 is the committed original; a reader of manifest.json does not look at it.
            assert path.parent.name == "manifests" or read_all(small) != "right", f"{path.name} cut to {size}"
        path.write_bytes(good)


def test_bytes_appended(small):
    for path in files(small):
        good = path.read_bytes()
        path.write_bytes(good + b"\0")
        assert verify_dataset(small)
        path.write_bytes(good)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_shard_of_another_length_is_refused_before_it_is_read(small, change):
    shard = next((small / "shards").iterdir())
    good = shard.read_bytes()
    shard.write_bytes(good[:change] if change < 0 else good + b"\0")
    with pytest.raises(shardload.FormatError, match=f"{len(good) + change} bytes instead of {len(good)}"):
        shardload.open(small)[0]


@pytest.mark.parametrize("name", ["manifest.json", "manifests/1", "tables", "shards"])
def test_missing_files_are_named(small, name):
    victim = small / name if name.count(".") or "/" in name else next((small / name).iterdir())
    victim.unlink()
    damages = verify_dataset(small)
    if name == "manifest.json":
        # The committed manifest stands in for its copy.
        assert read_all(small) == "right"
        return
    assert [damage.file for damage in damages] == [str(victim.relative_to(small))]


def test_swapped_shards(tmp_path):
    path = write_mixed(tmp_path / "d", 200)
    first, second = sorted((path / "shards").iterdir())[:2]
    size = min(first.stat().st_size, second.stat().st_size)
    swap = tmp_path / "swap"
    first.rename(swap)
    second.rename(first)
    swap.rename(second)
    assert {damage.file for damage in verify_dataset(path)} == {f"shards/{first.name}", f"shards/{second.name}"}
    with pytest.raises((shardload.FormatError, shardload.StorageError), match="0000"):
        shardload.open(path)[0]
    assert size


def test_shard_of_another_dataset_of_equal_size(tmp_path):
    """A sound shard from another place is no shard of this dataset."""
    for name, start in (("a", 0), ("b", 1000)):
        with shardload.ShardWriter(tmp_path / name, {"number": "int64"}) as writer:
            for i in range(50):
                writer.write({"number": start + i})
    shard = "shards/0001-000000-00000.shard"
    shutil.copy(tmp_path / "b" / shard, tmp_path / "a" / shard)
    with pytest.raises(shardload.ChecksumError, match="another shard"):
        shardload.open(tmp_path / "a")[0]


def damage_record(path: Path, sample_id: int) -> None:
    text = mixed_sample(sample_id)["data"]
    shard = next((path / "shards").iterdir())
    data = shard.read_bytes()
    at = data.index(text)
    shard.write_bytes(data[:at] + bytes([text[0] ^ 1]) + data[at + 1 :])


def test_verify_names_the_damaged_samples(tmp_path):
    path = write_mixed(tmp_path / "d", 12, compression="none")
    damage_record(path, 9)
    (damage,) = verify_dataset(path)
    assert (damage.file, damage.section, damage.sample_ids) == ("shards/0001-000000-00000.shard", "heap", [9])
    assert "sample 9" in damage.message


def test_a_damaged_sample_is_an_error_and_the_others_stay_readable(tmp_path):
    path = write_mixed(tmp_path / "d", 12, compression="none")
    damage_record(path, 9)
    dataset = shardload.open(path)
    with pytest.raises(shardload.ChecksumError, match="sample 9") as caught:
        dataset.__getitems__([8, 9, 10])
    error = caught.value
    assert error.dataset == str(path)
    assert error.shard == "shards/0001-000000-00000.shard"
    assert error.sample_id == 9
    assert error.start < error.stop
    for i in (*range(9), 10, 11):
        assert same(dataset[i], mixed_sample(i))


def test_a_sample_that_was_checked_once_is_checked_again_where_asked(tmp_path):
    path = write_mixed(tmp_path / "d", 12, compression="none")
    datasets = {mode: shardload.open(path, verify=mode) for mode in ("once", "always", "off")}
    for dataset in datasets.values():
        dataset[9]
    damage_record(path, 9)
    with pytest.raises(shardload.ChecksumError):
        datasets["always"][9]
    assert datasets["once"][9]["number"] == 9
    assert datasets["off"][9]["number"] == 9


def test_a_file_cut_while_it_is_read(small):
    dataset = shardload.open(small, verify="off")
    dataset[0]
    shard = next((small / "shards").iterdir())
    with shard.open("r+b") as file:
        file.truncate(4200)
    with pytest.raises(shardload.StorageError, match="cut after it was opened") as caught:
        dataset[11]
    assert caught.value.shard == "shards/0001-000000-00000.shard"


def test_an_unfinished_only_commit_is_no_dataset(small):
    """What a crash leaves where the commit could not be a link: nothing was published yet, and that is what is said."""
    (small / "manifest.json").unlink()
    commit = small / "manifests" / "1"
    commit.write_bytes(commit.read_bytes()[:100])
    with pytest.raises(shardload.StorageError, match="is not a dataset: its only commit"):
        shardload.open(small)
