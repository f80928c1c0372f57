"""Files that are damaged without repair (F3), of the wrong kind (F4), or sound and in the wrong place (F5)."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from forge import Forge
from hostile.base import SCHEMA, sample
from hostile.judge import bounded_memory, check_error, check_verify

import shardload
from shardload.format import layout
from shardload.reader.verify import verify_dataset

POSITIONS = 100
BROAD = 120
"""Samples of a dataset with shards of some hundred KiB: room for regions of 64 KiB."""


def broad_sample(i: int) -> dict[str, object]:
    noise = np.random.default_rng(i).integers(0, 1 << 16, 4096, dtype=np.uint16)
    return {"data": noise[: 1000 + i].tobytes(), "wide": noise[:512], "tokens": noise[: 10 * i], "number": i}


@pytest.fixture(scope="module")
def broad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that these tests damage and mend again."""
    path = tmp_path_factory.mktemp("broad") / "dataset"
    types = {"data": "bytes", "wide": "uint16[512]", "tokens": "uint16[*]", "number": "int64"}
    with shardload.ShardWriter(path, types, shard_size="256KiB") as writer:
        for i in range(BROAD):
            writer.write(broad_sample(i))
    return path


@pytest.fixture(scope="module")
def broad_samples() -> list[dict[str, object]]:
    return [broad_sample(i) for i in range(BROAD)]


def appended(shards: list[bytes], draw: random.Random) -> bytes:
    return shards[0] + draw.randbytes(draw.choice([1, 2, 64, 4096, draw.randrange(1, 1 << 16)]))


def zeroed(shards: list[bytes], draw: random.Random) -> bytes:
    at = draw.randrange(len(shards[0]) - 1)
    return shards[0][:at] + bytes(min(1 << 16, len(shards[0]) - at)) + shards[0][at + (1 << 16) :]


def of_another(shards: list[bytes], draw: random.Random) -> bytes:
    size = min(1 << 16, len(shards[1]))
    at = draw.randrange(min(map(len, shards)) - 1) // 4096 * 4096
    part = shards[1][at : at + size]
    return (shards[0][:at] + part + shards[0][at + len(part) :])[: len(shards[0])]


def moved(shards: list[bytes], draw: random.Random) -> bytes:
    """A wide value, or block of the stream, goes over the one behind it."""
    size = draw.choice([1024, 4096])
    at = 4096 + draw.randrange((len(shards[0]) - 4096 - 2 * size) // size) * size
    return shards[0][: at + size] + shards[0][at : at + size] + shards[0][at + 2 * size :]


@pytest.mark.parametrize("mutate", [appended, zeroed, of_another, moved])
def test_regions(broad, broad_samples, mutate):
    """100 places each: verify finds all that differs, and no read gives a wrong sample."""
    files = sorted((broad / "shards").iterdir())
    good = [file.read_bytes() for file in files]
    draw = random.Random(f"regions {mutate.__name__}")
    tried = 0
    for number in range(POSITIONS):
        bad = mutate(good, draw)
        if bad == good[0]:
            continue
        files[0].write_bytes(bad)
        # To name the samples takes verify long; the digest of the file tells of each change alike.
        assert number % 4 or verify_dataset(broad, workers=1)
        dataset = shardload.open(broad, verify="always")
        count = int(dataset.table[0].num_samples)
        try:
            assert all(map(_same, dataset.__getitems__(range(count)), broad_samples))
        except (shardload.FormatError, shardload.StorageError) as error:
            check_error(error, broad)
            for i in draw.sample(range(count), 3):
                _read(dataset, i, broad_samples[i])
        tried += 1
    files[0].write_bytes(good[0])
    assert tried >= POSITIONS * 0.9
    assert verify_dataset(broad) == []


def _same(left: dict, right: dict) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in right)


def _read(dataset, i: int, expected: dict) -> None:
    try:
        assert _same(dataset[i], expected), f"a wrong sample {i}"
    except (shardload.FormatError, shardload.StorageError) as error:
        check_error(error, Path(dataset.location))


def test_wide_values_exchanged(broad, broad_samples):
    """The value of one sample in the place of the next; the sum in its row is that of its own."""
    file = sorted((broad / "shards").iterdir())[0]
    good = file.read_bytes()
    forged = Forge(broad)
    section = forged.shards[0].section(layout.SECTION_WIDE, "wide")
    at = good.index(bytes(section.data))
    for i in range(8):
        one, two = at + 1024 * i, at + 1024 * (i + 1)
        file.write_bytes(good[:one] + good[two : two + 1024] + good[one : one + 1024] + good[two + 1024 :])
        dataset = shardload.open(broad, verify="always")
        for sample_id in (i, i + 1):
            with pytest.raises(shardload.ChecksumError, match=f"sample {sample_id}"):
                dataset[sample_id]
    file.write_bytes(good)


def test_records_of_one_length_exchanged(tmp_path):
    """Each is whole with its own checksum in it, and the rows are right: only the sample's number in the sum tells."""
    with shardload.ShardWriter(tmp_path / "d", {"data": "bytes"}) as writer:
        for i in range(8):
            writer.write({"data": bytes([i]) * 100})
    forged = Forge(tmp_path / "d")
    file, shard = forged.path / forged.names[0], forged.shards[0]
    good = file.read_bytes()
    for one, two in ((0, 1), (1, 2), (0, 7), (3, 5)):
        bad = bytearray(good)
        (a, b), (c, d) = ((layout.HEADER_BYTES + at for at in shard.record_at(i)) for i in (one, two))
        bad[a:b], bad[c:d] = good[c:d], good[a:b]
        file.write_bytes(bad)
        dataset = shardload.open(forged.path, verify="always")
        for sample_id in (one, two):
            with pytest.raises(shardload.ChecksumError, match=f"sample {sample_id}"):
                dataset[sample_id]
        assert dataset[4]["data"] == b"\4" * 100


# The wrong kind of file.


def missing(path: Path) -> None:
    path.unlink()


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def below_a_file(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_bytes(b"")


def name_too_long(path: Path) -> None:
    path.unlink()
    path.symlink_to("n" * 300)


KINDS = [missing, directory, fifo, device, loop, nowhere, empty, name_too_long]


# Without manifest.json the newest of manifests/ counts, and a link to nowhere is a name that is there: see below.
PLACES = [("manifest", kind) for kind in KINDS if kind not in (missing, nowhere)]
PLACES += [(name, kind) for name in ("table", "shard") for kind in (*KINDS, below_a_file)]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name, kind", PLACES, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_files_of_the_wrong_kind(forge, commands, name, kind):
    forged = forge()
    tables = f"tables/{forged.sound.table}"
    path = forged.path / {"manifest": "manifest.json", "table": tables, "shard": forged.names[0]}[name]
    if kind is name_too_long:
        try:
            kind(path)
        except OSError:
            pytest.skip("this file system takes no link of that length")
    else:
        kind(path)
    with bounded_memory(), pytest.raises((shardload.StorageError, shardload.FormatError)) as caught:
        dataset = shardload.open(forged.path)
        assert name == "shard"
        dataset[0]
    check_error(caught.value, forged.path)
    assert os.path.basename(path) in str(caught.value)
    assert kind not in (directory, fifo, device) or "not a regular file" in str(caught.value)
    assert _verify_tells(forged.path)
    if name == "shard" and kind is not below_a_file:
        # The other shards stay readable.
        assert dataset[-1]["number"] == len(dataset) - 1
    commands(forged.path)


def _verify_tells(path: Path) -> bool:
    """Whether verify names damage, or refuses for there is no dataset."""
    try:
        return bool(check_verify(path))
    except shardload.StorageError as error:
        check_error(error, path)
        return True


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [directory, fifo, device, loop, nowhere, empty], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("version", [1, 2])
def test_no_manifest_and_an_original_of_the_wrong_kind(forge, kind, version):
    forged = forge()
    (forged.path / "manifest.json").unlink()
    kind(forged.path / "manifests" / str(version))
    if version == 1:
        assert shardload.open(forged.path).manifest.version == 2
        return
    with bounded_memory(), pytest.raises((shardload.StorageError, shardload.FormatError)) as caught:
        shardload.open(forged.path)
    check_error(caught.value, forged.path)
    assert _verify_tells(forged.path)


@pytest.mark.parametrize("kind", ["gone", "empty", "file", "loop", "fifo", "no numbers", "closed"])
def test_no_manifest_and_no_list_of_them(forge, commands, kind):
    forged = forge()
    (forged.path / "manifest.json").unlink()
    manifests = forged.path / "manifests"
    shutil.rmtree(manifests)
    if kind == "file":
        manifests.write_bytes(b"")
    elif kind == "loop":
        manifests.symlink_to("manifests")
    elif kind == "fifo":
        os.mkfifo(manifests)
    elif kind != "gone":
        manifests.mkdir(mode=0 if kind == "closed" else 0o777)
    if kind == "no numbers":
        for name in ("a", "-1", "1.json", "0x1", ".1", "1 "):
            (manifests / name).write_bytes(b"")
    with pytest.raises((shardload.StorageError, shardload.FormatError)) as caught:
        shardload.open(forged.path)
    check_error(caught.value, forged.path)
    assert _verify_tells(forged.path)
    commands(forged.path)


@pytest.mark.parametrize("name", ["\u0663", "0", "00", "007", "9" * 200, "\uff19"])
def test_names_that_are_numbers_after_a_fashion(forge, name):
    """Without manifest.json the highest number counts; what is no version's name is not taken for one."""
    forged = forge()
    (forged.path / "manifest.json").unlink()
    (forged.path / "manifests" / name).write_bytes(b"")
    try:
        assert shardload.open(forged.path).manifest.version == 2
    except (shardload.StorageError, shardload.FormatError) as error:
        check_error(error, forged.path)
    _verify_tells(forged.path)


def test_a_version_under_the_name_of_another(forge):
    """Version 2 asked for, or the newest, is not version 1 under its name."""
    forged = forge()
    first, second = (forged.path / "manifests" / name for name in "12")
    second.write_bytes(first.read_bytes())
    with pytest.raises(shardload.FormatError, match="version") as caught:
        shardload.open(forged.path, version=2)
    check_error(caught.value, forged.path)
    (forged.path / "manifest.json").unlink()
    with pytest.raises(shardload.FormatError, match="version"):
        shardload.open(forged.path)


@pytest.mark.parametrize("path", ["", "file", "no such", "fifo", "loop", "device"])
def test_no_dataset(tmp_path, commands, path):
    where = tmp_path / (path or "empty")
    if path == "":
        where.mkdir()
    elif path == "file":
        where.write_bytes(b"")
    elif path == "fifo":
        os.mkfifo(where)
    elif path == "loop":
        where.symlink_to("loop")
    elif path == "device":
        where = Path("/dev/null")
    with pytest.raises(shardload.StorageError) as caught:
        shardload.open(where)
    check_error(caught.value, where)
    commands(where)


# Sound files in the wrong place.


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another dataset of the same schema, and of shards of the same lengths: one number differs in each sample."""
    path = tmp_path_factory.mktemp("other") / "dataset"
    from hostile.base import FIRST, SAMPLES

    options = {"compression": "zstd:3", "shard_size": "32KiB"}
    with shardload.ShardWriter(path, SCHEMA, key="name", dictionary="on", **options) as writer:
        for i in range(FIRST):
            writer.write(sample(i) | {"number": i + 1000})
    with shardload.ShardWriter(path, {**SCHEMA, "late": "str?"}, append=True, dictionary="off", **options) as writer:
        for i in range(FIRST, SAMPLES):
            writer.write(sample(i) | {"number": i + 1000})
    return path


def pairs() -> Iterator[tuple[int, int]]:
    return ((a, b) for a in range(3) for b in range(3) if a != b)


@pytest.mark.parametrize("one, two", list(pairs()))
@pytest.mark.parametrize("length", ["as it is", "cut or filled"])
def test_shards_swapped(forge, judge, one, two, length):
    forged = forge()
    paths = [forged.path / forged.names[i] for i in (one, two)]
    first, second = (path.read_bytes() for path in paths)
    if length != "as it is":
        # The end stays the end: only its content tells.
        first, second = (
            (second[-len(first) :]).rjust(len(first), b"\0"),
            (first[-len(second) :]).rjust(len(second), b"\0"),
        )
    else:
        first, second = second, first
    paths[0].write_bytes(first)
    paths[1].write_bytes(second)
    for place in (one, two):
        with pytest.raises(shardload.FormatError, match=os.path.basename(forged.names[place])):
            shardload.open(forged.path)[sum(int(n) for n in forged.entries["num_samples"][:place])]
    assert {damage.file for damage in check_verify(forged.path)} == {forged.names[one], forged.names[two]}
    judge(forged.path, by="item")


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_a_shard_of_another_dataset_of_the_same_schema(forge, judge, other, commands, shard):
    forged = forge()
    name = forged.names[shard]
    data = (other / name).read_bytes()
    assert len(data) == (forged.path / name).stat().st_size
    (forged.path / name).write_bytes(data)
    judge(forged.path, by="item")
    assert [damage.file for damage in check_verify(forged.path)] == [name]
    commands(forged.path, ("verify",))


@pytest.mark.parametrize("name", ["manifest.json", "table"])
def test_a_manifest_or_table_of_another_dataset(forge, other, name):
    forged = forge()
    theirs = Forge(other)
    if name == "table":
        shutil.copy(other / "tables" / theirs.sound.table, forged.path / "tables" / forged.sound.table)
    else:
        shutil.copy(other / name, forged.path / name)
    with pytest.raises((shardload.FormatError, shardload.StorageError)) as caught:
        shardload.open(forged.path)
    check_error(caught.value, forged.path)


def test_manifest_and_table_of_another_dataset(forge, other):
    """Together they open: the shards' heads tell, and a pinned fingerprint."""
    forged = forge()
    fingerprint = forged.sound.fingerprint
    for name in ("manifest.json", "manifests/2", f"tables/{Forge(other).sound.table}"):
        shutil.copy(other / name, forged.path / name)
    with pytest.raises(shardload.StateMismatchError):
        shardload.open(forged.path, fingerprint=fingerprint)
    for sample_id in range(len(shardload.open(forged.path))):
        with pytest.raises(shardload.ChecksumError):
            shardload.open(forged.path)[sample_id]


@pytest.mark.parametrize("generation", [2, 3, 1 << 31])
def test_a_shard_under_another_identity(forge, judge, generation):
    """Renamed with header, table and digests made right: the sums of its blocks name the identity it was written for."""
    forged = forge()
    forged.shards[0].repaired = False
    forged.shards[0].header[20:24] = generation.to_bytes(4, "little")
    name = layout.shard_name(generation, 0, 0)
    if generation == 2:
        # In the place of the newer generation's own shard; both are there, the newer one goes.
        forged.shards, forged.names, forged.entries = forged.shards[:1], [name], forged.entries[:1].copy()
    else:
        forged.names[0] = name
    forged.edit_entries = lambda entries: entries["generation"].__setitem__(0, generation)
    path = forged.save()
    with pytest.raises(shardload.FormatError) as caught:
        shardload.open(path)[0]
    check_error(caught.value, path)


@pytest.mark.parametrize("unit, part", [(0, 1), (1, 0), (7, 7)])
def test_a_shard_under_another_unit_or_part(forge, unit, part):
    forged = forge()
    shard = forged.shards[2]
    shard.repaired = False
    shard.header[24:32] = unit.to_bytes(4, "little") + part.to_bytes(4, "little")
    forged.names[2] = layout.shard_name(2, unit, part)

    def edit(entries):
        entries["unit"][2], entries["part"][2] = unit, part

    forged.edit_entries = edit
    dataset = shardload.open(forged.save(), verify="always")
    for sample_id in range(len(dataset) - 1, len(dataset) - shard.num_samples - 1, -1):
        with pytest.raises(shardload.ChecksumError, match=f"sample {sample_id}"):
            dataset[sample_id]
    # Only with the checks switched off does it read.
    assert shardload.open(forged.path, verify="off")[-1]["number"] == len(dataset) - 1


TABLES = {
    "out of order": lambda entries: entries[::-1].copy(),
    "one twice": lambda entries: np.concatenate([entries[:1], entries]),
    "the last twice": lambda entries: np.concatenate([entries, entries[-1:]]),
    "one less": lambda entries: entries[1:].copy(),
    "none": lambda entries: entries[:0].copy(),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(forge, judge, name):
    forged = forge()
    forged.edit_entries = TABLES[name]
    path = forged.save_above()
    if name in ("one less", "none"):
        # Sound but for the shards that are left over: it is a smaller dataset, and says so.
        assert len(shardload.open(path)) == sum(int(n) for n in TABLES[name](forged.entries)["num_samples"])
        return
    with pytest.raises(shardload.FormatError, match="order"):
        shardload.open(path)


@pytest.mark.parametrize("generation", [0, 3, 1 << 31, (1 << 32) - 1])
def test_a_generation_that_the_manifest_does_not_name(forge, generation):
    forged = forge()
    forged.edit_entries = lambda entries: entries["generation"].__setitem__(2, generation)
    with pytest.raises(shardload.FormatError) as caught:
        shardload.open(forged.save_above())
    check_error(caught.value, forged.path)


@pytest.mark.parametrize("total", ["num_samples", "num_bytes", "num_shards"])
@pytest.mark.parametrize("change", [-1, 1, 1 << 32])
def test_sums_of_the_table(forge, total, change):
    forged = forge()
    forged.edit_manifest = lambda manifest: manifest.__setitem__(total, manifest[total] + change)
    with pytest.raises(shardload.FormatError) as caught:
        shardload.open(forged.save_above())
    check_error(caught.value, forged.path)


@pytest.mark.parametrize("value", [1, (1 << 63) + 1, (1 << 64) - 1])
@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("shard", [0, 2])
def test_items_of_streams_that_are_not_those_of_the_shard(forge, commands, value, stream, shard):
    forged = forge()

    def edit(entries):
        entries["num_items"][shard][stream] = (int(entries["num_items"][shard][stream]) + value) % (1 << 64)

    forged.edit_entries = edit
    dataset = shardload.open(forged.save_above())
    with pytest.raises(shardload.FormatError) as caught:
        dataset[0 if shard == 0 else -1]
    check_error(caught.value, forged.path)
    commands(forged.path, ("info",))
