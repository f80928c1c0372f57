"""Tars that are indexed where they lie give the samples of their packed copy, in every way of reading."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import plain_reader
import pytest
import strict_reader
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import same
from tars import END, long_name, member

import shardload
from shardload.cli import main
from shardload.errors import PackError
from shardload.format.external import ExternalFile
from shardload.reader.verify import verify_dataset
from shardload.storage import Operations
from shardload.writer.external import ExternalFiles

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
JSON = st.recursive(
    st.none() | st.integers(-(1 << 63), 1 << 63) | TEXTS, lambda one: st.lists(one, max_size=3), max_leaves=4
)
SPACED = st.sampled_from([b"%s", b"\xef\xbb\xbf%s", b" \n%s\t", b"%s\n"])


def jpeg(seed: int, size: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@st.composite
def members(draw: st.DrawFn, number: int) -> dict[str, object]:
    """A sample in the words of webdataset; some members may be missing, or empty."""
    long = "folder/" * draw(st.sampled_from([0, 0, 1, 20]))
    seed = draw(st.integers(0, 99))
    sample: dict[str, object] = {
        "__key__": f"{long}s{number:04d}",
        "jpg": jpeg(seed, draw(st.sampled_from([1, 20, 110]))),
        "cls": b"%d" % (number - 3),
        "json": draw(SPACED) % json.dumps([draw(JSON)], indent=draw(st.sampled_from([None, 1]))).encode(),
        "txt": draw(TEXTS).encode(),
        "bin": draw(st.binary(max_size=700)),
        "vec.npy": npy(np.arange(seed, dtype=np.int32)),
        "wide.npy": npy(np.full((16, 16), number, np.float32)),
    }
    for name in draw(st.sets(st.sampled_from(["txt", "json", "bin", "jpg"]), max_size=3)):
        del sample[name]
    return sample


@st.composite
def corpora(draw: st.DrawFn) -> list[list[dict[str, object]]]:
    """Tars as lists of samples; the first has all members, so that all have a type, and each tar one that stays in it."""
    numbers = iter(range(1000))
    whole = draw(members(next(numbers))) | {"txt": b"x", "json": b"1", "bin": b"b", "jpg": jpeg(0, 8)}
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    tars = [[draw(members(next(numbers))) for _ in range(count)] for count in counts]
    return [[whole, *tars[0]], *([first | {"bin": b"b"}, *rest] for first, *rest in tars[1:])]


def write_tars(folder: Path, tars: list[list[dict[str, object]]], first: int = 0) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for number, samples in enumerate(tars, first):
        paths.append(folder / f"part-{number:03d}.tar")
        with webdataset.TarWriter(str(paths[-1])) as writer:
            for sample in samples:
                writer.write(sample)
    return paths


def some_tars(folder: Path, count: int = 3, size: int = 12, first: int = 0) -> list[Path]:
    """Tars of samples with a jpeg, a text and a class each, no two alike."""
    tars = [
        [
            {
                "__key__": f"k{t:02d}-{i:03d}",
                "jpg": jpeg(100 * t + i, 30 + 20 * (i % 4)),
                "txt": f"text {t} {i}".encode(),
                "cls": b"%d" % i,
            }
            for i in range(size)
        ]
        for t in range(first, first + count)
    ]
    return write_tars(folder, tars, first)


def files_of(folder: Path) -> dict[str, str]:
    """The digests of what a dataset consists of, tars and who packed it apart."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tar")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def check_equal(indexed: Path, packed: Path, seed: int = 0) -> None:
    """Compares all ways of reading."""
    copy = shardload.open(packed)
    order = random.Random(seed).choices(range(len(copy)), k=2 * len(copy))
    expected = copy.__getitems__(order)
    for engine, verify in (("map", "once"), ("map", "off"), ("pread", "always")):
        dataset = shardload.open(indexed, engine=engine, verify=verify)
        assert dataset.schema.fields == tuple(
            f.__class__(**{**vars_of(f), "codec": "none"}) for f in copy.schema.fields
        )
        for _ in range(2):
            found = dataset.__getitems__(order)
            assert len(found) == len(expected)
            assert all(same(one, other) for one, other in zip(found, expected, strict=True))
        for name in copy.schema:
            alone = shardload.open(indexed, engine=engine, verify=verify, fields=[name]).__getitems__(order)
            assert all(same(one[name], other[name]) for one, other in zip(alone, expected, strict=True))
            field = copy.schema[name]
            if not field.fixed and field.kind != "json":
                assert dataset.lengths(name).tolist() == copy.lengths(name).tolist()
                assert dataset.statistics()[name] == copy.statistics()[name]
    check_reader(plain_reader, indexed, packed)


def check_reader(reader: ModuleType, indexed: Path, packed: Path) -> None:
    """Compares what a reader written from the format page alone gives."""
    copy = shardload.open(packed)
    read = list(reader.read_dataset(indexed))
    assert len(read) == len(copy)
    for one, other in zip(read, copy, strict=True):
        for name, value in other.items():
            assert np.array_equal(one[name], value) if copy.schema[name].numeric else same(one[name], value)


class Cut(Operations):
    """Ends with the third shard."""

    def open_new(self, path: str) -> int:
        if path.endswith("0001-000002-00000.shard"):
            raise KeyboardInterrupt
        return super().open_new(path)


class CutAtTheEnd(Operations):
    """Ends after the commit: before the copy of the manifest, or before the job is removed."""

    def __init__(self, place: str) -> None:
        self.place = place

    def replace(self, source: str, target: str) -> None:
        if target.endswith(f"/{self.place}") and "/.work/" not in target:
            raise KeyboardInterrupt
        super().replace(source, target)

    def unlink(self, path: str) -> None:
        if path.endswith(f"/{self.place}"):
            raise KeyboardInterrupt
        super().unlink(path)


def vars_of(field: object) -> dict[str, object]:
    return {name: getattr(field, name) for name in field.__dataclass_fields__}


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(corpora(), st.sampled_from(["256MiB", "12KiB"]), st.integers(0, 9))
def test_indexed_tars_are_their_packed_copy(tars: list[list[dict[str, object]]], shard_size: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder, copy = Path(directory, "tars"), Path(directory, "copy")
        paths = write_tars(folder, tars)
        before = [path.read_bytes() for path in paths]
        summary = shardload.index(folder, key="key", shard_size=shard_size, unit_size=20_000, workers=1)
        shardload.pack([str(path) for path in paths], copy, key="key", workers=1)
        assert [path.read_bytes() for path in paths] == before
        assert summary.num_samples == len(shardload.open(copy)) == sum(map(len, tars))
        check_equal(folder, copy, seed)
        assert verify_dataset(folder, samples=True) == []
        dataset = shardload.open(folder)
        keys = [str(sample["__key__"]) for samples in tars for sample in samples]
        assert dataset.find_many(keys[::-1]).tolist() == list(range(len(keys)))[::-1]
        assert [file.name for file in dataset.external_files()] == [path.name for path in paths]
        assert dataset.num_bytes == dataset.manifest.num_bytes + sum(map(len, before))


def test_an_epoch_of_the_loader_is_that_of_the_packed_copy(tmp_path: Path) -> None:
    paths = some_tars(tmp_path / "tars")
    shardload.index(tmp_path / "tars", workers=1)
    shardload.pack([str(path) for path in paths], tmp_path / "copy", workers=1)
    epochs = []
    for path in (tmp_path / "tars", tmp_path / "copy"):
        dataset = shardload.open(path)
        with shardload.ShardLoader(dataset, batch_size=5, shuffle=True, seed=3, tail="short", with_ids=True) as loader:
            epochs.append([(b["_sample_id"].tolist(), b["jpg"], b["txt"], b["cls"].tolist(), b["key"]) for b in loader])
    assert epochs[0] == epochs[1] and sum(len(batch[0]) for batch in epochs[0]) == 36
    # All tars of one shard are mapped, beside it.
    dataset = shardload.open(tmp_path / "tars")
    assert len(list(dataset)) == 36 and dataset._process_access().engine._mapped.mapped.tolist() == [True] * 4


@pytest.mark.parametrize("runs", [{"one": 1, "cut": 1}, pytest.param({"one": 1, "two": 2}, marks=pytest.mark.slow)])
def test_the_bytes_are_the_same_for_any_number_of_workers_and_when_continued(tmp_path: Path, runs) -> None:
    digests = []
    some_tars(tmp_path / "tars", count=4, size=5)
    for name, workers in runs.items():
        shutil.copytree(tmp_path / "tars", tmp_path / name)
        facts = {"unit_size": 1, "key": "key", "workers": workers}
        if name == "cut":
            with pytest.raises(KeyboardInterrupt):
                shardload.index(tmp_path / name, **facts, operations=Cut())
            with pytest.raises(PackError, match="--continue"):
                shardload.index(tmp_path / name, **facts)
        summary = shardload.index(tmp_path / name, **facts, resume=name == "cut")
        digests.append({name: digest for name, digest in files_of(tmp_path / name).items() if name != "packed.json"})
        assert summary.num_units == 4 and summary.num_samples == 20
    assert digests[0] == digests[1]
    again = shardload.index(tmp_path / name, unit_size=1, key="key", workers=1, resume=True)
    assert again.num_workers == 0 and again.fingerprint == summary.fingerprint


def test_a_tar_of_which_nothing_stays_there_is_not_indexed_twice(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    write_tars(folder, [[{"__key__": "a", "txt": b"a", "cls": b"1"}], [{"__key__": "b", "cls": b"2"}]])
    shardload.index(folder, workers=1)
    assert len(shardload.open(folder)) == 2
    write_tars(folder, [[{"__key__": "c", "txt": b"c", "cls": b"3"}]], first=2)
    with pytest.raises(PackError, match=r"indexed already no sample has a member.*--replace"):
        shardload.index(folder, workers=1, append=True)
    assert len(shardload.open(folder)) == 2
    shardload.index(folder, workers=1, replace=True)
    assert shardload.open(folder).column("cls").tolist() == [1, 2, 3]


def test_tars_that_come_later(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "tars"
    paths = some_tars(folder, count=2)
    (folder / "README.md").write_text("what this is")
    shardload.index(folder, workers=1)
    with pytest.raises(PackError, match=r"holds a dataset already.*--append"):
        shardload.index(folder)
    with pytest.raises(PackError, match="holds no tar to index; left out: 2 indexed before, 1 not a tar"):
        shardload.index(folder, append=True)
    before = files_of(folder)
    again = shardload.index(folder, append=True, resume=True)
    assert (again.num_samples, again.num_workers, again.version) == (0, 0, 1)
    assert again.skipped == {"indexed before": 2, "not a tar": 1} and files_of(folder) == before
    assert main(["index", str(folder), "--append", "--continue"]) == 0
    assert "nothing to do: no tar is new" in capsys.readouterr().out
    old = shardload.open(folder)
    paths += some_tars(folder, count=2, first=2)
    summary = shardload.index(folder, append=True, workers=1)
    assert (summary.num_samples, summary.version) == (24, 2) and len(old) == 24
    # What a writer adds lies in shards; one and the same batch has both.
    with shardload.ShardWriter(folder, append=True) as writer:
        writer.write({"key": "own", "jpg": b"\xff\xd8\xff own", "txt": "own", "cls": 7})
    shardload.pack([str(path) for path in paths], tmp_path / "copy", workers=1)
    with shardload.ShardWriter(tmp_path / "copy", append=True) as writer:
        writer.write({"key": "own", "jpg": b"\xff\xd8\xff own", "txt": "own", "cls": 7})
    check_equal(folder, tmp_path / "copy")
    assert verify_dataset(folder) == []
    # The manifest made anew from the shards is the same, byte for byte.
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    assert main(["rebuild-index", str(folder)]) == 0
    assert (folder / "manifest.json").read_bytes() == manifest
    assert main(["prune", str(folder)]) == 0 and main(["verify", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} >= {"README.md", *(path.name for path in paths)}
    os.truncate(paths[1], 10_240)
    some_tars(folder, count=1, first=4)
    with pytest.raises(
        PackError, match=r"part-001.tar has 10240 bytes instead of [0-9]+: it has changed since it was indexed"
    ):
        shardload.index(folder, append=True)


@pytest.mark.parametrize("place", ["manifest.json", ".work/job.json"])
def test_an_append_that_was_cut_off_after_its_commit(tmp_path: Path, place: str) -> None:
    some_tars(tmp_path / "tars", count=1, size=2)
    shardload.index(tmp_path / "tars", workers=1)
    some_tars(tmp_path / "tars", count=1, size=2, first=1)
    with pytest.raises(KeyboardInterrupt):
        shardload.index(tmp_path / "tars", append=True, workers=1, operations=CutAtTheEnd(place))
    assert len(shardload.open(tmp_path / "tars")) == (2 if place == "manifest.json" else 4)
    assert (tmp_path / "tars/.work/job.json").exists()
    shardload.index(tmp_path / "tars", append=True, workers=1, resume=True)
    assert [sample["key"] for sample in shardload.open(tmp_path / "tars")] == [
        "k00-000",
        "k00-001",
        "k01-000",
        "k01-001",
    ]
    assert not (tmp_path / "tars/.work").exists()


def test_members_in_any_order(tmp_path: Path) -> None:
    data = b"".join(
        member(f"k{i}.{name}", f"{name} {i}".encode()) for i in range(4) for name in ("txt", "a.bin", "seg.txt", "b")
    )
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/long.tar").write_bytes(long_name(b"x" * 200 + b".txt") + member("x", b"1") + data + END)
    schema = dict.fromkeys(("b", "seg.txt", "a.bin", "key", "txt"), "str?")
    shardload.index(tmp_path / "tars", workers=1, schema=schema)
    shardload.pack([tmp_path / "tars/long.tar"], tmp_path / "copy", workers=1, schema=schema)
    check_equal(tmp_path / "tars", tmp_path / "copy")
    check_reader(strict_reader, tmp_path / "tars", tmp_path / "copy")


@given(st.lists(st.sampled_from(["a", "ü", "x" * 200, '"']), max_size=8))
def test_the_length_of_a_list_of_files_is_known_before(names: list[str]) -> None:
    files = ExternalFiles()
    for name in names:
        file = ExternalFile(name, 10, "0" * 64)
        expected = files.num_bytes_with(file)
        numbers = [files.number(file), files.number(file)]
        assert expected == files.num_bytes_with(None) == len(files.encode())
        assert numbers[0] == numbers[1] < len(set(names))


def test_tars_beside_a_packed_dataset_with_compression(tmp_path: Path) -> None:
    """Fields of codec zstd: compressed in its shards, and as they are in the tars."""
    sample = {"key": "a", "jpg": b"\xff\xd8\xffa", "txt": "text " * 99, "cls": 1}
    both, paths = [], some_tars(tmp_path / "more", count=1, size=4)
    for name in ("tars", "copy"):
        with shardload.ShardWriter(
            tmp_path / name,
            {"key": "str", "cls": "int64", "jpg": "jpeg", "txt": "str"},
            compression="zstd:3",
            key="key",
        ) as writer:
            writer.write(sample)
        if name == "tars":
            shutil.copy(paths[0], tmp_path / "tars")
            shardload.index(tmp_path / "tars", append=True, workers=1)
        else:
            shardload.pack([str(path) for path in paths], tmp_path / "copy", append=True, workers=1)
        both.append(list(shardload.open(tmp_path / name)))
    assert len(both[0]) == 5 and all(same(one, other) for one, other in zip(*both, strict=True))
    assert verify_dataset(tmp_path / "tars") == []
    for reader in (plain_reader, strict_reader):
        check_reader(reader, tmp_path / "tars", tmp_path / "copy")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: some_tars(folder / "sub", 1), r"sub/part-000.tar lies in a sub-folder.*--exclude sub"),
        (lambda folder: (folder / "a.tar.gz").write_bytes(b""), "a.tar.gz is compressed.*decompress it, pack it"),
        (lambda folder: (folder / "x:y.tar").write_bytes(b""), "x:y.tar cannot be indexed under this name.*rename it"),
        (lambda folder: os.mkfifo(folder / "f.tar"), "f.tar is a FIFO"),
        (
            lambda folder: (folder / "z.tar").write_bytes(b"\1" * 512),
            "z.tar is damaged or was cut short: what stands at",
        ),
        (lambda folder: (folder / "shards").mkdir(), "holds what an unfinished pack left"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no tar to index"),
    ],
)
def test_what_cannot_be_indexed_is_named(tmp_path: Path, make, message: str) -> None:
    folder = tmp_path / "tars"
    some_tars(folder, 1, 3)
    make(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(PackError, match=message):
        shardload.index(folder, workers=1)
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(PackError, match="s3://bucket/tars is a URL: tars are indexed in a local folder"):
        shardload.index("s3://bucket/tars")
    with pytest.raises(PackError, match="is not a folder of tars"):
        shardload.index(tmp_path / "nothing")


def test_tars_of_which_some_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    some_tars(folder, 3, 2)
    some_tars(folder / "sub", 1)
    (folder / "a.tar.gz").write_bytes(b"")
    link = tmp_path / "elsewhere.tar"
    (folder / "part-002.tar").rename(link)
    (folder / "part-002.tar").symlink_to(link)
    shardload.index(
        folder,
        include="part-*.tar",
        exclude=["part-000.tar", "sub"],
        schema={"txt": "bytes", "cls": "float32"},
        workers=1,
    )
    dataset = shardload.open(folder)
    assert [sample["txt"] for sample in dataset] == [b"text 1 0", b"text 1 1", b"text 2 0", b"text 2 1"]
    assert dataset.column("cls").tolist() == [0.0, 1.0, 0.0, 1.0] and list(dataset.schema) == ["txt", "cls"]


def test_what_is_no_sample_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    write_tars(folder, [[{"__key__": f"k{i}", "txt": b"t", "cls": b"x" if i == 3 else b"1"} for i in range(6)]])
    with pytest.raises(PackError, match="sample 'k3': its member 'cls' is no integer"):
        shardload.index(folder, workers=1)
    assert os.listdir(folder) == ["part-000.tar"]
    summary = shardload.index(folder, workers=1, on_error="reject", max_rejects=1)
    assert (summary.num_samples, summary.num_rejects) == (5, 1)
    assert "k3" in (folder / "rejects.jsonl").read_text()
    assert [sample["key"] for sample in shardload.open(folder)] == ["k0", "k1", "k2", "k4", "k5"]


def test_null_in_json_is_a_missing_value(tmp_path: Path) -> None:
    paths = write_tars(
        tmp_path / "tars", [[{"__key__": f"k{i}", "json": b" null" if i % 2 else b"[%d]" % i} for i in range(5)]]
    )
    with pytest.raises(PackError, match="expected json, got None"):
        shardload.index(tmp_path / "tars", workers=1)
    schema = {"key": "str", "json": "json?"}
    shardload.index(tmp_path / "tars", workers=1, schema=schema)
    shardload.pack(paths, tmp_path / "copy", workers=1, schema=schema)
    check_equal(tmp_path / "tars", tmp_path / "copy")
    check_reader(strict_reader, tmp_path / "tars", tmp_path / "copy")
    assert shardload.open(tmp_path / "tars").lengths("json").tolist() == [3, 0, 3, 0, 3]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tars"
    some_tars(folder, 2, 4)
    assert main(["index", str(folder), "--key", "key", "--workers", "1"]) == 0
    told = capsys.readouterr()
    assert f"{folder}: 8 samples indexed and on disk" in told.out and "which stay as they are" in told.out
    assert "indexing" in told.err
    assert main(["info", str(folder)]) == 0 and "in files beside it" in capsys.readouterr().out
    assert main(["locate", str(folder), "--key", "k01-002", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["samples"]
    ranges = {range_["fields"][0]: range_ for range_ in one["ranges"] if range_["kind"] == "external"}
    data = (folder / ranges["txt"]["file"]).read_bytes()
    assert data[ranges["txt"]["start"] : ranges["txt"]["stop"]] == b"text 1 2"
    assert {name for range_ in one["ranges"] for name in range_["fields"]} == {"key", "cls", "jpg", "txt"}
    assert main(["locate", str(folder), "--sample", "0"]) == 0 and "external jpg" in capsys.readouterr().out
    assert main(["index", str(folder), "--append", "--replace"]) == 2
    assert main(["index", str(folder), "--replace", "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 2
