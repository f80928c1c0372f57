"""Damage in a dataset of one of everything: whatever byte changes, verify tells, and no read gives a wrong value."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from samples import EVERY_SAMPLES, EVERY_TYPES, FIRST_SAMPLES, expected_everything, same, write_everything

import shardload
from shardload.format.table import make_table
from shardload.reader.verify import verify_dataset

WANT = expected_everything()


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    return write_everything(tmp_path / "d")


def files(dataset: Path) -> list[Path]:
    """The files of the current version; what earlier ones have beside them is not looked at."""
    old = {"manifests/1", f"tables/{shardload.open(dataset, version=1).manifest.table}"}
    names = {str(path.relative_to(dataset)) for path in dataset.rglob("*") if path.is_file()} - old
    return sorted(dataset / name for name in names)


def sections(shard: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields kind, start and end of the sections of a shard, then those of its tail as kind 0."""
    directory = len(shard) - 128 - 64 * int.from_bytes(shard[-116:-112], "little")
    for at in range(directory, len(shard) - 128, 64):
        kind, _, start, size = struct.unpack_from("<IIQQ", shard, at)
        yield kind, start, start + size
    yield 0, directory, len(shard)


def places(path: Path, data: bytes, every: int) -> list[int]:
    """Returns the bytes of a file to be changed: both ends of each section, and in between one in so many."""
    if "shards" not in str(path.parent):
        return list(range(0, len(data), 1 if every == 1 else 151))
    found = {*range(0, len(data), every), *range(0, 80, max(1, every // 300))}
    for _, start, stop in sections(data):
        size = stop - start
        found |= {start - 1, stop, *range(start, stop, max(1, min(every, size // 2 + 1)))} if size else set()
        found |= {stop - 1}
    return sorted(place for place in found if place < len(data))


def read_all(path: Path) -> str:
    """Returns "right" if whatever can be read is as it was written, else the error's name; a wrong value fails the test."""
    try:
        dataset = shardload.open(path, verify="always")
    except (shardload.FormatError, shardload.StorageError) as error:
        return type(error).__name__
    assert len(dataset) in (EVERY_SAMPLES, FIRST_SAMPLES)
    found = "right"
    for ids in (range(EVERY_SAMPLES), *([i] for i in (0, 3, 5, FIRST_SAMPLES, FIRST_SAMPLES + 1, EVERY_SAMPLES - 1))):
        try:
            for i, sample in zip(ids, dataset.__getitems__(ids), strict=True):
                assert same(sample, WANT[i]), f"a wrong sample {i} was delivered"
        except (shardload.FormatError, shardload.StorageError) as error:
            found = type(error).__name__
    for read in (
        dataset.statistics,
        lambda: dataset.find(f"sample-{EVERY_SAMPLES - 1}"),
        lambda: dataset.lengths("text"),
    ):
        try:
            read()
        except (shardload.FormatError, shardload.StorageError) as error:
            found = type(error).__name__
    return found


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("every", [8009, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_byte_is_reported(everything: Path, every: int) -> None:
    for path in files(everything):
        if every > 1 and path.name == "0002-000000-00001.shard":
            continue  # It has the sections that the one before has.
        good = path.read_bytes()
        bad = bytearray(good)
        for place in places(path, good, every):
            bad[place] ^= 1 << place % 8
            path.write_bytes(bad)
            assert verify_dataset(everything, workers=1), f"verify did not see byte {place} of {path.name}"
            read_all(everything)
            bad[place] = good[place]
        path.write_bytes(good)
    assert verify_dataset(everything) == []
    assert read_all(everything) == "right"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("every", [8009, pytest.param(1, marks=pytest.mark.slow)])
def test_every_cut_is_an_error(everything: Path, every: int) -> None:
    for path in files(everything):
        good = path.read_bytes()
        for size in places(path, good, every) if every == 1 else places(path, good, every)[::5]:
            path.write_bytes(good[:size])
            assert verify_dataset(everything, workers=1), f"verify did not see {path.name} cut to {size} bytes"
            current = path.parent.name == "shards" or path.name == "manifest.json"
            assert not current or read_all(everything) != "right", f"{path.name} cut to {size}"
        path.write_bytes(good)


def test_each_section_is_checked_by_what_reads_it(everything: Path) -> None:
    """Every kind of section: damage in it is an error of the reads that need it, without the file digest."""
    path = sorted((everything / "shards").iterdir())[1]
    good, seen = path.read_bytes(), set()
    for kind, start, stop in sections(good):
        if start == stop:
            continue
        seen.add(kind)
        bad = bytearray(good)
        bad[start + (stop - start) // 2] ^= 4
        path.write_bytes(bad)
        # The description is for people who have lost the manifest.
        assert (read_all(everything) == "ChecksumError") == (kind != 11), kind
    assert seen == {0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11}
    path.write_bytes(good)


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 6, 7, 8, 10, 11])
def test_verify_names_the_section(everything: Path, kind: int) -> None:
    path = sorted((everything / "shards").iterdir())[1]
    data = bytearray(path.read_bytes())
    start, stop = next((start, stop) for k, start, stop in sections(bytes(data)) if k == kind and stop > start)
    data[(start + stop) // 2] ^= 4
    path.write_bytes(data)
    damages = verify_dataset(everything)
    assert damages and all(damage.section not in (None, "padding", "head") for damage in damages)
    if kind in (2, 3, 4, 5, 6, 10):
        assert all(damage.sample_ids for damage in damages)


@pytest.mark.parametrize("name", ["tokens", "frames"])
def test_a_damaged_item_is_an_error_of_its_samples_alone(tmp_path: Path, name: str) -> None:
    path = write_everything(tmp_path / "d", shard_size="1MiB")
    shard = path / "shards/0001-000000-00000.shard"
    data = bytearray(shard.read_bytes())
    streams = [(start, stop) for kind, start, stop in sections(bytes(data)) if kind == 5]
    start, stop = streams[["tokens", "frames"].index(name)]
    data[stop - 1] ^= 1
    shard.write_bytes(data)
    dataset = shardload.open(path, fields=[name])
    first_block = (stop - start - 1) // 4096 * 4096 // (2 if name == "tokens" else 12)
    ends = shardload.open(path).lengths(name)[:FIRST_SAMPLES].cumsum()
    for i in range(EVERY_SAMPLES):
        length = 0 if i >= FIRST_SAMPLES or WANT[i][name] is None else len(WANT[i][name])
        if length and ends[i] > first_block:
            with pytest.raises(shardload.ChecksumError, match=f"field '{name}'.*sample {i}"):
                dataset[i]
        else:
            assert same(dataset[i][name], WANT[i][name])
    others = shardload.open(path, fields=[other for other in EVERY_TYPES if other != name])
    assert len(list(others)) == EVERY_SAMPLES


def test_a_table_that_gives_items_to_a_field_of_a_later_generation(everything: Path) -> None:
    """Every digest is right: what the table says is compared with the generation's schema."""
    dataset = shardload.open(everything)
    entries = list(dataset.table)
    entries[0] = replace(entries[0], num_items=(*entries[0].num_items[:2], 1))
    table = make_table(entries, 3).encode()
    name = hashlib.sha256(table).hexdigest()
    (everything / "tables" / name).write_bytes(table)
    manifest = msgspec.structs.replace(dataset.manifest, table=name)
    for file in ("manifest.json", "manifests/2"):
        (everything / file).write_bytes(manifest.encode())
    forged = shardload.open(everything)
    assert same(forged[EVERY_SAMPLES - 1], WANT[EVERY_SAMPLES - 1])
    with pytest.raises(shardload.FormatError, match="a field that its generation has not"):
        forged[0]
