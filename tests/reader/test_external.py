"""Existing files that records lie in: what has changed since is named, and nothing that an index says is believed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import webdataset
from forge import Forge

import shardload
from shardload.cli import main
from shardload.errors import ChecksumError, FormatError, ShardloadError, StorageError
from shardload.format import layout
from shardload.format.external import ExternalFile, encode_external
from shardload.format.manifest import Manifest
from shardload.format.rows import PLACE, RAW
from shardload.reader.external import spare_bytes
from shardload.reader.verify import verify_dataset
from shardload.storage import MappedFiles

NUM_SAMPLES = 8
AGAIN = r"shardload index --replace"


def value(tar: int, number: int) -> bytes:
    return b"\xff\xd8\xff" + bytes([tar, number]) * (30 + 9000 * (number % 3))


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of samples with an image and a text, indexed in two shards. Read only."""
    folder = tmp_path_factory.mktemp("indexed") / "tars"
    folder.mkdir()
    for tar in range(2):
        with webdataset.TarWriter(str(folder / f"t{tar}.tar")) as writer:
            for number in range(NUM_SAMPLES):
                key = f"k{tar}{number}"
                writer.write({"__key__": key, "jpg": value(tar, number), "txt": b"text of " + key.encode()})
    shardload.index(folder, unit_size=1, key="key", workers=1)
    return folder


@pytest.fixture
def tars(indexed: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(indexed, tmp_path / "tars")


def place_of(folder: Path, sample_id: int, name: str) -> tuple[int, int]:
    """Where the value of a field lies in the tar."""
    (place,) = shardload.open(folder).places([sample_id])
    return next((one.start, one.stop) for one in place.ranges if one.file and one.fields == (name,))


def outcomes(dataset: shardload.ShardDataset) -> dict[int, ShardloadError]:
    """Reads all samples, each alone; returns the errors."""
    errors = {}
    for sample_id in range(len(dataset)):
        try:
            sample = dataset[sample_id]
            assert sample["jpg"] == value(*divmod(sample_id, NUM_SAMPLES))
            assert sample["txt"] == f"text of {sample['key']}"
        except ShardloadError as error:
            errors[sample_id] = error
    return errors


def flip(tar: Path, at: int) -> None:
    with tar.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("engine", ["map", "pread"])
@pytest.mark.parametrize("name", ["jpg", "txt"])
def test_a_byte_that_has_changed(tars: Path, engine: str, name: str) -> None:
    for sample_id in (9, 11):
        start, stop = place_of(tars, sample_id, name)
        flip(tars / "t1.tar", stop - 1)
    errors = outcomes(shardload.open(tars, engine=engine))
    assert sorted(errors) == [9, 11]
    error = errors[11]
    assert isinstance(error, ChecksumError) and error.shard == "t1.tar" and error.sample_id == 11
    assert error.start <= start < stop <= error.stop
    assert f"t1.tar has changed since it was indexed, at bytes {error.start} to {error.stop}" in str(error)
    assert "(sample 11)" in str(error) and AGAIN in str(error)
    # A batch names the first; the header of a member is nobody's value, but the tar's digest tells of it.
    with pytest.raises(ChecksumError, match=r"\(sample 9\)"):
        shardload.open(tars, engine=engine).__getitems__([12, 11, 0, 9])
    (damage,) = verify_dataset(tars)
    assert damage.file == "t1.tar" and list(damage.sample_ids) == [9, 11] and AGAIN in damage.message
    assert main(["verify", str(tars)]) == 1


def test_a_byte_between_values(tars: Path) -> None:
    flip(tars / "t0.tar", place_of(tars, 3, "jpg")[0] - 512)
    assert not outcomes(shardload.open(tars))
    (damage,) = verify_dataset(tars)
    assert damage.file == "t0.tar" and not list(damage.sample_ids)


def truncate(tar: Path) -> None:
    os.truncate(tar, tar.stat().st_size // 2)


def cut_zeros(tar: Path) -> None:
    os.truncate(tar, tar.stat().st_size - 512)


def extend(tar: Path) -> None:
    with tar.open("ab") as file:
        file.write(bytes(512))


def replace(tar: Path) -> None:
    """Puts another tar of the same length in its place."""
    size = tar.stat().st_size
    tar.unlink()
    tar.write_bytes(os.urandom(size))


@pytest.mark.parametrize("engine", ["map", "pread"])
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (truncate, FormatError, "t1.tar has [0-9]+ bytes instead of [0-9]+"),
        (cut_zeros, FormatError, "t1.tar has [0-9]+ bytes instead of [0-9]+"),
        (extend, FormatError, "t1.tar has [0-9]+ bytes instead of [0-9]+"),
        (Path.unlink, StorageError, "t1.tar is missing"),
        (replace, ChecksumError, "t1.tar has changed since it was indexed"),
    ],
)
def test_a_tar_that_is_another(
    tars: Path, engine: str, change: Callable[[Path], None], kind: type[ShardloadError], message: str
) -> None:
    change(tars / "t1.tar")
    errors = outcomes(shardload.open(tars, engine=engine))
    assert sorted(errors) == list(range(NUM_SAMPLES, 2 * NUM_SAMPLES))
    for sample_id, error in errors.items():
        assert isinstance(error, kind) and error.shard == "t1.tar" and error.sample_id == sample_id
        with pytest.raises(kind, match=rf"{message}.*sample {sample_id}\b.*{AGAIN}"):
            raise error
    (damage,) = verify_dataset(tars)
    assert damage.file == "t1.tar" and list(damage.sample_ids) == sorted(errors)
    assert AGAIN in damage.message
    # A loader tells the same, or goes on without these samples if it is asked to.
    dataset = shardload.open(tars, engine=engine)
    with shardload.ShardLoader(dataset, batch_size=4, shuffle=False) as loader, pytest.raises(kind, match=message):
        list(loader)


@pytest.mark.parametrize("verify", ["off", "once"])
@pytest.mark.parametrize("where", ["half", "within the last page"])
def test_a_tar_that_is_cut_while_it_is_read(tars: Path, verify: str, where: str) -> None:
    dataset = shardload.open(tars, verify=verify)
    assert dataset.engine_name == "map" and not outcomes(dataset)
    assert dataset._process_access().engine._mapped.mapped.all()
    tar, ends = tars / "t1.tar", [place_of(tars, i, "txt")[1] for i in range(2 * NUM_SAMPLES)]
    # Of the last page the rest reads as zeros then, without a signal.
    os.truncate(tar, tar.stat().st_size // 2 if where == "half" else ends[-1] - 1)
    size, errors = tar.stat().st_size, outcomes(dataset)
    lost = [i for i in range(NUM_SAMPLES, 2 * NUM_SAMPLES) if ends[i] > size]
    assert lost and set(lost) <= set(errors) <= set(range(NUM_SAMPLES, 2 * NUM_SAMPLES))
    for error in errors.values():
        assert isinstance(error, StorageError) and error.shard == "t1.tar" and AGAIN in str(error)


def test_zeros_that_are_cut_are_missed_by_nobody_who_reads(tars: Path) -> None:
    dataset = shardload.open(tars)
    assert not outcomes(dataset)
    cut_zeros(tars / "t1.tar")
    assert not outcomes(dataset)
    assert [damage.file for damage in verify_dataset(tars)] == ["t1.tar"]


def test_only_what_is_wanted_is_read_once_it_is_checked(tars: Path) -> None:
    dataset = shardload.open(tars, verify="once")
    list(dataset)
    flip(tars / "t0.tar", place_of(tars, 2, "jpg")[0])
    alone = shardload.open(tars, verify="off", fields=["txt", "key"])
    access = alone._process_access()
    lengths: list[int] = []
    real = access.engine.read_joined
    access.engine.read_joined = lambda ranges: (lengths.append(int(ranges.lengths.sum())), real(ranges))[1]
    assert alone[2] == {"key": "k02", "txt": "text of k02"}
    assert sum(lengths) < 200
    with pytest.raises(ChecksumError):
        shardload.open(tars, verify="always", fields=["txt"])[2]


def test_more_tars_than_addresses_are_read_by_position(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (indexed / "t0.tar").stat().st_size
    monkeypatch.setattr("shardload.reader.access.spare_bytes", lambda manifest: size + 4096)
    dataset = shardload.open(indexed)
    assert dataset.engine_name == "map" and not outcomes(dataset)
    mapped = dataset._process_access().engine._mapped
    assert len(mapped.mapped) == 3 and mapped.mapped[2]


def test_there_are_addresses_for_tars_of_any_sizes() -> None:
    """A shard with large ones, which start on large pages, comes behind one with small ones, again and again."""
    shards = [np.array([10_240]), np.array([(2 << 20) + 1])] * 20
    num_bytes = sum(int(sizes.sum()) for sizes in shards)
    manifest = SimpleNamespace(external_bytes=num_bytes, external=True)
    mapped = MappedFiles(np.array([1 << 20]), spare_bytes(cast(Manifest, manifest)))
    for sizes in shards:
        mapped.add(sizes)
    assert len(mapped.mapped) == 1 + len(shards)


def test_a_few_open_files_are_enough(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = shardload.open(indexed, engine="pread")
    dataset._process_access()._shards._files._max_files = 1
    assert not outcomes(dataset)


# What an index may claim, under right digests.


def heap_of(forged: Forge) -> bytearray:
    return forged.shards[0].section(layout.SECTION_HEAP).data


def patch(forged: Forge, sample: int, offset: int, data: bytes) -> None:
    """Writes into the record of a sample of the first shard."""
    start = forged.shards[0].record_at(sample)[0]
    heap_of(forged)[start + offset : start + offset + len(data)] = data


HEADER = 4 + 4 * 3


def another_file(forged: Forge) -> None:
    patch(forged, 1, HEADER, (1).to_bytes(4, "little"))


def behind_the_end(forged: Forge) -> None:
    patch(forged, 1, HEADER + 4 + 8, (1 << 30).to_bytes(8, "little"))


def far_behind_the_end(forged: Forge) -> None:
    patch(forged, 1, HEADER + 4 + 8, ((1 << 64) - 2).to_bytes(8, "little"))


def twice_the_same(forged: Forge) -> None:
    start = forged.shards[0].record_at(0)[0] + HEADER + 4 + 16
    patch(forged, 1, HEADER + 4 + 16, bytes(heap_of(forged)[start : start + 8]))


def all_in_the_record(forged: Forge) -> None:
    patch(forged, 1, HEADER + 4, b"\xff" * 24)


def an_empty_range(forged: Forge) -> None:
    patch(forged, 1, 4 + 8, bytes(4))


def longer_than_it_is(forged: Forge) -> None:
    patch(forged, 1, 4 + 4, (0xFFFFFFF).to_bytes(4, "little"))


def not_external(forged: Forge) -> None:
    forged.shards[0].rows[PLACE][1] &= np.uint64(layout.OFFSET_MASK)


def framed_too(forged: Forge) -> None:
    forged.shards[0].rows[PLACE][1] |= np.uint64(1 << layout.OFFSET_BITS)


def another_raw_length(forged: Forge) -> None:
    forged.shards[0].rows[RAW][1] += 1


def without_a_list(forged: Forge) -> None:
    forged.shards[0].sections = [s for s in forged.shards[0].sections if s.kind != layout.SECTION_EXTERNAL]


def named(*names: str, **facts: object) -> Callable[[Forge], None]:
    def edit(forged: Forge) -> None:
        section = forged.shards[0].section(layout.SECTION_EXTERNAL)
        files = [ExternalFile(**({"name": name, "num_bytes": 9, "sha256": "0" * 64} | facts)) for name in names]
        section.data = bytearray(encode_external(files))

    edit.__name__ = f"named {names} {facts}"
    return edit


def not_required(forged: Forge) -> None:
    forged.edit_manifest = lambda manifest: manifest.__setitem__("required", [])


CLAIMS = [
    *(another_file, behind_the_end, far_behind_the_end, twice_the_same, all_in_the_record, an_empty_range),
    *(longer_than_it_is, not_external, framed_too, another_raw_length, without_a_list, not_required),
    *(named("../t0.tar"), named("/etc/passwd"), named("a\\b"), named(".."), named("c:t0.tar"), named("a\nb")),
    *(named("t0.tar", "t0.tar"), named("t0.tar", sha256="x"), named("t0.tar", num_bytes=0), named("n" * 256)),
    named("t0.tar", num_bytes=1 << 60),
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize("verify", ["always", "off"])
def test_an_index_that_lies(indexed: Path, tmp_path: Path, claim: Callable[[Forge], None], verify: str) -> None:
    forged = Forge.copy(indexed, tmp_path / "forged")
    claim(forged)
    path = forged.save()
    dataset = shardload.open(path, verify=verify)
    with pytest.raises(FormatError) as caught:
        dataset.__getitems__([1, 0])
    assert caught.value.shard == "shards/0001-000000-00000.shard" or "directory and footer" not in str(caught.value)
    if verify == "off":
        assert any(damage.file.startswith("shards/") for damage in verify_dataset(path, samples=True))
